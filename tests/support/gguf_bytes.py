"""GGUF files put together byte by byte, so that any byte can be wrong."""

import struct

import numpy as np

ALIGNMENT = 32
STRING, ARRAY, U8, U32, BOOL, U64, F32 = 8, 9, 0, 4, 7, 10, 6


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


KINDS = {"uint8": U8, "int8": 1, "uint32": U32, "int32": 5, "float32": F32, "bool": BOOL, "uint64": U64, "int64": 11, "float64": 12}


def pair(name: str, value: str | list[str] | bool | int | float | np.generic | np.ndarray) -> bytes:
    """A key with a value of the type that glmrun writes it in."""
    if isinstance(value, str):
        return key(name, STRING, text(value))
    if isinstance(value, list):
        return key(name, ARRAY, struct.pack("<IQ", STRING, len(value)) + b"".join(map(text, value)))
    kinds = {bool: np.bool_, int: np.uint32, float: np.float32}
    array = np.asarray(value, kinds.get(type(value)))
    kind, raw = KINDS[array.dtype.name], array.tobytes()
    return key(name, ARRAY, struct.pack("<IQ", kind, array.size) + raw) if array.ndim else key(name, kind, raw)


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


KEYS = [
    key("general.architecture", STRING, text("deepseek2")),
    key("a.flag", BOOL, b"\x01"),
    key("a.number", U32, struct.pack("<I", 7)),
    key("a.list", ARRAY, struct.pack("<IQ", U32, 3) + struct.pack("<3I", 1, 2, 3)),
    key("a.words", ARRAY, struct.pack("<IQ", STRING, 2) + text("one") + text("zwei")),
]
TENSORS = [tensor("first.weight", (4, 2), 0, 0), tensor("second.weight", (32, 3), 8, 32)]
DATA = np.arange(8, dtype=np.float32).tobytes() + bytes(3 * 34)


def build(
    keys: list[bytes] = KEYS,
    tensors: list[bytes] = TENSORS,
    data: bytes = DATA,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    header = magic + struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    )
    header += b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % ALIGNMENT) + data
