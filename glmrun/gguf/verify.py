"""Prove that a GGUF file is the one that was written, byte for byte, from the checksums it carries (quant/checksums.py)."""

import hashlib
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from glmrun.gguf.file import GGUFFile
from glmrun.gguf.open import open_parts
from quant.checksums import ALGORITHM, HEADER, TENSORS, is_sealed
from quant.errors import UserError
from quant.gguf_header import padding
from quant.system import cores

_STEP = 4 << 20  # bytes read at a time


@dataclass(frozen=True)
class Checked:
    """One thing that was compared with its checksum; bytes count the file so far."""

    name: str  # a tensor, or "the header of x.gguf"
    intact: bool
    bytes_done: int
    n_bytes: int


def verify(path: str | Path, n_threads: int | None = None) -> Generator[Checked, None, None]:
    """Check every byte of a file, or of all parts of a split one, yielding what was checked.

    Raises UserError for a file that is missing or no whole GGUF file, and for one without checksums.
    """
    parts = open_parts(path)
    total, done = sum(part.size for part in parts), 0
    for part in parts:
        if not _has_checksums(part):
            n_tensors = sum(len(part.tensors) for part in parts)
            raise UserError(
                f"{part.path} carries no checksums, so its data cannot be verified; its structure is whole: {n_tensors:,} tensors, "
                f"{total:,} bytes, everything in its place. Files that glmrun convert writes have checksums"
            )
    with ThreadPoolExecutor(n_threads or cores()) as pool:
        try:
            for part in parts:
                for name, job, end in [*_jobs(part, pool)]:
                    yield Checked(name, job.result(), done + end, total)
                done += part.size
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _has_checksums(part: GGUFFile) -> bool:
    kind, sums, header = (part.metadata.get(key) for key in (ALGORITHM, TENSORS, HEADER))
    if not isinstance(kind, str) or kind != "sha256" or not isinstance(sums, list) or not isinstance(header, str):
        return False
    if len(sums) != len(part.tensors):
        raise UserError(f"{part.path} has {len(part.tensors):,} tensors and {len(sums):,} checksums: another program rewrote it")
    return True


def _jobs(part: GGUFFile, pool: ThreadPoolExecutor) -> Iterator[tuple[str, "Future[bool]", int]]:
    """(what, is it intact, where it ends in the file) of the header and of every tensor."""
    tensors = list(part.tensors.values())
    start = min((tensor.offset for tensor in tensors), default=part.size)
    yield f"the header of {part.path.name}", pool.submit(_header_is_intact, part, start), start
    ends = [*(tensor.offset for tensor in tensors[1:]), part.size]
    for tensor, end, wanted in zip(tensors, ends, part.metadata[TENSORS], strict=True):
        yield tensor.name, pool.submit(_is_intact, part.path, tensor.offset, tensor.n_bytes, end, wanted), end


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
