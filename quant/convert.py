"""Convert a model to a GGUF file: plan -> stream -> publish, yielding progress.

    for progress in convert(plan(Checkpoint.open("GLM-4.7-Flash"), "Q4_K_M"), "GLM-4.7-Flash-Q4_K_M.gguf"):
        print(progress.bytes_done, "of", progress.n_bytes)

Weights pass through in chunks of whole rows whose borders do not depend on the number of threads, so neither do the bytes.
"""

import collections
import contextlib
import hashlib
import math
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quant.errors import UserError
from quant.formats import FORMATS, WRITTEN
from quant.gguf_header import padding
from quant.mapping import Piece
from quant.plan import Plan, Row, plan
from quant.publish import Output, publish
from quant.shards import SourceTensor
from quant.system import cores

__all__ = ["Done", "Plan", "Progress", "Row", "convert", "plan"]

_CHUNK_WEIGHTS = 1 << 20  # 4 MiB of float32 at a time and thread: little memory, and still long enough to keep a thread busy
_AHEAD_BYTES = 64 << 20  # the system is asked to read so far ahead of the encoders
_SAMPLE = 128  # the error of large tensors is measured on one row of so many: it shows how good the search is, and costs time
_F16_MAX = 65504.0


@dataclass(frozen=True)
class Done:
    """What is known of a finished tensor; the journal keeps it."""

    checksum: str  # SHA-256 of its bytes in the file
    squared_error: float  # sum((weight - stored)**2) and sum(weight**2), over the rows that were measured
    squared_weight: float

    @property
    def relative_error(self) -> float:
        """Squared error relative to the squared weights."""
        return self.squared_error / self.squared_weight if self.squared_weight else 0.0


@dataclass(frozen=True)
class Progress:
    """How far convert() is; bytes count the files as written, headers and padding included."""

    tensor: str
    tensors_done: int
    n_tensors: int
    bytes_done: int
    n_bytes: int
    done: Done | None = None  # of `tensor`, when it has just been finished (also by an earlier run)
    note: str | None = None  # a line the user should see
    resumed: bool = False  # an earlier run wrote these bytes


def convert(
    plan: Plan,
    output: str | Path,
    force: bool = False,
    n_threads: int | None = None,
    restart: bool = False,
    resumable: bool = True,
) -> Generator[Progress, None, None]:
    """Write plan's file to output, yielding after every chunk; the file is there when the iteration has ended.

    force       replace an output that exists
    n_threads   threads that encode; None = all cores this process may use
    restart     discard what an interrupted conversion to the same output left
    resumable   leave the finished part behind when interrupted; the same call then continues from there
    Raises UserError when the output is taken or the disk too small, when a weight is not a finite number or does not fit its
    format, and when the source changes; Interrupted (a UserError) when source or output cannot be read or written.
    """
    output, n_threads = Path(output), n_threads or cores()
    files = {part.path(output): part for part in plan.parts}
    sizes = {path: part.n_bytes for path, part in files.items()}
    identity = plan.identity() if resumable else None
    with publish(output, sizes, force, plan.files, identity, restart) as out:
        pool = ThreadPoolExecutor(n_threads)
        try:
            yield from _Conversion(plan, output, out, pool, n_threads).run()
        finally:
            # What is under way is small, or Numba compiling: nobody needs it, and an interrupt must not wait for it.
            pool.shutdown(wait=False, cancel_futures=True)


class _Place(NamedTuple):
    path: Path
    offset: int


class _Conversion:
    """One run of convert(): what its steps share."""

    def __init__(self, plan: Plan, output: Path, out: Output, pool: ThreadPoolExecutor, n_threads: int) -> None:
        self.plan, self.output, self.out, self.pool, self.n_threads = plan, output, out, pool, n_threads
        self.n_bytes = plan.file_bytes
        self.bytes_done = sum(part.header_bytes for part in plan.parts)
        self.n_done = 0
        self.places: list[_Place] = []
        for part in plan.parts:
            offset = part.header_bytes
            for row in part.rows:
                self.places.append(_Place(part.path(output), offset))
                offset += row.n_bytes + padding(row.n_bytes)

    def run(self) -> Iterator[Progress]:
        """All steps; the files are whole when it ends."""
        rows, out = self.plan.rows, self.out
        if out.note:
            yield self._progress("", note=out.note)
        if out.complete or out.records:
            yield self._progress("", note=f"continuing after {len(out.records):,} of {len(rows):,} tensors")
        yield from self._check_finished()
        if out.complete:
            return
        with contextlib.closing(self._chunks(rows[self.n_done :])) as chunks:
            yield from self._write(chunks)
        records = iter(out.records)
        for part in self.plan.parts:
            out.write(part.path(self.output), 0, part.header([next(records)["checksum"] for _ in part.rows]))

    def _progress(self, tensor: str, done: Done | None = None, note: str | None = None, resumed: bool = False) -> Progress:
        return Progress(tensor, self.n_done, len(self.plan.rows), self.bytes_done, self.n_bytes, done, note, resumed)

    def _check_finished(self) -> Iterator[Progress]:
        """Compare what an earlier run finished with its checksums; the first torn tensor is where to continue."""
        rows, out = self.plan.rows, self.out
        n = len(out.records)
        if out.complete:  # all was durable before it got its name
            sums: Iterable[str] = [record["checksum"] for record in out.records]
        else:
            sums = self.pool.map(self._checksum, range(n))
        for i, found in zip(range(n), sums, strict=True):
            if found != out.records[i]["checksum"]:
                out.forget(i)
                yield self._progress(rows[i].name, note=f"{rows[i].name} is damaged in the partial file; continuing from there")
                return
            self.n_done += 1
            self.bytes_done += rows[i].n_bytes + padding(rows[i].n_bytes)
            yield self._progress(rows[i].name, Done(**out.records[i]), resumed=True)

    def _checksum(self, i: int) -> str:
        """The checksum of tensor i as it is on the disk. Runs in the pool."""
        digest, place, left = hashlib.sha256(), self.places[i], self.plan.rows[i].n_bytes
        while left:
            data = self.out.read(place.path, place.offset + self.plan.rows[i].n_bytes - left, min(left, 4 << 20))
            digest.update(data)
            left -= len(data)
            if not data:
                break
        return digest.hexdigest()

    def _write(self, chunks: "Iterator[tuple[Row, _Chunk, bool]]") -> Iterator[Progress]:
        """Chunks to their places; a tensor is finished with its last one."""
        digest, at, n_bad, error, weight = hashlib.sha256(), 0, 0, 0.0, 0.0
        for row, chunk, is_last in chunks:
            place = self.places[self.n_done]
            self.out.write(place.path, place.offset + at, chunk.blocks.data)
            digest.update(chunk.blocks.data)
            at, n_bad = at + chunk.blocks.nbytes, n_bad + chunk.n_bad
            error, weight = error + chunk.squared_error, weight + chunk.squared_weight
            self.bytes_done += chunk.blocks.nbytes
            done = None
            if is_last:
                if n_bad:
                    n = row.n_weights
                    raise UserError(f"{row.name}: {n_bad:,} of {n:,} weights are not finite numbers; the checkpoint is damaged")
                done = Done(digest.hexdigest(), error, weight)
                self.out.finish(asdict(done))
                self.n_done += 1
                self.bytes_done += padding(row.n_bytes)
                digest, at, error, weight = hashlib.sha256(), 0, 0.0, 0.0
            yield self._progress(row.name, done)

    def _chunks(self, rows: list[Row]) -> "Generator[tuple[Row, _Chunk, bool], None, None]":
        """(tensor, chunk, is it the tensor's last) in the file's order, encoded by the pool.

        Only as many chunks are under way as keep the threads busy: they are the memory that a conversion takes.
        """
        ahead: collections.deque[tuple[Row, Future[_Chunk], bool]] = collections.deque()
        weights: np.ndarray | None = None  # (matrices, columns) of the tensor that is being cut
        for cut in _read_ahead(_cut(rows), self.plan.source.tensors):
            if cut.is_first:
                weights = self.plan.weights(cut.row)
            of_matrix = None if weights is None else weights[cut.matrix]  # (columns,)
            tensor = self.plan.source.tensors[cut.piece.source]
            ahead.append((cut.row, self.pool.submit(_encode, cut.row, tensor, cut.piece, of_matrix), cut.is_last))
            if len(ahead) > 4 * self.n_threads:
                row, chunk, is_last = ahead.popleft()
                yield row, chunk.result(), is_last
        while ahead:
            row, chunk, is_last = ahead.popleft()
            yield row, chunk.result(), is_last


class _Cut(NamedTuple):
    """At most _CHUNK_WEIGHTS of a tensor."""

    row: Row
    piece: Piece
    matrix: int  # of a stack, the one whose rows these are
    is_first: bool
    is_last: bool


def _cut(rows: list[Row]) -> Iterator[_Cut]:
    """All tensors in cuts; none goes beyond the end of a matrix, and a piece that has to be turned stays whole."""
    for row in rows:
        matrix_rows, at = row.shape[-2] if len(row.shape) > 1 else 1, 0
        for piece in row.pieces:
            step, first = max(1, _CHUNK_WEIGHTS // piece.shape[-1]), 0
            while first < piece.n_rows:
                n = piece.n_rows if piece.transposed else min(step, piece.n_rows - first, matrix_rows - at % matrix_rows)
                is_last = piece is row.pieces[-1] and first + n >= piece.n_rows
                part = replace(piece, first_row=piece.first_row + first, n_rows=n)
                yield _Cut(row, part, at // matrix_rows, at == 0, is_last)
                first += n
                at += piece.shape[-1] if piece.transposed else n


def _read_ahead(cuts: Iterator[_Cut], tensors: Mapping[str, SourceTensor]) -> Iterator[_Cut]:
    """The same cuts, after asking the system to read the next ones ahead, so that no encoder waits for the disk."""
    waiting: collections.deque[tuple[_Cut, int]] = collections.deque()
    asked = 0
    for cut in cuts:
        n = tensors[cut.piece.source].will_need(cut.piece.first_row, cut.piece.n_rows)
        waiting.append((cut, n))
        asked += n
        while asked > _AHEAD_BYTES:
            cut, n = waiting.popleft()
            asked -= n
            yield cut
    for cut, _ in waiting:
        yield cut


class _Chunk(NamedTuple):
    blocks: np.ndarray  # uint8 (rows, bytes)
    n_bad: int = 0  # NaN and infinite weights
    squared_error: float = 0.0
    squared_weight: float = 0.0


def _encode(row: Row, tensor: SourceTensor, piece: Piece, weights: np.ndarray | None = None) -> _Chunk:
    """Read a piece and encode it, weighing errors by the importance of the columns if it is known. Runs in the pool."""
    kind, source = WRITTEN[row.format], FORMATS[tensor.dtype]
    stays = tensor.dtype == kind.name and not piece.transposed
    stored = tensor.read_rows(piece.first_row, piece.n_rows, None if stays else _scratch.of(piece.n_rows * tensor.row_bytes))
    rows = source.decode(stored)  # float32 (rows, columns)
    if piece.transposed:
        rows = np.ascontiguousarray(rows.T)  # float32 (columns, rows)
    largest = _largest(rows)
    if not largest < math.inf:  # nothing can be encoded; the bytes only keep the place until the tensor has been counted
        n_bad = rows.size - int(np.count_nonzero(np.isfinite(rows)))
        return _Chunk(np.zeros((len(rows), kind.row_bytes(rows.shape[1])), np.uint8), n_bad)
    if stays:
        return _Chunk(stored)
    if kind.name not in ("F32", "BF16") and largest > _F16_MAX:
        raise UserError(
            f"{row.name} has a weight of {largest:.3g}, {kind.name} holds {_F16_MAX:.0f} at most; convert to BF16 or F32"
        )
    blocks = kind.encode(rows, weights)
    sample = slice(None, None, _SAMPLE if row.n_weights > _CHUNK_WEIGHTS else 1)
    measured = rows[sample].astype(np.float64)  # (rows / _SAMPLE, columns)
    difference = measured - kind.decode(blocks[sample])
    # Not a dot product: the library behind it would start threads of its own.
    return _Chunk(blocks, 0, float(np.square(difference).sum()), float(np.square(measured).sum()))


class _Scratch(threading.local):
    """Bytes that a thread reads into again and again: fresh pages cost as much as reading."""

    _bytes = np.empty(0, np.uint8)

    def of(self, n_bytes: int) -> np.ndarray:
        """uint8 (n_bytes,), what it holds is lost with the next call."""
        if self._bytes.size < n_bytes:
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes[:n_bytes]


_scratch = _Scratch()


def _largest(rows: np.ndarray) -> float:
    """The largest magnitude in rows, NaN and infinities included: magnitudes compare like the integers of the same bits."""
    from quant.blocks.floats import largest_bits

    x = float(np.int32(largest_bits(rows.view(np.int32).reshape(-1))).view(np.float32))
    return math.inf if math.isnan(x) else x
