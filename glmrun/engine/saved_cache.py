"""A conversation's cache on disk, so that resuming it reads a file instead of the whole prompt again.

    one line of JSON: version, fingerprint | segments: SEGMENT, position, tokens, CRC-32 | int32 (tokens,) | rows, layer by layer

After each answer only the new rows are appended. A segment takes the place of all that came before from its position on, so taking
back a message costs nothing. Whatever does not fit (another model, another type of cache, other kernels, damage) is
left aside: the prompt is read again, which is slower and never wrong. Nothing is synced, since losing it loses no word.
"""

import errno
import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from glmrun.kernels.compiled.cache import folder as kernels_folder

if TYPE_CHECKING:
    from glmrun.engine.model import Model

_SEGMENT = struct.Struct("<8sqqI")  # the word, position, tokens, CRC-32 of what follows
_WORD = b"SEGMENT\n"
_MAX_HEADER = 4096  # bytes
_WASTE = 256 << 20  # bytes of segments that were taken back, before the file is written anew


class SavedCache:
    """The file of one conversation, for one open model.

    path     where it stands; it need not exist
    ignored  after load(): why the file was left aside, or None
    """

    def __init__(self, path: Path, model: "Model") -> None:
        self.path = path
        self.ignored: str | None = None
        self._model, self._fingerprint = model, fingerprint(model)
        self._mark = object()  # of what the file holds now: a sequence that has it knows how many of its rows the file has
        self._tokens: list[int] = []  # what the file holds, up to _end
        self._end = 0  # byte behind the last good segment; 0: no file of ours

    def load(self) -> int:
        """Fill the model's cache from the file; returns the positions that are cached now."""
        self._tokens, self._end, self.ignored = [], 0, None
        try:
            with open(self.path, "rb") as file:
                self._read(file)
        except FileNotFoundError:
            return 0
        except OSError as why:
            self.ignored = why.strerror
        sequence = self._model.latest
        sequence.truncate(0)
        sequence.extend(self._tokens)
        sequence.n_ahead = max(0, len(self._tokens) - 1)
        sequence.saved_by, sequence.n_saved = self._mark, sequence.n_lasting
        return len(self._tokens)

    def save(self) -> None:
        """Bring the file up to the model's cache; raises OSError where the disk does not take it."""
        sequence = self._model.latest
        tokens = sequence.tokens[: sequence.n_kept]
        pairs = enumerate(zip(tokens, self._tokens, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(self._tokens)))
        same = min(same, sequence.n_saved if sequence.saved_by is self._mark else 0)
        if same == len(tokens) and self._end:
            return
        if self._end > 2 * len(tokens) * self._position_bytes + _WASTE:
            self._end = 0
        self._write(tokens, same if self._end else 0)
        self._mark = object()
        sequence.saved_by, sequence.n_saved = self._mark, sequence.n_lasting

    @property
    def _position_bytes(self) -> int:
        layers, _, row_bytes = self._model.latest.rows.shape
        return layers * row_bytes + 4

    def _write(self, tokens: list[int], start: int) -> None:
        new = np.array(tokens[start:], np.int32)  # int32 (tokens,)
        needed = len(new) * self._position_bytes
        if (free := shutil.disk_usage(self.path.parent).free) < 2 * needed:  # a full disk would lose words
            raise OSError(errno.ENOSPC, f"it takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of disk are free")
        begun, self._end = self._end, 0  # until all is written
        opened = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if begun else os.O_TRUNC), 0o600)
        with open(opened, "r+b", buffering=0) as file:
            if begun:
                file.truncate(begun)
                file.seek(begun)
            else:
                _put(file, json.dumps({"glmrun_cache": 1, "fingerprint": self._fingerprint}).encode() + b"\n")
            if len(new):
                crc = zlib.crc32(new.data)
                for rows in self._rows(start, len(new)):
                    crc = zlib.crc32(rows, crc)
                _put(file, _SEGMENT.pack(_WORD, start, len(new), crc))
                _put(file, new.data)
                for rows in self._rows(start, len(new)):
                    _put(file, rows)
            self._end = file.tell()
        self._tokens = tokens

    def _read(self, file: BinaryIO) -> None:
        line = file.readline(_MAX_HEADER)
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or header.get("glmrun_cache") != 1:
            self.ignored = "it is no saved cache"
            return
        if header.get("fingerprint") != self._fingerprint:
            self.ignored = "it was made with another model, cache type or version"
            return
        self._end = file.tell()
        while head := file.read(_SEGMENT.size):
            if not self._read_segment(file, head):
                self.ignored = self.ignored or f"it is damaged behind position {len(self._tokens):,}"
                return
            self._end = file.tell()

    def _read_segment(self, file: BinaryIO, head: bytes) -> bool:
        """Take one segment; False if it is not whole, and then nothing behind `position` counts any more."""
        if len(head) < _SEGMENT.size:
            return False
        word, start, n, crc = _SEGMENT.unpack(head)
        there = (os.fstat(file.fileno()).st_size - file.tell()) // self._position_bytes
        if word != _WORD or not (0 <= start <= len(self._tokens) and 0 < n <= there):
            return False
        if start + n > self._model.n_ctx:
            self.ignored = f"it reaches position {start + n:,}, this context holds {self._model.n_ctx:,}"
            return False
        tokens = np.empty(n, np.int32)  # int32 (tokens,)
        found = zlib.crc32(tokens.data) if _fill(file, tokens.data) else None
        if found is None or tokens.min() < 0 or tokens.max() >= self._model.config.vocab_size:
            return False
        del self._tokens[start:]  # from here on its rows are written over
        for rows in self._rows(start, n):
            if not _fill(file, rows):
                return False
            found = zlib.crc32(rows, found)
        if found != crc:
            return False
        self._tokens += tokens.tolist()
        return True

    def _rows(self, start: int, n: int) -> Iterator[memoryview]:
        """The rows of n positions in each layer, in place."""
        for layer in self._model.latest.rows:
            yield layer[start : start + n].data


def fingerprint(model: "Model") -> str:
    """What the cached rows depend on beside the tokens: the model's file, the type of the cache, the kernels."""
    layers, _, row_bytes = model.latest.rows.shape
    kernels = kernels_folder.name if kernels_folder else ""
    digest = hashlib.sha256(f"{kernels} {layers} {row_bytes} {model.weights.model['cache_type']}".encode())
    for mapping, watched in zip(model.file.mappings, model.file.watched, strict=True):
        status, begin = watched.status(), mapping.ctypes.data
        inside = (t.data.ctypes.data - begin for t in model.file.tensors.values())
        header = min((offset for offset in inside if 0 <= offset < len(mapping)), default=0)
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        digest.update(mapping[:header].data)
    return digest.hexdigest()


def _fill(file: BinaryIO, into: memoryview) -> bool:
    """Read exactly as many bytes as `into` has; False if the file ends before."""
    return file.readinto(into) == into.nbytes  # type: ignore[attr-defined]


def _put(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data).cast("B")
    while len(view):
        view = view[file.write(view) :]
