"""Models split into several files, NAME-00001-of-00003.gguf and so on: each part has a header, the first one the metadata."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from glmrun.gguf.file import GGUFFile
from quant.errors import UserError, brief

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_OWN_KEYS = ("split.", "glmrun.checksum.")  # each part has its own values


def other_parts(file: GGUFFile) -> list[Path]:
    """The paths of all parts, this one among them, if the file is one part of several; else nothing.

    Raises UserError (missing) that names the parts that are missing.
    """
    count, number = _whole(file, "split.count", 1), _whole(file, "split.no", 0)
    if count <= 1:
        return []
    match = _NAME.fullmatch(file.path.name)
    if not match or count > 999 or (int(match[2]), int(match[3])) != (number + 1, count):
        expected = f"NAME-{number + 1:05}-of-{count:05}.gguf"
        raise UserError(f"{file.path}: part {number + 1} of a model split into {count}; its name must be {expected}")
    paths = [file.path.with_name(f"{match[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise UserError(
            f"{file.path}: {len(missing)} of {count} parts are missing: {named}; fetch them into the same folder", "missing"
        )
    return paths


def join(parts: list[GGUFFile]) -> GGUFFile:
    """One model of its parts; UserError where they do not belong together."""
    first, tensors = parts[0], dict(parts[0].tensors)
    for i, part in enumerate(parts):
        found = (_whole(part, "split.no", 0), _whole(part, "split.count", 1))
        if found != (i, len(parts)):
            raise UserError(f"{part.path}: says it is part {found[0] + 1} of {found[1]}, by its name it is {i + 1} of {len(parts)}")
        if part is first:
            continue
        for key, value in part.metadata.items():
            if not key.startswith(_OWN_KEYS) and key in first.metadata and not _same(value, first.metadata[key]):
                raise UserError(f"{part.path}: its {brief(key)} is not that of {first.path.name}: parts of different models")
        twice = next((name for name in part.tensors if name in tensors), None)
        if twice is not None:
            raise UserError(f"{part.path}: {twice} stands in two parts")
        tensors |= part.tensors
    total = _whole(first, "split.tensors.count", len(tensors))
    if total != len(tensors):
        raise UserError(f"{first.path}: its parts hold {len(tensors):,} tensors, {total:,} were split")
    return replace(
        first,
        tensors=tensors,
        size=sum(part.size for part in parts),
        mappings=[m for part in parts for m in part.mappings],
        watched=[w for part in parts for w in part.watched],
    )


def _whole(file: GGUFFile, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise UserError(f"{file.path}: {key} is {brief(value)}; a whole number is expected")
    return value


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a.tolist() == b.tolist() if hasattr(a, "tolist") else a == b)
