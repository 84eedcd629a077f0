"""Files in a message: `@path` in its text, or /read.

A word that begins with @ means a file if one is there: at the start of the message or after white space, up to the next white space
or in double quotes (@"two words.txt"); full stops, commas and the like behind it are not part of it. The message goes out as it
was typed, with the text of each file behind it.
"""

import os
import re
from collections.abc import Mapping
from glob import glob, iglob
from pathlib import Path

from glmrun.repl.quotes import in_shell
from glmrun.terminal.console import note
from quant.errors import UserError
from quant.text import decode_text

MAX_FILE = 1 << 20  # bytes
_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|([^\s"]+))')
_PATTERN = re.compile(r"[*?[]")
_LANGUAGE = re.compile(r"\.(\w{1,12})")


MAX_FILES = 100  # of a folder or a pattern


def found_by(name: str) -> list[Path]:
    """The files that a name means: itself, those a pattern matches (*.py, **/*.md), a folder's text files. Raises UserError."""
    path = _home(name)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if not _is_hidden(file.relative_to(path)) and _is_text(file))
    elif _PATTERN.search(name) and not _is_there(path):
        found = sorted(Path(file) for file in glob(str(path), recursive=True) if Path(file).is_file())
    else:
        return [path]
    if not found:
        raise UserError(f"{name}: no {'text ' if path.is_dir() else ''}file is there", "missing")
    if len(found) > MAX_FILES:
        raise UserError(f"{name} means {len(found):,} files; at most {MAX_FILES} go with a message", "usage")
    return found


def names(text: str) -> list[str]:
    """The names of one or several files behind a command: all of it if such a file is there, else as a shell would read it."""
    whole = _home(text)
    return [text] if text and (_is_there(whole) or _matches(whole)) else in_shell(text)


def _matches(path: Path) -> bool:
    return bool(_PATTERN.search(str(path))) and next(iglob(str(path), recursive=True), None) is not None


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _is_text(path: Path) -> bool:
    try:
        read_text(path)
    except UserError:
        return False
    return True


def mentioned(text: str) -> list[Path]:
    """The files that a message mentions, each once. Raises UserError for one that cannot be read into it."""
    found: list[Path] = []
    for match in _MENTION.finditer(text):
        name = match[1] or match[2]
        paths = [_home(name), *([_home(name.rstrip(".,;:!?)]}'"))] if match[2] else [])]
        path = next((path for path in paths if _is_there(path) or _matches(path)), None)
        if path is None:
            if "/" in name or "." in name.strip("."):
                note(f"@{name}: no such file; it stays as it is written")
        else:
            found += [file for file in found_by(str(path)) if file not in found]
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
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; at most {MAX_FILE:,} are read into a message", "usage")
    text = decode_text(data, str(path))
    if "\0" in text:
        raise UserError(f"{path} is no text: it holds zero bytes", "usage")
    return text.replace("\r\n", "\n")


def _home(name: str) -> Path:
    """A path with the home folder that ~ means; ~nobody, whom there is not, stays as it is."""
    return Path(os.path.expanduser(name))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
