"""JSON from strangers: anything Python's parser would accept silently or die of becomes one UserError."""

import json
from pathlib import Path
from typing import Any, NoReturn

from quant.errors import UserError

_MAX_BYTES = 256 << 20  # the largest tokenizer.json in use has some 30 MB


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises UserError naming the file if it is missing (3), unreadable or no valid JSON object."""
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes; glmrun reads JSON files up to {_MAX_BYTES:,}")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", 3) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return parse_json_object(raw, str(path))


def parse_json_object(raw: bytes, name: str) -> dict[str, Any]:
    """The object that raw holds; no duplicate keys, no NaN, no number of thousands of digits. `name` stands in the error."""
    if raw.startswith(b"version https://git-lfs"):
        raise UserError(f"{name} is a git-lfs pointer, not the file; run `git lfs pull` in the model's folder")
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
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
