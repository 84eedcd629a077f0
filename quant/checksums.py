"""Checksums that a GGUF file carries in its own metadata: SHA-256 of every tensor and of the header, so that every byte is covered.

    glmrun.checksum.algorithm   "sha256"
    glmrun.checksum.tensors     one text of 64 hexadecimal digits per tensor, in the order of the tensor table
    glmrun.checksum.header      of all bytes before the first tensor's data, these 64 digits being zeros

They are known only when the last tensor is encoded, so a header is sized with zeros in their place. Other programs skip the keys.
Padding between tensors is zero. SHA-256 because processors have instructions for it and everyone has a program for it.
"""

import hashlib
from collections.abc import Sequence

from quant.gguf_header import MetadataValue, packed_pair

ALGORITHM, TENSORS, HEADER = (f"glmrun.checksum.{name}" for name in ("algorithm", "tensors", "header"))
ZEROS = "0" * 64


def blank_metadata(n_tensors: int) -> dict[str, MetadataValue]:
    """The three keys, with zeros that seal() replaces."""
    return {ALGORITHM: "sha256", TENSORS: [ZEROS] * n_tensors, HEADER: ZEROS}


def seal(header: bytes, tensors: Sequence[str]) -> bytes:
    """header with the tensors' checksums, and then its own, in place of the zeros."""
    header = header.replace(packed_pair(TENSORS, [ZEROS] * len(tensors)), packed_pair(TENSORS, list(tensors)), 1)
    return header.replace(packed_pair(HEADER, ZEROS), packed_pair(HEADER, hashlib.sha256(header).hexdigest()), 1)


def is_sealed(header: bytes, checksum: str) -> bool:
    """Whether header, which says that its checksum is `checksum`, is what seal() made."""
    blank = header.replace(packed_pair(HEADER, checksum), packed_pair(HEADER, ZEROS), 1)
    return hashlib.sha256(blank).hexdigest() == checksum
