"""A conversation's cache on disk, so that resuming it reads a file instead of the whole prompt again.

    one line of JSON: version, fingerprint | segments: SEGMENT, position, tokens, CRC-32 | int32 (tokens,) | rows, layer by layer

The checksum begins with the position: rows that stood elsewhere would be rows of other angles.
After each answer only the new rows are appended, PIECE positions at a time. A segment takes the place of all that came before from
its position on, so taking back a message costs nothing. Its head is written last: what a killed process has not finished is no
segment. Whatever does not fit (another model or type of cache, other kernels, damage) is left aside: the prompt is read again,
which is slower and never wrong. Nothing is synced, since losing it loses no word.
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

from glmrun.engine.sequence import Sequence, common_prefix
from glmrun.kernels.compiled.cache import folder as kernels_folder

if TYPE_CHECKING:
    from glmrun.engine.model import Model

_SEGMENT = struct.Struct("<8sqqI")  # the word, position, tokens, CRC-32 of what follows
_WORD = b"SEGMENT\n"
_MAX_HEADER = 4096  # bytes
_WASTE = 256 << 20  # bytes of segments that were taken back, before the file is written anew
_ALL = 1 << 62
PIECE = 512  # positions of a segment


class SavedCache:
    """The file of one conversation, for one open model.

    path      where it stands; it need not exist
    tokens    that the file holds
    ignored   after load() or look(): why the file or its end was left aside, or None
    """

    def __init__(self, path: Path, model: "Model", fingerprint_: str | None = None) -> None:
        """fingerprint_   the model's, if it is known already"""
        self.path = path
        self.tokens: list[int] = []
        self.ignored: str | None = None
        self._model, self._fingerprint = model, fingerprint_ or fingerprint(model)
        self._mark = object()  # of what the file holds now: a sequence that has it knows how many of its rows the file has
        self._end = 0  # byte behind the last good segment; 0: no file of ours

    def look(self) -> None:
        """Find out which tokens the file holds; its rows are not looked at."""
        self._open(None, _ALL)

    def load(self, sequence: Sequence | None = None, n_wanted: int = _ALL) -> int:
        """Fill a sequence that nobody uses, by default the model's latest, from the file; returns the positions it holds then.

        n_wanted   at least so many, if the file has them; then the rest of it may be left out
        """
        sequence = self._model.latest if sequence is None else sequence
        sequence.truncate(0)
        self._open(sequence, n_wanted)
        sequence.extend(self.tokens)
        sequence.n_ahead = max(0, len(self.tokens) - 1)
        sequence.saved_by, sequence.n_saved = self._mark, sequence.n_lasting
        return len(self.tokens)

    def save(self, sequence: Sequence | None = None) -> bool:
        """Bring the file up to a sequence, by default the model's latest; raises OSError where the disk does not take it.

        Another thread may take the sequence meanwhile: False then, and the file ends before what was changed.
        """
        sequence = self._model.latest if sequence is None else sequence
        known = sequence.n_saved if sequence.saved_by is self._mark else 0
        self._mark = sequence.saved_by = object()
        sequence.n_saved = _ALL  # before the tokens are looked at: if they are changed meanwhile, truncate() lowers it
        tokens = sequence.tokens[: sequence.n_lasting]
        same = min(common_prefix(tokens, self.tokens), known)
        if self._end > self._size() or self._end > 2 * len(tokens) * self._position_bytes + _WASTE:
            self._end = 0
        if same == len(tokens) and self._end:
            return True
        return self._write(sequence, tokens, same if self._end else 0)

    def holds(self, sequence: Sequence) -> bool:
        """Whether the file was written from this sequence or filled it, so that what is new can be appended."""
        return sequence.saved_by is self._mark

    def needs(self, sequence: Sequence) -> int:
        """Bytes that save() will add at most."""
        known = min(sequence.n_saved, len(self.tokens)) if self.holds(sequence) else 0
        return (len(sequence.tokens) - known) * self._position_bytes + _MAX_HEADER

    @property
    def _position_bytes(self) -> int:
        n_layers, _, row_bytes, *_ = self._model.weights.cache_shape(self._model.n_ctx)
        return n_layers * row_bytes + 4

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _open(self, sequence: Sequence | None, n_wanted: int) -> None:
        self.tokens, self._end, self.ignored = [], 0, None
        try:
            with open(self.path, "rb") as file:
                self._read(file, sequence, n_wanted)
        except FileNotFoundError:
            return
        except OSError as why:
            self.ignored = why.strerror

    def _write(self, sequence: Sequence, tokens: list[int], start: int) -> bool:
        needed = (len(tokens) - start) * self._position_bytes
        if (free := shutil.disk_usage(self.path.parent).free) < 2 * needed:  # a full disk would lose words
            raise OSError(errno.ENOSPC, f"it takes {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB of disk are free")
        opened = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if self._end else os.O_TRUNC), 0o600)
        with open(opened, "r+b", buffering=0) as file:
            if self._end:
                file.truncate(self._end)
                file.seek(self._end)
            else:
                _put(file, json.dumps({"glmrun_cache": 1, "fingerprint": self._fingerprint}).encode() + b"\n")
                self._end = file.tell()
            del self.tokens[start:]
            for first in range(start, len(tokens), PIECE):
                end = min(first + PIECE, len(tokens))
                if not self._write_segment(file, sequence, tokens[first:end], first):
                    file.truncate(self._end)
                    return False
                self.tokens += tokens[first:end]
                self._end = file.tell()
        return True

    def _write_segment(self, file: BinaryIO, sequence: Sequence, tokens: list[int], start: int) -> bool:
        """Append one segment; False if the sequence was changed meanwhile, and then it has no head."""
        begin, new = file.tell(), np.array(tokens, np.int32)  # int32 (tokens,)
        crc = zlib.crc32(new.data, start)
        for rows in _rows(sequence, start, len(new)):
            crc = zlib.crc32(rows, crc)
        _put(file, bytes(_SEGMENT.size))
        _put(file, new.data)
        for rows in _rows(sequence, start, len(new)):
            _put(file, rows)
        if sequence.saved_by is not self._mark or sequence.n_saved < start + len(new):
            return False
        end = file.tell()
        file.seek(begin)
        _put(file, _SEGMENT.pack(_WORD, start, len(new), crc))
        file.seek(end)
        return True

    def _read(self, file: BinaryIO, sequence: Sequence | None, n_wanted: int) -> None:
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
            if not self._read_segment(file, head, sequence, n_wanted):
                self.ignored = self.ignored or f"it is damaged behind position {len(self.tokens):,}"
                return
            self._end = file.tell()

    def _read_segment(self, file: BinaryIO, head: bytes, sequence: Sequence | None, n_wanted: int) -> bool:
        """Take one segment; False if it is not whole, and then nothing behind `position` counts any more."""
        if len(head) < _SEGMENT.size:
            return False
        word, start, n, crc = _SEGMENT.unpack(head)
        there = (os.fstat(file.fileno()).st_size - file.tell()) // self._position_bytes
        if word != _WORD or not (start >= 0 and 0 < n <= there):
            return False
        if start >= n_wanted:
            file.seek(n * self._position_bytes, os.SEEK_CUR)
            return True
        if start > len(self.tokens):
            return False
        if start + n > self._model.n_ctx:
            self.ignored = f"it reaches position {start + n:,}, this context holds {self._model.n_ctx:,}"
            return False
        tokens = np.empty(n, np.int32)  # int32 (tokens,)
        found = zlib.crc32(tokens.data, start) if _fill(file, tokens.data) else None
        if found is None or tokens.min() < 0 or tokens.max() >= self._model.config.vocab_size:
            return False
        del self.tokens[start:]  # from here on its rows are written over
        if sequence is None:
            file.seek(n * (self._position_bytes - 4), os.SEEK_CUR)
        for rows in () if sequence is None else _rows(sequence, start, n):
            if not _fill(file, rows):
                return False
            found = zlib.crc32(rows, found)
        if sequence is not None and found != crc:
            return False
        self.tokens += tokens.tolist()
        return True


def _rows(sequence: Sequence, start: int, n: int) -> Iterator[memoryview]:
    """The rows of n positions in each layer, in place."""
    for layer in sequence.rows:
        yield layer[start : start + n].data


def fingerprint(model: "Model") -> str:
    """What the cached rows depend on beside the tokens: the model's file, the type of the cache, the kernels."""
    layers, _, row_bytes, *_ = model.weights.cache_shape(model.n_ctx)
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
