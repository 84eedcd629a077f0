"""Prompts that a person keeps: Markdown files in the folder `prompts` beside the config file, with {{variables}}."""

import re
from collections.abc import Mapping
from pathlib import Path

from glmrun.settings import config_path
from quant.errors import UserError
from quant.text import decode_text

_VARIABLE = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_NAME = re.compile(r"\w[\w.-]*")
MAX_BYTES = 1 << 20


def folder() -> Path:
    """Where they stand; it may be missing."""
    return config_path().parent / "prompts"


def listed() -> list[tuple[str, str]]:
    """(name, first line) of each, by name; one that cannot be read has no line."""
    found = []
    for path in sorted(folder().glob("*.md")):
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError):
            lines = []
        found.append((path.stem, next((line.strip("# ") for line in lines if line.strip()), "")))
    return found


def filled(name: str, values: Mapping[str, str]) -> str:
    """A prompt with values in the place of its variables. Raises UserError: no such prompt, a value too few or too many."""
    path = folder() / f"{name}.md"
    if not _NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(known for known, _ in listed()) or "none yet"
        raise UserError(f"there is no prompt {name} in {folder()} ({known})", "missing")
    if (n_bytes := path.stat().st_size) > MAX_BYTES:
        raise UserError(f"{path} has {n_bytes:,} bytes; a prompt has at most {MAX_BYTES:,}", "usage")
    text = decode_text(path.read_bytes(), str(path))
    wanted = dict.fromkeys(_VARIABLE.findall(text))
    missing, unknown = [key for key in wanted if key not in values], [key for key in values if key not in wanted]
    if missing or unknown:
        what = f"wants {' '.join(f'{key}=VALUE' for key in missing)}" if missing else f"has no variable {unknown[0]}"
        raise UserError(f"the prompt {name} {what}" + (f"; it has {', '.join(wanted)}" if unknown and wanted else ""), "usage")
    return _VARIABLE.sub(lambda found: values[found[1]], text).strip()


def values_of(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """(what `key=value` words say, the other words)."""
    pairs = [(word, re.match(r"(\w+)=", word)) for word in words]
    return {found[1]: word[found.end() :] for word, found in pairs if found}, [word for word, found in pairs if not found]
