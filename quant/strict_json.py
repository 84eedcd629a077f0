"""JSON from strangers: anything Python's parser would accept silently or die of becomes one UserError."""

import json
from pathlib import Path
from typing import Any, NoReturn

from quant.errors import UserError
from quant.text import without_mark

MAX_BYTES, MAX_TOKENIZER = 4 << 20, 32 << 20  # GLM's tokenizer.json has 20 MB, all the others together less than one
MAX_MEMBERS = 1 << 19  # of all objects: each takes a microsecond; GLM's tokenizer.json has 152,000
# Bytes of text for each list, object and member, at least: shorter ones cost some hundred bytes of memory for a few of text.
_SPARSE = {b"[": 8, b"{": 32, b":": 8}
_SMALL = 1024  # of them are always allowed


def read_json_object(path: Path, most: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file; raises UserError naming the file if it is missing, unreadable or no valid JSON object.

    most   bytes that are read
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise UserError(f"{path} has {size:,} bytes; glmrun reads such a file up to {most:,}")
        return parse_json_object(without_mark(path.read_bytes(), str(path)), str(path))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", "missing") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def parse_json_object(raw: bytes, name: str) -> dict[str, Any]:
    """The object that raw holds; no duplicate keys, no NaN, no number of thousands of digits. `name` is in the error."""
    if raw.startswith(b"version https://git-lfs"):
        raise UserError(f"{name} is a git-lfs pointer, not the file; run `git lfs pull` in the model's folder")
    for mark, n_bytes in _SPARSE.items():
        if (n := raw.count(mark)) > _SMALL + len(raw) // n_bytes:
            raise UserError(f"{name} has {n:,} times {mark.decode()!r} in {len(raw):,} bytes: it is not a file of a model")
    if (n := raw.count(b":")) > MAX_MEMBERS:
        raise UserError(f"{name} has {n:,} members; glmrun reads up to {MAX_MEMBERS:,}")
    try:
        text = raw.decode()
        del raw
        found = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not valid JSON: {str(error)[:120]}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} holds a JSON {type(found).__name__}; glmrun expects an object")
    return found


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} stands there twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
