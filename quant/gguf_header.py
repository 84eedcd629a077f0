"""The front of a GGUF file (version 3): metadata and tensor directory, packed by gguf-py before a single weight is written.

Its writer would open a file of its own; ours is a partial one that is locked, sized in advance and renamed when complete.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quant.errors import UserError

ALIGNMENT = 32
_FLOAT32_MAX = float(np.finfo(np.float32).max)

# An int is stored as uint32, ints of a list as int32, a float as float32, NumPy's values as they are; an empty list is left out.
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
    import gguf  # takes as long as the rest of a start; only who writes a file needs it

    writer, out = gguf.GGUFWriter(None, ""), io.BytesIO()
    writer.fout, writer.state = [out], gguf.WriterState.EMPTY  # as if it had opened a file
    for key, value in metadata.items():
        if not isinstance(value, (list, np.ndarray)) or len(value):
            writer.add_key_value(key, *_typed(key, value))
    writer.tensors = [{t.name: gguf.TensorInfo(t.shape, t.ggml_type, t.n_bytes) for t in tensors}]
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except UnicodeEncodeError as error:
        texts = {key: [key, *value] if isinstance(value, list) else [key, value] for key, value in metadata.items()}
        where = next(key for key, found in texts.items() if any(text is error.object for text in found))
        raise UserError(f"{where}: half a surrogate pair at character {error.start}; glmrun expects valid Unicode text") from None
    return out.getvalue() + bytes(padding(out.tell()))


def _typed(key: str, value: MetadataValue) -> tuple[Any, Any, Any]:
    """(value, its GGUF type, its elements' GGUF type) as gguf-py's writer takes them."""
    from gguf import GGUFValueType as Type

    if isinstance(value, np.ndarray):
        return value.tolist(), Type.ARRAY, Type[value.dtype.name.upper()]
    if isinstance(value, np.number):
        return value.item(), Type[value.dtype.name.upper()], None
    if isinstance(value, list):
        return value, Type.ARRAY, Type.STRING if isinstance(value[0], str) else Type.INT32
    if isinstance(value, float) and abs(value) > _FLOAT32_MAX:
        raise UserError(f"{key} is {value}; a GGUF file holds it as float32, up to {_FLOAT32_MAX:.3g}")
    plain_int = isinstance(value, int) and not isinstance(value, bool)
    return value, Type.UINT32 if plain_int else Type.get_type(value), None
