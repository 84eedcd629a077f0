"""Read the header of a GGUF file: the border behind which every number is proven.

A file is hostile until this module has read it: any bytes give a GGUFFile or one UserError that names the field and the
byte. Sizes are compared with the bytes that are left before anything is allocated, all arithmetic is in Python's
unbounded integers, and what the kernels later read was checked against the length of the very file that is mapped.

    "GGUF" | version u32 | n_tensors u64 | n_kv u64 | n_kv x (key, type, value) | n_tensors x (name, dims, type, offset)
    | padding to `general.alignment` | tensor data, each tensor padded, in the order of the table
"""

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from glmrun.gguf.file import TensorInfo
from quant.errors import UserError, brief
from quant.formats import FORMATS, by_ggml_type, ggml_type_name

_U8, _I8, _U16, _I16, _U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64, _I64, _F64 = range(13)
_SCALARS: dict[int, np.dtype] = {
    _U8: np.dtype("u1"),
    _I8: np.dtype("i1"),
    _U16: np.dtype("<u2"),
    _I16: np.dtype("<i2"),
    _U32: np.dtype("<u4"),
    _I32: np.dtype("<i4"),
    _F32: np.dtype("<f4"),
    _BOOL: np.dtype("u1"),
    _U64: np.dtype("<u8"),
    _I64: np.dtype("<i8"),
    _F64: np.dtype("<f8"),
}

_READ = 1 << 20  # bytes of the header read at a time
_WINDOW = 1 << 10  # bytes of a list of texts that are cut at a time, at least
_SLOWLY = 100  # texts read one by one where they can't be cut
MAX_KEY = 65_535  # bytes, the format's own limit
MAX_STRING = 16 << 20  # bytes of one value
MAX_ELEMENTS = 16 << 20  # of one array
MAX_KEYS = 65_536
MAX_METADATA = 512 << 20  # bytes of all keys and values
MAX_TEXTS = 2 << 20  # in all arrays together
MAX_TENSORS = 32_768
MAX_NAME = 63  # bytes of a tensor name
MAX_ALIGNMENT = 1 << 20
_OF_IK_LLAMA = range(133, 400)  # the types that it adds to GGML's, as IQ5_K; nothing else numbers any so high


class _Cursor:
    """Reads little-endian fields from the front of a file and knows what it is reading when the bytes run out.

    With plain reads: a mapped file that another program shortens in this very moment would end the process.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self._descriptor, self.size, self.at, self.n_texts = path, descriptor, size, 0, 0
        self.data = bytearray()  # what has been read so far, from the file's first byte on

    def error(self, field: str, found: str) -> UserError:
        field = field if field.isprintable() and len(field) <= 120 else brief(field)
        return UserError(f"{self.path}: {field} at byte {self.at}: {found}")

    def need(self, n_bytes: int, field: str) -> None:
        if n_bytes > self.size - self.at:
            left = self.size - self.at
            found = f"{n_bytes:,} bytes were expected, {left:,} are left of {self.size:,}; is the download complete?"
            raise self.error(field, found)
        self.read_to(self.at + n_bytes)

    def read_to(self, end: int) -> int:
        """Have the bytes before `end`, as far as the file goes; how many there are now."""
        end = min(end, self.size)
        while len(self.data) < end:
            wanted = min(max(end, len(self.data) + _READ), self.size) - len(self.data)  # a buffer of that size is made
            more = os.pread(self._descriptor, wanted, len(self.data))
            if not more:
                raise UserError(f"{self.path}: ended at byte {len(self.data):,} of {self.size:,} while it was being read")
            self.data += more
        return len(self.data)

    def scalar(self, kind: int, field: str) -> Any:
        dtype = _SCALARS[kind]
        self.need(dtype.itemsize, field)
        value = np.frombuffer(self.data, dtype, 1, self.at)[0].item()
        if kind == _BOOL:
            if value > 1:
                raise self.error(field, f"a boolean is 0 or 1, found {value}")
            value = bool(value)
        self.at += dtype.itemsize
        return value

    def string(self, field: str, limit: int = MAX_STRING) -> str:
        self.need(8, field)
        length = int.from_bytes(self.data[self.at : self.at + 8], "little")
        self.at += 8
        if length > limit:
            raise self.error(field, f"a text of {length:,} bytes; at most {limit:,} are allowed")
        self.need(length, field)
        raw = self.data[self.at : self.at + length]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as why:
            raise self.error(field, f"not valid UTF-8 ({why.reason} at byte {why.start} of it)") from None
        self.at += length
        return text

    def strings(self, count: int, field: str) -> list[str]:
        """The same as `count` calls of string(), in a fifth of the time: vocabularies are long."""
        self.need(8 * count, field)
        self.n_texts += count
        if self.n_texts > MAX_TEXTS:
            raise self.error(field, f"more than {MAX_TEXTS:,} texts in the file's lists")
        out: list[str] = []
        window = _WINDOW
        while left := count - len(out):
            start, at = self.at, len(out)
            out += self._short_strings(left, window)
            # A window of which little could be cut is hardly longer than what was cut before it: no file wastes more than it gives.
            window = min(2 * window, _READ) if self.at - start > window // 2 else _WINDOW
            if self.at == start:
                out += [self.string(f"{field}[{at + i}]", MAX_KEY) for i in range(min(left, _SLOWLY))]
        return out

    def _short_strings(self, count: int, n_bytes: int) -> list[str]:
        """Up to `count` texts of the next bytes, cut at the seven zeros of lengths below 256; none where the first can't be."""
        self.read_to(self.at + n_bytes)
        window = bytes(self.data[self.at : self.at + n_bytes])
        pieces = window.split(bytes(7), count)  # a length, then texts, each with the length of the next one behind it
        sizes = np.fromiter(map(len, pieces), np.int64, len(pieces))  # int64 (pieces,)
        last = np.frombuffer(window, np.uint8)[(np.cumsum(sizes + 7) - 8)[:-1]]  # uint8 (pieces - 1,)
        fits = np.append((sizes[:-1] > 0) & (last == sizes[1:] - 1), False)  # bool (pieces,)
        n = int(fits.argmin()) if sizes[0] == 1 else 0
        texts = pieces[1 : n + 1]
        try:
            out = [text[:-1].decode() for text in texts]
        except UnicodeDecodeError:
            return []
        self.at += int(sizes[1 : n + 1].sum()) + 7 * n
        return out

    def value(self, field: str) -> Any:
        kind = self.scalar(_U32, f"type of {field}")
        if kind == _STRING:
            return self.string(field)
        if kind in _SCALARS:
            return self.scalar(kind, field)
        if kind != _ARRAY:
            raise self.error(f"type of {field}", f"value type {kind} is not one of GGUF's (0 to 12)")
        kind, count = self.scalar(_U32, f"element type of {field}"), self.scalar(_U64, f"length of {field}")
        if count > MAX_ELEMENTS:
            raise self.error(f"length of {field}", f"{count:,} elements; at most {MAX_ELEMENTS:,} are allowed")
        if kind == _STRING:
            return self.strings(count, field)
        if kind not in _SCALARS:
            raise self.error(f"element type of {field}", f"type {kind} can't be an element of an array")
        dtype = _SCALARS[kind]
        self.need(count * dtype.itemsize, field)
        array = np.frombuffer(self.data, dtype, count, self.at).copy()  # dtype (count,)
        if kind == _BOOL:
            if array.size and array.max() > 1:
                raise self.error(field, "a boolean is 0 or 1")
            array = array.astype(bool)  # bool (count,)
        self.at += array.nbytes
        return array


def read_header(path: Path, descriptor: int, mapping: np.ndarray) -> tuple[int, dict[str, Any], dict[str, TensorInfo]]:
    """(version, metadata, tensors in place) of an open file; mapping is the whole of it, uint8 (size,).

    Raises UserError that names the field and the byte if it is not a whole, valid GGUF file that glmrun can run.
    """
    cursor = _Cursor(path, descriptor, len(mapping))
    cursor.read_to(512)
    _check_magic(path, cursor.data)
    cursor.at = 4
    version = cursor.scalar(_U32, "version")
    if version not in (2, 3):
        hint = "convert the model again" if version == 1 else "a newer glmrun?"
        hint = "a big-endian file" if version & 0xFFFF == 0 and version else hint
        raise UserError(f"{path}: GGUF version {version}; glmrun reads versions 2 and 3 ({hint})")
    n_tensors, n_keys = cursor.scalar(_U64, "number of tensors"), cursor.scalar(_U64, "number of metadata keys")
    if n_keys > MAX_KEYS or n_tensors > MAX_TENSORS or n_keys * 13 + n_tensors * 24 > cursor.size - cursor.at:
        announced = f"{n_tensors:,} tensors and {n_keys:,} metadata keys"
        raise UserError(f"{path}: the header announces {announced}; a file of {cursor.size:,} bytes can't hold them")
    metadata = _read_metadata(cursor, n_keys)
    return version, metadata, _read_tensors(cursor, n_tensors, metadata, mapping)


def _check_magic(path: Path, data: bytearray) -> None:
    head = bytes(data[:512])
    if head.startswith(b"GGUF"):
        return
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path}: a git-lfs pointer, not the model itself; fetch it with `git lfs pull`")
    looks_like = (
        "a safetensors file (make a GGUF file of it with `glmrun convert FOLDER`)" if head[8:9] == b"{"
        else "a web page, perhaps an error message saved by a download" if head.lstrip()[:1] == b"<"
        else "a JSON text, perhaps an error message saved by a download" if head.lstrip()[:1] == b"{"
        else "a zip archive or a PyTorch checkpoint" if head.startswith(b"PK")
        else "zeros, as an interrupted conversion leaves" if not any(head)
        else f"a file that begins with {head[:4]!r}"
    )  # fmt: skip
    raise UserError(f"{path}: not a GGUF file: {looks_like}")


def _read_metadata(cursor: _Cursor, n_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for i in range(n_keys):
        key = cursor.string(f"metadata key {i}", MAX_KEY)
        if not key:
            raise cursor.error(f"metadata key {i}", "an empty name")
        if key in metadata:
            raise cursor.error(f"metadata key {brief(key)}", "stands in the file twice")
        metadata[key] = cursor.value(key)
        if cursor.at > MAX_METADATA:
            raise cursor.error(key, f"the metadata continues after {MAX_METADATA:,} bytes")
    return metadata


def _read_tensors(cursor: _Cursor, n_tensors: int, metadata: dict[str, Any], mapping: np.ndarray) -> dict[str, TensorInfo]:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise UserError(
            f"{cursor.path}: general.alignment is {brief(alignment)}; a power of two from 8 to {MAX_ALIGNMENT:,} is expected"
        )
    table: dict[str, tuple[tuple[int, ...], str, int]] = {}
    total = 0
    for i in range(n_tensors):
        name, shape, format_name, n_bytes = _read_tensor(cursor, i)
        if name in table:
            raise cursor.error(f"tensor {name!r}", "stands in the file twice")
        offset = cursor.scalar(_U64, f"offset of {name}")
        if offset != total:
            raise cursor.error(
                f"offset of {name}", f"{offset:,}, but the tensors before it end at {total:,} (alignment {alignment})"
            )
        table[name] = (shape, format_name, n_bytes)
        total += -(-n_bytes // alignment) * alignment
    tensors, at, end = {}, -(-cursor.at // alignment) * alignment, 0
    for name, (shape, format_name, n_bytes) in table.items():
        end = at + n_bytes
        tensors[name] = TensorInfo(name, shape, format_name, mapping[at:end], at)
        at += -(-n_bytes // alignment) * alignment
    if end > cursor.size:
        there = f"{cursor.size:,} of {end:,} bytes are there ({100 * cursor.size / end:.1f} %)"
        raise UserError(f"{cursor.path}: {there}: an incomplete download or copy; fetch it again")
    return tensors


def _read_tensor(cursor: _Cursor, i: int) -> tuple[str, tuple[int, ...], str, int]:
    name = cursor.string(f"name of tensor {i}", MAX_NAME)
    if not name or not name.isprintable():
        raise cursor.error(f"name of tensor {i}", f"{name!r} can't be a name")
    n_dims = cursor.scalar(_U32, f"dimensions of {name}")
    if not 1 <= n_dims <= 4:
        raise cursor.error(f"dimensions of {name}", f"{n_dims}; GGUF allows 1 to 4")
    shape = tuple(cursor.scalar(_U64, f"shape of {name}") for _ in range(n_dims))[::-1]
    if not all(0 < n < 1 << 40 for n in shape) or prod(shape) >= 1 << 48:
        raise cursor.error(f"shape of {name}", f"{shape} is not a shape that a tensor can have")
    ggml_type = cursor.scalar(_U32, f"type of {name}")
    form = by_ggml_type(ggml_type)
    if form is None:
        known = f"type {ggml_type} of ik_llama.cpp" if ggml_type in _OF_IK_LLAMA else ggml_type_name(ggml_type)
        if known is None:
            raise cursor.error(f"type of {name}", f"{ggml_type} is not a GGML type: the file is damaged, or of another time")
        raise UserError(f"{cursor.path}: {name} is stored as {known}, which glmrun does not run; it runs {', '.join(FORMATS)}")
    if shape[-1] % form.block_length:
        raise cursor.error(
            f"shape of {name}", f"rows of {shape[-1]} values are not a whole number of {form.name} blocks of {form.block_length}"
        )
    return name, shape, form.name, prod(shape[:-1]) * form.row_bytes(shape[-1])
