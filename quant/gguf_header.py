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
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBER_TYPES = {"u1": 0, "i1": 1, "<u2": 2, "<i2": 3, "<u4": 4, "<i4": 5, "<f4": 6, "<u8": 10, "<i8": 11, "<f8": 12}
_NUMBERS = {np.dtype(kind): i for kind, i in _NUMBER_TYPES.items()}

# A list of str or of int (stored as int32); a plain int is stored as uint32, a float as float32, NumPy's values as they are.
MetadataValue = str | bool | int | float | np.number | np.ndarray | list[str] | list[int]


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
        out += packed_pair(key, value)
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        out += _string(tensor.name, tensor.name)
        out += struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.ggml_type, offset)
        offset += tensor.n_bytes + padding(tensor.n_bytes)
    return bytes(out) + bytes(padding(len(out)))


def packed_pair(key: str, value: MetadataValue) -> bytes:
    """One line of the metadata: key, type, value."""
    return _string(key, key) + _value(key, value)


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
    if isinstance(value, np.number):
        return struct.pack("<I", _NUMBERS[value.dtype]) + value.tobytes()
    if isinstance(value, np.ndarray):
        kind = _BOOL if value.dtype == bool else _NUMBERS[value.dtype]
        return struct.pack("<IIQ", _ARRAY, kind, len(value)) + value.tobytes()
    if isinstance(value, int):
        return struct.pack("<II", _NUMBERS[np.dtype("<u4")], value)
    if isinstance(value, float):
        if abs(value) > _FLOAT32_MAX:
            raise UserError(f"{key} is {value}; a GGUF file holds it as float32, up to {_FLOAT32_MAX:.3g}")
        return struct.pack("<If", _NUMBERS[np.dtype("<f4")], value)
    if value and isinstance(value[0], str):
        items = b"".join([_string(key, str(text)) for text in value])
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + items
    return struct.pack("<IIQ", _ARRAY, _NUMBERS[np.dtype("<i4")], len(value)) + np.array(value, "<i4").tobytes()
