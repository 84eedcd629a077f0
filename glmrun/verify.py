"""Prove that a GGUF file is the one that was written, byte for byte, from the checksums it carries (quant/checksums.py)."""

import hashlib
import os
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from glmrun.gguf_file import GGUFFile, open_gguf
from quant.checksums import ALGORITHM, HEADER, TENSORS, is_sealed
from quant.errors import UserError
from quant.gguf_header import padding

_STEP = 4 << 20  # bytes read at a time


@dataclass(frozen=True)
class Checked:
    """One thing that was held against its checksum; bytes count the file so far."""

    name: str  # a tensor, or "the header"
    intact: bool
    bytes_done: int
    n_bytes: int


def verify(path: str | Path, n_threads: int | None = None) -> Generator[Checked, None, None]:
    """Check every byte of a file, yielding what was checked, the header first.

    Raises UserError for a file that is missing (3) or no whole GGUF file, and for one without checksums.
    """
    file = open_gguf(path)
    sums = file.metadata.get(TENSORS)
    if file.metadata.get(ALGORITHM) != "sha256" or not isinstance(sums, list) or not isinstance(file.metadata.get(HEADER), str):
        raise UserError(
            f"{file.path} carries no checksums, so its {len(file.tensors):,} tensors cannot be verified; its structure is whole "
            f"({file.size:,} bytes, every tensor in its place). glmrun convert writes checksums"
        )
    tensors = list(file.tensors.values())
    if len(sums) != len(tensors):
        raise UserError(f"{file.path} has {len(tensors):,} tensors and {len(sums):,} checksums: another program rewrote it")
    start = min(tensor.offset for tensor in tensors)
    ends = [tensor.offset for tensor in tensors[1:]] + [file.size]
    with ThreadPoolExecutor(n_threads or os.cpu_count()) as pool:
        yield Checked("the header", _header_is_intact(file, start), start, file.size)
        jobs = [
            pool.submit(_is_intact, file.path, tensor.offset, tensor.n_bytes, end, wanted)
            for tensor, end, wanted in zip(tensors, ends, sums, strict=True)
        ]
        try:
            for tensor, end, job in zip(tensors, ends, jobs, strict=True):
                yield Checked(tensor.name, job.result(), end, file.size)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _header_is_intact(file: GGUFFile, n_bytes: int) -> bool:
    with open(file.path, "rb") as stream:
        return is_sealed(stream.read(n_bytes), file.metadata[HEADER])


def _is_intact(path: Path, offset: int, n_bytes: int, end: int, wanted: str) -> bool:
    """Whether the tensor has its checksum and only its padding, of zeros, follows. Plain reads, so that a bad disk is an error."""
    rest, digest = end - offset - n_bytes, hashlib.sha256()
    if rest != padding(n_bytes):
        return False
    with open(path, "rb", buffering=0) as stream:
        stream.seek(offset)
        while n_bytes:
            data = stream.read(min(n_bytes, _STEP))
            if not data:
                return False
            digest.update(data)
            n_bytes -= len(data)
        return digest.hexdigest() == wanted and not any(stream.read(rest))
