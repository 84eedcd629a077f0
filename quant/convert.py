"""Convert a checkpoint to a GGUF file: plan -> stream -> publish, yielding progress.

    checkpoint = Checkpoint.open("GLM-4.7-Flash")
    for progress in convert(plan(checkpoint, "Q4_K_M"), "GLM-4.7-Flash-Q4_K_M.gguf"):
        print(progress.bytes_done, "of", progress.n_bytes)

Weights pass through in chunks of whole rows whose borders do not depend on the number of threads, so neither do the bytes.
"""

import collections
import contextlib
import math
import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from quant.checkpoint import Checkpoint
from quant.config import Config
from quant.errors import UserError
from quant.formats import FORMATS
from quant.gguf_header import MetadataValue, TensorEntry, pack_header, padding
from quant.mapping import Piece, metadata, pieces
from quant.publish import publish
from quant.recipes import Recipe, recipe, tensor_formats
from quant.shards import SourceTensor

_CHUNK_WEIGHTS = 1 << 20  # 4 MiB of float32 at a time and thread: little memory, and still long enough to keep a thread busy
_F16_MAX = 65504.0


@dataclass(frozen=True)
class Row:
    """What happens to one tensor."""

    name: str
    shape: tuple[int, ...]  # row-major
    source: str  # the type in the checkpoint: BF16, F16 or F32 ("mixed" if its experts differ)
    format: str  # the type in the file
    n_bytes: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Plan:
    """What convert() will write."""

    checkpoint: Checkpoint
    config: Config  # of the file: without the next-token-prediction layer if that is left out
    recipe: Recipe
    rows: list[Row]
    metadata: dict[str, MetadataValue]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of tensor data."""
        return sum(row.n_bytes for row in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Average over all tensors."""
        return 8 * self.tensor_bytes / sum(math.prod(row.shape) for row in self.rows)

    @cached_property
    def header(self) -> bytes:
        """The front of the file, up to the first tensor's data."""
        return pack_header(self.metadata, [TensorEntry(r.name, r.shape, FORMATS[r.format].ggml_type, r.n_bytes) for r in self.rows])

    @property
    def file_bytes(self) -> int:
        """Size of the file."""
        return len(self.header) + sum(row.n_bytes + padding(row.n_bytes) for row in self.rows)


@dataclass(frozen=True)
class Progress:
    """How far convert() is; bytes count the file as written, header and padding included."""

    tensor: str
    tensors_done: int
    n_tensors: int
    bytes_done: int
    n_bytes: int


def plan(checkpoint: Checkpoint, quantization: str | Recipe, mtp: bool = True) -> Plan:
    """The plan to convert checkpoint: which tensor becomes what, and how many bytes that makes. Reads no weights.

    quantization   a recipe or its name in any case; raises UserError (usage) for an unknown one
    mtp            keep the next-token-prediction layer, if the checkpoint has one
    """
    chosen = recipe(quantization) if isinstance(quantization, str) else quantization
    config = checkpoint.config if mtp else replace(checkpoint.config, num_nextn_predict_layers=0)
    parts, rows = pieces(config, checkpoint.tensors), []
    for name, (shape, kind, n_bytes) in tensor_formats(chosen, config).items():
        sources = {checkpoint.tensors[piece.source].dtype for piece in parts[name]}
        rows.append(Row(name, shape, sources.pop() if len(sources) == 1 else "mixed", kind, n_bytes, parts[name]))
    described = metadata(
        config,
        checkpoint.vocabulary,
        name=checkpoint.name,
        file_type=chosen.file_type,
        n_weights=sum(math.prod(row.shape) for row in rows),
        license=checkpoint.license,
        chat_template=checkpoint.chat_template,
        sampling=checkpoint.generation_config,
        eos_token_ids=checkpoint.eos_token_ids,
        pad_token_id=checkpoint.pad_token_id,
    )
    return Plan(checkpoint, config, chosen, rows, described)


def convert(plan: Plan, output: str | Path, force: bool = False, n_threads: int | None = None) -> Generator[Progress, None, None]:
    """Write plan's file to output, yielding after every chunk; the file is there when the iteration has ended.

    force       replace an output that exists
    n_threads   threads that encode; None = all cores this process may use
    Closing the generator early (contextlib.closing) leaves nothing behind, and so does every error.
    Raises UserError when the output is taken or the disk too small, when a weight is not a finite number or does not fit its
    format, and when the checkpoint changes or cannot be read while it works.
    """
    n_threads = n_threads or _usable_cores()
    size, done = plan.file_bytes, len(plan.header)
    with ThreadPoolExecutor(n_threads) as pool, publish(Path(output), size, force, plan.checkpoint.files) as file:
        file.write(plan.header)
        with contextlib.closing(_chunks(plan, pool, n_threads)) as chunks:
            n_bad = n_done = 0
            for row, chunk, is_last in chunks:
                file.write(chunk.blocks.data)
                done += chunk.blocks.nbytes
                n_bad += chunk.n_bad
                if is_last:
                    if n_bad:
                        n = math.prod(row.shape)
                        raise UserError(f"{row.name}: {n_bad:,} of {n:,} weights are not finite numbers; the checkpoint is damaged")
                    file.write(bytes(padding(row.n_bytes)))
                    done += padding(row.n_bytes)
                    n_done += 1
                yield Progress(row.name, n_done, len(plan.rows), done, size)


@dataclass(frozen=True)
class _Chunk:
    blocks: np.ndarray  # uint8 (rows, bytes)
    n_bad: int  # NaN and infinite weights


def _chunks(plan: Plan, pool: ThreadPoolExecutor, n_threads: int) -> Generator[tuple[Row, _Chunk, bool], None, None]:
    """(tensor, chunk, is it the tensor's last) in the file's order, encoded by the pool.

    Only as many chunks are under way as keep the threads busy: they are the memory that a conversion takes.
    """
    ahead: collections.deque[tuple[Row, Future[_Chunk], bool]] = collections.deque()
    try:
        for row, piece, is_last in _cut(plan.rows):
            ahead.append((row, pool.submit(_encode, row, plan.checkpoint.tensors[piece.source], piece), is_last))
            if len(ahead) > n_threads:
                row, chunk, is_last = ahead.popleft()
                yield row, chunk.result(), is_last
        while ahead:
            row, chunk, is_last = ahead.popleft()
            yield row, chunk.result(), is_last
    finally:
        # An early end must not wait for work that nobody needs any more.
        for _, chunk, _ in ahead:
            chunk.cancel()


def _cut(rows: list[Row]) -> Iterator[tuple[Row, Piece, bool]]:
    """(tensor, piece of at most _CHUNK_WEIGHTS, is it the tensor's last); a piece that has to be turned stays whole."""
    for row in rows:
        for piece in row.pieces:
            step = piece.n_rows if piece.transposed else max(1, _CHUNK_WEIGHTS // piece.shape[-1])
            for first in range(0, piece.n_rows, step):
                is_last = piece is row.pieces[-1] and first + step >= piece.n_rows
                yield row, replace(piece, first_row=piece.first_row + first, n_rows=min(step, piece.n_rows - first)), is_last


def _encode(row: Row, tensor: SourceTensor, piece: Piece) -> _Chunk:
    """Read a piece and encode it. Runs in the pool."""
    kind = FORMATS[row.format]
    stored = tensor.read_rows(piece.first_row, piece.n_rows)  # (n, columns)
    if piece.transposed:
        stored = np.ascontiguousarray(stored.T)  # (columns, n)
    rows = FORMATS[tensor.dtype].decode(stored.view(np.uint8))  # float32 (rows, columns)
    n_bad = rows.size - int(np.count_nonzero(np.isfinite(rows)))
    if n_bad:  # nothing can be encoded; the bytes only keep the place until the tensor has been counted
        return _Chunk(np.zeros((len(rows), kind.row_bytes(rows.shape[1])), np.uint8), n_bad)
    if tensor.dtype == kind.name:
        return _Chunk(stored.view(np.uint8), 0)
    if kind.name not in ("F32", "BF16") and rows.size and (largest := float(np.abs(rows).max())) > _F16_MAX:
        raise UserError(
            f"{row.name} has a weight of {largest:.3g}, {kind.name} holds {_F16_MAX:.0f} at most; convert to BF16 or F32"
        )
    return _Chunk(kind.encode(rows), 0)


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # missing on macOS
    return len(affinity(0)) if affinity else os.cpu_count() or 1
