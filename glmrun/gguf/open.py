"""Open a GGUF file: map it, have its header proven, join its parts."""

import mmap
import os
import stat
from pathlib import Path

import numpy as np

from glmrun.gguf.file import GGUFFile
from glmrun.gguf.parts import join, other_parts
from glmrun.gguf.reader import read_header
from glmrun.gguf.watch import Watched
from quant.errors import UserError


def open_gguf(path: str | os.PathLike) -> GGUFFile:
    """Open, validate and map the file at `path`; if it is one part of a split file, all its parts.

    Raises UserError: missing if a file is not there, failed if it is not a whole, valid GGUF file that glmrun can run.
    """
    parts = open_parts(path)
    return join(parts) if len(parts) > 1 else parts[0]


def open_parts(path: str | os.PathLike) -> list[GGUFFile]:
    """The same, each part by itself."""
    file = _open_part(Path(path))
    return [file if part == file.path else _open_part(part) for part in other_parts(file) or [file.path]]


def _open_part(path: Path) -> GGUFFile:
    data, watched = _map(path)
    mapping = np.frombuffer(data, np.uint8)  # uint8 (size,)
    version, metadata, tensors = read_header(path, watched.descriptor, mapping)
    return GGUFFile(path, version, metadata, tensors, len(mapping), [mapping], [watched])


def _map(path: Path) -> tuple[mmap.mmap, Watched]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "missing") from None
    except (OSError, ValueError) as why:  # ValueError: a zero byte in the name
        raise UserError(f"{path}: can't be opened: {getattr(why, 'strerror', why)}", "missing") from None
    watched = Watched(path, descriptor)
    try:
        status = watched.status()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(
                f"{path}: is a folder; glmrun expects a GGUF file (a checkpoint folder becomes one with `glmrun convert`)",
                "missing",
            )
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: is not a regular file; glmrun expects a GGUF file", "missing")
        if status.st_size < 24:
            raise UserError(f"{path}: not a GGUF file: it has {status.st_size} bytes, a header alone has 24")
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ), watched
    except (OSError, OverflowError, ValueError) as why:  # ValueError: it has become empty
        raise UserError(f"{path}: can't be mapped: {getattr(why, 'strerror', why)}") from None
