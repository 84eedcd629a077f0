"""Files in a message: `@path` in its text, or /read.

A word that begins with @ means a file if one is there: at the start of the message or after white space, up to the next white space
or in double quotes (@"two words.txt"); full stops, commas and the like behind it are not part of it. The message goes out as it
was typed, with the text of each file behind it.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from glmrun.terminal.console import note
from quant.errors import UserError

MAX_FILE = 1 << 20  # bytes
_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|([^\s"]+))')
_LANGUAGE = re.compile(r"\.(\w{1,12})")


def mentioned(text: str) -> list[Path]:
    """The files that a message mentions, each once. Raises UserError for one that cannot be read into it."""
    found: list[Path] = []
    for match in _MENTION.finditer(text):
        name = match[1] or match[2]
        paths = [Path(name).expanduser(), *([Path(name.rstrip(".,;:!?)]}'")).expanduser()] if match[2] else [])]
        path = next((path for path in paths if _is_there(path)), None)
        if path is None:
            if "/" in name or "." in name.strip("."):
                note(f"@{name}: no such file; it stays as it is written")
        elif path not in found:
            found.append(path)
    return found


def with_files(text: str, contents: Mapping[Path, str]) -> str:
    """A message with the contents of files behind it."""
    parts = [text] if text else []
    for path, content in contents.items():
        longest = max((len(run) for run in re.findall(r"`{3,}", content)), default=2)
        fence, language = "`" * (longest + 1), _LANGUAGE.fullmatch(path.suffix)
        end = "" if content.endswith("\n") or not content else "\n"
        parts.append(f"`{path}`:\n{fence}{language[1] if language else ''}\n{content}{end}{fence}")
    return "\n\n".join(parts)


def read_text(path: Path) -> str:
    """The text of one file; raises UserError if it is none, too large, or not UTF-8."""
    try:
        if not _is_there(path):
            raise UserError(f"{path}: no such file", "missing")
        if not path.is_file() and not path.is_fifo():  # a pipe: what the shell makes of <(command)
            raise UserError(f"{path} is {'a folder' if path.is_dir() else 'no file'}; name a text file", "missing")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as why:
        raise UserError(f"{path}: {why.strerror}") from None
    if len(data) > MAX_FILE:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_FILE:,} are read into a message")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        raise UserError(f"{path} is no UTF-8 text (byte 0x{data[why.start]:02x} at {why.start:,})") from None
    if "\0" in text:
        raise UserError(f"{path} is no text: it holds zero bytes")
    return text.replace("\r\n", "\n")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
