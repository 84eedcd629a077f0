"""The front of a GGUF file (version 3): metadata and tensor directory, packed to bytes before a single weight is written.

gguf-py's writer opens its own file; ours must be a partial one that is locked, sized in advance and renamed when complete.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quant.errors import UserError

ALIGNMENT = 32
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9

# A list of str or of int (stored as int32); a plain int is stored as uint32, np.int32 as int32, a float as float32.
MetadataValue = str | bool | int | np.int32 | float | list[str] | list[int]


@dataclass(frozen=True)
class TensorEntry:
    """One line of the directory: shape is row-major, ggml_type GGML's number, n_bytes the size of the data."""

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    n_bytes: int


def padding(n_bytes: int) -> int:
    """Zero bytes that follow n_bytes of tensor data, up to the next multiple of the alignment."""
    return -n_bytes % ALIGNMENT


def pack_header(metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorEntry]) -> bytes:
    """Everything that stands before the first tensor's data, padded to the alignment.

    The data are expected right behind it, in the order of `tensors`, each padded with padding(n_bytes) zeros.
    Source: the GGUF specification, version 3, little-endian.
    """
    out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key, key)
        out += _value(key, value)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out += _string(tensor.name, tensor.name)
        out += struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.ggml_type, offset)
        offset += tensor.n_bytes + padding(tensor.n_bytes)
    return bytes(out) + bytes(padding(len(out)))


def _string(key: str, text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{key}: half a surrogate pair at character {error.start}; glmrun expects valid Unicode text") from None
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(key, value)
    if isinstance(value, bool):
        return struct.pack("<IB", _BOOL, value)
    if isinstance(value, np.int32):
        return struct.pack("<Ii", _INT32, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        if abs(value) > _FLOAT32_MAX:
            raise UserError(f"{key} is {value}; a GGUF file holds it as float32, up to {_FLOAT32_MAX:.3g}")
        return struct.pack("<If", _FLOAT32, value)
    if value and isinstance(value[0], str):
        items = b"".join([_string(key, str(text)) for text in value])
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + items
    return struct.pack("<IIQ", _ARRAY, _INT32, len(value)) + np.array(value, "<i4").tobytes()
