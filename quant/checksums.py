"""Checksums that a GGUF file carries in its own metadata: SHA-256 of every tensor and of the header, so that every byte is covered.

    glmrun.checksum.algorithm   "sha256"
    glmrun.checksum.tensors     one text of 64 hexadecimal digits per tensor, in the order of the tensor table
    glmrun.checksum.header      of all bytes before the first tensor's data, these 64 digits being zeros

They are known only when the last tensor is encoded, so a header is sized with zeros in their place. Other programs skip the keys.
Padding between tensors is zero. SHA-256 because processors have instructions for it and everyone has a program for it.
"""

import hashlib
import re
from collections.abc import Sequence

from quant.gguf_header import MetadataValue

ALGORITHM, TENSORS, HEADER = (f"glmrun.checksum.{name}" for name in ("algorithm", "tensors", "header"))
ZEROS = "0" * 64


def blank_metadata(n_tensors: int) -> dict[str, MetadataValue]:
    """The three keys, with zeros that seal() replaces."""
    return {ALGORITHM: "sha256", TENSORS: [ZEROS] * n_tensors, HEADER: ZEROS}


def seal(header: bytes, tensors: Sequence[str]) -> bytes:
    """header with the tensors' checksums, and then its own, in place of the zeros."""
    header = _replaced(header, TENSORS, ZEROS, tensors)
    return _replaced(header, HEADER, ZEROS, [hashlib.sha256(header).hexdigest()])


def is_sealed(header: bytes, checksum: str) -> bool:
    """Whether header, which says that its checksum is `checksum`, is what seal() made."""
    return hashlib.sha256(_replaced(header, HEADER, checksum, [ZEROS])).hexdigest() == checksum


def _replaced(header: bytes, key: str, old: str, new: Sequence[str]) -> bytes:
    """header with `new` in place of the first texts `old` behind the key: they are as long, so nothing else moves."""
    before, found, after = header.rpartition(key.encode())
    texts = iter(new)
    return before + found + re.sub(re.escape(old.encode()), lambda _: next(texts).encode(), after, count=len(new))
