"""A reference's log-probabilities on disk, in the file that llama-perplexity --kl-divergence-base writes and reads.

    "_logits_" | n_ctx i32 | n_vocab i32 | n_chunk i32 | tokens i32 (n_chunk, n_ctx)
    | for each scored position: scale f32, least f32, codes u16 (n_vocab, one more if that is odd): log p = scale * code + least
    | for each scored position: -log p of the text's own token, f32; only glmrun writes this, and llama-perplexity stops before it

Log-probabilities more than 16 below the largest are stored as if they were 16 below: 16 bits then mean steps of 0.00024. The last
part keeps the perplexity of the reference exact where a text surprises it more than that.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glmrun.measure.windows import Windows, bos_of
from quant.errors import UserError
from quant.publish import Output, publish

if TYPE_CHECKING:
    from glmrun.engine.model import Model

_MAGIC = b"_logits_"
_RANGE = np.float32(16.0)
_STEPS = np.float32(65535.0)


def _row_shorts(n_vocab: int) -> int:
    """uint16s of one position: 4 for scale and least, then an even number of codes."""
    return 4 + n_vocab + n_vocab % 2


class ReferenceWriter:
    """Appends log-probabilities to a reference, in a writing() block."""

    def __init__(self, out: Output, path: Path, at: int, n_vocab: int) -> None:
        self._out, self._path, self._n_vocab = out, path, n_vocab
        self.at, self.nll = at, list[bytes]()

    def write(self, log_q: np.ndarray, nll: np.ndarray) -> None:
        """Append float32 log-probabilities (rows, n_vocab), and -log p of the tokens that came, (rows,)."""
        self.nll.append(nll.astype("<f4").tobytes())
        top, bottom = log_q.max(axis=1, keepdims=True), log_q.min(axis=1, keepdims=True)
        least = np.maximum(bottom, top - _RANGE)
        scale = (top - least) / _STEPS
        codes = np.rint((np.maximum(log_q, least) - least) / np.where(scale > 0, scale, 1))
        rows = np.zeros((len(log_q), _row_shorts(self._n_vocab)), "<u2")  # uint16 (rows, row)
        rows[:, :4] = np.hstack([scale, least]).astype("<f4").view("<u2")
        rows[:, 4 : 4 + self._n_vocab] = codes
        self._out.write(self._path, self.at, rows.tobytes())
        self.at += rows.nbytes


@contextmanager
def writing(
    path: str | os.PathLike, windows: Windows, n_vocab: int, sources: Iterable[Path] = ()
) -> Iterator[ReferenceWriter]:  # fmt: skip
    """A ReferenceWriter; the file appears under its name, in the place of another, when the block ends without an exception.

    sources   files that are read meanwhile: none of them may be replaced
    Raises UserError, before anything is computed where the folder is missing or the disk too small.
    """
    path, n_rows = Path(path), len(windows.ids) * windows.n_scored
    head = _MAGIC + struct.pack("<iii", windows.n_ctx, n_vocab, len(windows.ids)) + windows.ids.astype("<i4").tobytes()
    n_bytes = len(head) + n_rows * (2 * _row_shorts(n_vocab) + 4)
    with publish(path, {path: n_bytes}, True, sources) as out:
        out.write(path, 0, head)
        writer = ReferenceWriter(out, path, len(head), n_vocab)
        yield writer
        out.write(path, writer.at, b"".join(writer.nll))


class Reference:
    """A validated reference file: ids say what was read, read() gives what was predicted, in the same order.

    ids      int32 (windows, n_ctx)
    n_vocab  log-probabilities of each position
    """

    def __init__(self, path: str | os.PathLike) -> None:
        """Raises UserError for a file that is missing, no reference or not whole."""
        self.path = path
        if not Path(path).is_file():
            raise UserError(f"{path}: no such file; write a reference first", "missing", "reference")
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            start = file.read(20)
        if len(start) < 20 or start[:8] != _MAGIC:
            raise UserError(f"{path}: no reference of log-probabilities: it does not begin with {_MAGIC.decode()}")
        n_ctx, self.n_vocab, n_chunks = struct.unpack("<iii", start[8:])
        if n_ctx < 4 or self.n_vocab < 1 or n_chunks < 1:
            raise UserError(f"{path}: {n_chunks} windows of {n_ctx} tokens over a vocabulary of {self.n_vocab} are impossible")
        self._row = _row_shorts(self.n_vocab)
        n_rows = n_chunks * (n_ctx - 1 - n_ctx // 2)
        expected = 20 + 4 * n_chunks * n_ctx + 2 * n_rows * self._row
        if size not in (expected, expected + 4 * n_rows):
            raise UserError(f"{path}: {expected:,} bytes were expected for {n_chunks} windows, found {size:,}")
        self.ids = np.fromfile(path, "<i4", n_chunks * n_ctx, offset=20).reshape(n_chunks, n_ctx)
        self._rows = np.memmap(path, "<u2", "r", 20 + self.ids.nbytes, (n_rows, self._row))  # uint16 (positions, row)
        self._nll = np.fromfile(path, "<f4", offset=expected)  # float32 (positions,), or empty in a file of llama-perplexity
        self._at = 0

    def windows(self, model: "Model", n_chunks: int | None = None) -> Windows:
        """What a model has to read, at most n_chunks windows; raises UserError if its vocabulary is another one."""
        if self.n_vocab != model.config.vocab_size:
            found = f"made with a vocabulary of {self.n_vocab:,} tokens; this model has {model.config.vocab_size:,}"
            raise UserError(f"{self.path}: {found}")
        if self.ids.min() < 0 or self.ids.max() >= self.n_vocab:
            raise UserError(f"{self.path}: it holds tokens outside its vocabulary")
        return Windows(self.ids[:n_chunks], bos_of(model))

    def read(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of the next positions: (log-probabilities float32 (rows, n_vocab), -log p of the tokens that came float32 (rows,))."""
        rows = np.ascontiguousarray(self._rows[self._at : self._at + len(tokens)])
        nll = self._nll[self._at : self._at + len(tokens)]
        self._at += len(tokens)
        scale, least = np.split(rows[:, :4].copy().view("<f4"), 2, axis=1)
        if not all(np.isfinite(numbers).all() for numbers in (scale, least, nll)):
            raise UserError(f"{self.path}: it holds numbers that are not finite; write it again")
        log_p = rows[:, 4 : 4 + self.n_vocab] * scale.astype(np.float32) + least.astype(np.float32)
        return log_p, nll if len(self._nll) else -log_p[np.arange(len(tokens)), tokens]
