"""Make text harmless before a terminal sees it.

Model output, file names, metadata and error texts can carry escape sequences (move the cursor, set the clipboard, type
answers into the shell), characters that turn the reading direction around, and invisible tags. Rich lets all of them pass.
Each such character is replaced by itself, for each is harmless once its escape character is: so nothing has to be
remembered between two pieces of a stream, and a sequence split at any place stays harmless.
"""

import json
import re
from typing import Any

# C0 without newline and tab, DEL, C1 · Arabic letter mark, zero-width space, direction marks, line and paragraph separators,
# embeddings, overrides, isolates, word joiner and other invisible operators, byte order mark, interlinear annotations ·
# surrogates (a file name that is not UTF-8) · tags and invisible selectors. Joiners and U+FE0F stay: emoji need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)

# More accents than a letter can carry would grow over the lines above it.
_ACCENTS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_FLOOD = re.compile(f"([{_ACCENTS}]{{8}})[{_ACCENTS}]+")


def visible(text: str) -> str:
    """text with newline, tab and printable characters as they are and every other character shown: ␛, ␇, ⟨U+202E⟩."""
    return _FLOOD.sub(r"\1", _HIDDEN.sub(_shown, text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """visible(text) on a single line: for error messages, file names and cells of tables."""
    return " ".join(visible(text).split())


def json_text(value: Any, indent: int | None = 2) -> str:
    """value as JSON for a terminal, a pipe or a file alike: what visible() would show stands in it as an escape (\\u202e)."""
    return _HIDDEN.sub(lambda match: json.dumps(match[0])[1:-1], json.dumps(value, ensure_ascii=False, indent=indent))


class VisibleStream:
    """visible() of a text that comes in pieces: a line break of two characters may be cut in half."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """What can be shown of all that came so far."""
        text = self._held + text
        self._held = "\r" if text.endswith("\r") else ""
        return visible(text.removesuffix("\r"))

    def flush(self) -> str:
        """What was held back; the text is over."""
        text, self._held = self._held, ""
        return visible(text)


def _shown(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
