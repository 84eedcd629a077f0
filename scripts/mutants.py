"""Damaged copies of a GGUF file and of a checkpoint's JSON: from one seed, so that each can be made again."""

import itertools
import json
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

ALIGNMENT = 32
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # GGUF's scalar types
_STRING, _ARRAY, _FLOATS = 8, 9, (6, 12)
_EDGES = [0, 1, 2, 3, 7, 8, 31, 32, 33, 63, 64, 255, 256, 257, 1 << 15, 1 << 16, 1 << 20, 1 << 24]
_EDGES += [edge + d for edge in (1 << 31, 1 << 32, 1 << 40, 1 << 48, 1 << 63) for d in (-1, 0, 1)] + [(1 << 64) - 1]
_FLOAT_EDGES = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e-38, 3e38, float("inf"), float("-inf"), float("nan"), 1e4, 1e-5]


@dataclass(frozen=True)
class Pieces:
    """A GGUF file cut at its joints."""

    counts: tuple[int, int]  # tensors and keys that the header announces
    keys: list[bytes]
    tensors: list[bytes]  # entries of the table
    data: list[bytes]  # of each tensor, padded

    @classmethod
    def cut(cls, raw: bytes) -> "Pieces":
        """The pieces of a valid file."""
        n_tensors, n_keys = struct.unpack_from("<QQ", raw, 8)
        at, keys, tensors = 24, [], []
        for _ in range(n_keys):
            end = at + _key_fields(raw, at)[1]
            keys.append(raw[at:end])
            at = end
        for _ in range(n_tensors):
            end = at + _tensor_fields(raw, at)[-1][0] - at + 8
            tensors.append(raw[at:end])
            at = end
        start = -(-at // ALIGNMENT) * ALIGNMENT
        offsets = [struct.unpack("<Q", entry[-8:])[0] for entry in tensors] + [len(raw) - start]
        data = [raw[start + a : start + b] for a, b in itertools.pairwise(offsets)]
        return cls((n_tensors, n_keys), keys, tensors, data)

    def join(self) -> bytes:
        """The file."""
        head = b"GGUF" + struct.pack("<IQQ", 3, *self.counts) + b"".join(self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % ALIGNMENT) + b"".join(self.data)

    def laid_out(self) -> "Pieces":
        """With counts and offsets that fit the pieces."""
        offsets = np.cumsum([0, *map(len, self.data)]).tolist()
        tensors = [entry[:-8] + struct.pack("<Q", offset) for entry, offset in zip(self.tensors, offsets, strict=False)]
        return replace(self, counts=(len(tensors), len(self.keys)), tensors=tensors)


def _key_fields(raw: bytes, at: int) -> tuple[list[tuple[int, int]], int]:
    """([(position, bytes) of the numbers in a metadata entry], its length)."""
    start, (length,) = at, struct.unpack_from("<Q", raw, at)
    fields = [(at, 8), (at + 8 + length, 4)]
    at += 8 + length
    (kind,) = struct.unpack_from("<I", raw, at)
    at, count = at + 4, 1
    if kind == _ARRAY:
        kind, count = struct.unpack_from("<IQ", raw, at)
        fields += [(at, 4), (at + 4, 8)]
        at += 12
    for _ in range(min(count, 1 << 16)):
        size = 8 + struct.unpack_from("<Q", raw, at)[0] if kind == _STRING else _SIZES[kind]
        fields.append((at, min(size, 8)))
        at += size
    return fields, at - start


def _tensor_fields(raw: bytes, at: int) -> list[tuple[int, int]]:
    """[(position, bytes)] of the numbers in an entry of the tensor table; the last one is the offset."""
    (length,) = struct.unpack_from("<Q", raw, at)
    (n_dims,) = struct.unpack_from("<I", raw, at + 8 + length)
    if n_dims > 8:
        raise struct.error("damaged already")
    dims = at + 12 + length
    return [(at, 8), (dims - 4, 4), *((dims + 8 * i, 8) for i in range(n_dims)), (dims + 8 * n_dims, 4), (dims + 8 * n_dims + 4, 8)]


def gguf_mutant(base: Pieces, rng: np.random.Generator) -> bytes:
    """One to four damages: entries, then numbers, then data, then raw bytes."""
    pieces, raw_damages = base, 0
    for _ in range(int(rng.choice([1, 1, 1, 2, 2, 3, 4]))):
        kind = rng.random()
        if kind < 0.40:
            pieces = _damage_number(pieces, rng)
        elif kind < 0.60:
            pieces = _damage_entries(pieces, rng)
        elif kind < 0.80:
            pieces = _damage_data(pieces, rng)
        else:
            raw_damages += 1
    raw = pieces.join()
    for _ in range(raw_damages):
        raw = damage_bytes(raw, rng, len(raw) - sum(map(len, pieces.data)))
    return raw


def _damage_number(pieces: Pieces, rng: np.random.Generator) -> Pieces:
    if rng.random() < 0.05:
        counts = list(pieces.counts)
        counts[rng.integers(2)] = _edge(rng, counts[0])
        return replace(pieces, counts=(counts[0], counts[1]))
    in_keys = rng.random() < 0.5
    entries = list(pieces.keys if in_keys else pieces.tensors)
    i = int(rng.integers(len(entries)))
    try:
        fields = _key_fields(entries[i], 0)[0] if in_keys else _tensor_fields(entries[i], 0)
    except (struct.error, KeyError, OverflowError):  # damaged already
        fields = [(int(rng.integers(len(entries[i]))), 1)]
    at, size = fields[min(int(rng.integers(len(fields) + 3)), len(fields) - 1)]
    old = int.from_bytes(entries[i][at : at + size], "little")
    if in_keys and size == 4 and rng.random() < 0.2:
        new = struct.pack("<f", rng.choice(_FLOAT_EDGES))
    else:
        new = (_edge(rng, old) % (1 << 8 * size)).to_bytes(size, "little")
    entries[i] = entries[i][:at] + new + entries[i][at + size :]
    return replace(pieces, keys=entries) if in_keys else replace(pieces, tensors=entries)


def _edge(rng: np.random.Generator, old: int) -> int:
    near = [max(0, old - 1), old + 1, old * 2, old // 2, old ^ (1 << int(rng.integers(32)))]
    return int(rng.choice(near)) if rng.random() < 0.4 and max(near) < 1 << 63 else _EDGES[rng.integers(len(_EDGES))]


def _damage_entries(pieces: Pieces, rng: np.random.Generator) -> Pieces:
    """Drop, double, swap or rename an entry, or give it another's value; half the time counts and offsets are made to fit again."""
    in_keys = rng.random() < 0.5
    entries, data = list(pieces.keys if in_keys else pieces.tensors), list(pieces.data)
    i, j = rng.integers(len(entries), size=2).tolist()
    kind = rng.integers(5)
    if kind == 0:
        del entries[i]
        if not in_keys and i < len(data):
            del data[i]
    elif kind == 1:
        entries.insert(j, entries[i])
        if not in_keys and max(i, j) < len(data):
            data.insert(j, data[i])
    elif kind == 2:
        entries[i], entries[j] = entries[j], entries[i]
        if not in_keys and max(i, j) < len(data):
            data[i], data[j] = data[j], data[i]
    elif kind == 3 and in_keys:
        i_value, j_value = (8 + struct.unpack_from("<Q", entries[k])[0] if len(entries[k]) > 8 else 0 for k in (i, j))
        entries[i] = entries[i][:i_value] + entries[j][j_value:]
    else:
        name = len(entries[i]) and struct.unpack_from("<Q", entries[i])[0]
        at = 8 + int(rng.integers(max(1, min(name, len(entries[i]) - 8))))
        entries[i] = entries[i][:at] + bytes([rng.integers(256)]) + entries[i][at + 1 :]
    pieces = replace(pieces, keys=entries) if in_keys else replace(pieces, tensors=entries, data=data)
    return pieces.laid_out() if rng.random() < 0.5 and len(pieces.tensors) == len(pieces.data) else pieces


def _damage_data(pieces: Pieces, rng: np.random.Generator) -> Pieces:
    """Random bytes, or the pattern of an infinite or of no number, at some places of one tensor."""
    data = list(pieces.data)
    i = int(rng.integers(len(data)))
    found = np.frombuffer(data[i], np.uint8).copy()  # uint8 (n_bytes,)
    if len(found) < 4:
        return pieces
    kind = rng.integers(3)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(len(found) - 3))
        if kind == 0:
            found[at : at + 4] = np.frombuffer(struct.pack("<f", rng.choice(_FLOAT_EDGES)), np.uint8)
        elif kind == 1:
            found[at : at + 2] = (0x00, 0x7C + rng.integers(4))
        else:
            n = int(rng.integers(1, 256))
            found[at : at + n] = rng.integers(0, 256, len(found[at : at + n]), dtype=np.uint8)
    data[i] = found.tobytes()
    return replace(pieces, data=data)


def damage_bytes(raw: bytes, rng: np.random.Generator, n_head: int) -> bytes:
    """Overwrite, cut, insert, repeat: mostly in the first n_head bytes."""
    if not raw:
        return b"\0"
    at = int(rng.integers(max(1, n_head if rng.random() < 0.9 else len(raw))))
    n = int(rng.integers(1, 17))
    kind = rng.integers(6)
    if kind == 0:
        return raw[:at]
    if kind == 1:
        return raw[:at] + raw[at + n :]
    if kind == 2:
        return raw[:at] + bytes(rng.integers(0, 256, n, dtype=np.uint8)) + raw[at:]
    if kind == 3:
        other = int(rng.integers(max(1, n_head)))
        return raw[:at] + raw[other : other + n] + raw[at + n :]
    value = (
        [0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256))][rng.integers(6)]
        if kind == 4
        else raw[at : at + 1][0] ^ 1 << int(rng.integers(8))
    )
    return raw[:at] + bytes([value]) + raw[at + 1 :]


def json_mutant(source: Any, rng: np.random.Generator) -> Any:
    """The same JSON with one value replaced, removed, doubled under another name, or wrapped."""
    places = list(_places(source))
    path = places[rng.integers(len(places))]
    return _changed(source, path, rng)


def _places(value: Any, path: tuple = (), most: int = 64) -> Any:
    yield path
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, inner in items[:most] + items[-most:][len(items[:most]) :]:
        yield from _places(inner, (*path, key), most)


def _changed(value: Any, path: tuple, rng: np.random.Generator) -> Any:
    if path:
        copy = value.copy()
        if len(path) == 1 and rng.random() < 0.25:
            del copy[path[0]]
        else:
            copy[path[0]] = _changed(value[path[0]], path[1:], rng)
        return copy
    edges: list[Any] = [
        None,
        True,
        False,
        "",
        "x",
        "../x",
        "\u0000",
        "x" * 5000,
        [],
        {},
        [value],
        {"x": value},
        1.5,
        -1,
        1e308,
        10**30,
    ]
    if isinstance(value, int) and rng.random() < 0.6:
        return _edge(rng, value)
    return edges[rng.integers(len(edges))]


def text_of(source: Any, rng: np.random.Generator) -> bytes:
    """JSON text, now and then of a kind that a parser should not accept."""
    text = json.dumps(source)
    if rng.random() < 0.1:
        n = int(rng.integers(1, 5000))
        bad = ["[" * n, '{"a":' * n, "9" * n, "NaN", "-Infinity", '"\\ud800"', "\ufeff", "{", '{"a":1,"a":2}'][rng.integers(9)]
        at = int(rng.integers(len(text)))
        text = text[:at] + bad + text[at:]
    return text.encode("utf-8", "surrogatepass")
