"""Find weights that are not finite numbers: one of them turns every later number into NaN, and a text into nonsense.

A code is always finite, so only the float16 numbers of the blocks are looked at. That still reads every cache line of the file,
a second for 18 GB; it goes on beside the start and the prompt, and a file that passed is remembered.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable

import numpy as np

from glmrun.gguf.file import GGUFFile, TensorInfo
from glmrun.kernels.checks import first_with_all
from glmrun.machine import cache_folder
from quant.errors import UserError
from quant.formats import FORMATS, Format

_CHUNK = 1 << 24  # words that are looked at in one call: an answer to stop()
_REMEMBERED_FROM = 1 << 28  # bytes: what is smaller is scanned faster than looked up
# A number is infinite or none at all if its exponent bits are all set: those of a float16 in the lower, the upper half of a word.
_LOW, _HIGH = 0x7C00, 0x7C000000
# Of what are no float16 numbers, or are side by side: (distance of the words, masks of one or two exponents).
_WORDS = {
    "F32": (4, 0x7F800000, 0x7F800000),
    "F16": (4, _LOW, _HIGH),
    "BF16": (4, 0x7F80, 0x7F800000),
    "MXFP4": (17, 0xC0, 0xA0),  # a scale of 2**32 and more, which no weight has: its exponents know no infinity
}


def _words(form: Format) -> tuple[int, int, int, int]:
    """Where all numbers of a block stand in one word: (distance of the words, byte of the word in the block, masks)."""
    if form.name in _WORDS:
        stride, *masks = _WORDS[form.name]
        return stride, 0, masks[0], masks[1]
    if len(form.halves) == 2:
        return form.block_bytes, form.halves[0], _LOW, _HIGH
    if form.halves[0] + 4 > form.block_bytes:  # the block's end
        return form.block_bytes, form.halves[0] - 2, _HIGH, _HIGH
    return form.block_bytes, form.halves[0], _LOW, _LOW


def first_not_finite(tensor: TensorInfo, stopped: Callable[[], bool] = lambda: False) -> int | None:
    """The byte of a tensor's data near which the first number stands that is infinite or none at all."""
    stack = tensor.matrices
    for i, matrix in enumerate(stack):
        found = None if stopped() else _first_of_matrix(matrix, FORMATS[tensor.format], stopped)
        if found is not None:
            return i * stack.strides[0] + found
    return None


def _first_of_matrix(data: np.ndarray, form: Format, stopped: Callable[[], bool]) -> int | None:
    """The same for one matrix, uint8 (n_bytes,)."""
    stride, at, mask, other = _words(form)
    address, n = data.ctypes.data + at, len(data) // stride
    for start in range(0, n, _CHUNK):
        found = first_with_all(address + start * stride, min(_CHUNK, n - start), stride, mask, other)
        if found >= 0 or stopped():
            return (start + found) * stride if found >= 0 else None
    if len(data) % stride:  # an odd number of 2-byte values
        last = data[-2:].view("<u2")[0]
        return len(data) - 2 if last & mask == mask else None
    return None


def check_finite(file: GGUFFile, tensor: TensorInfo) -> None:
    """Raise UserError if a weight of the tensor is not finite."""
    found = first_not_finite(tensor)
    if found is not None:
        raise UserError(_said(file, tensor, found))


def _said(file: GGUFFile, tensor: TensorInfo, found: int) -> str:
    where = f"{tensor.name} at byte {tensor.offset + found:,}"
    return f"{file.path}: {where}: a weight that is not a finite number; fetch the file again"


class FiniteCheck:
    """A thread that looks at all tensors of a model."""

    def __init__(self, file: GGUFFile, tensors: Iterable[TensorInfo], whole: bool = True) -> None:
        """tensors   as the kernels read them

        whole     False leaves out the experts: a file that does not fit into the memory would be read from the disk for them
        """
        self._file = file
        chosen = (tensor for tensor in tensors if whole or "_exps." not in tensor.name)
        self._tensors = sorted(chosen, key=lambda tensor: tensor.data.ctypes.data)
        self._error: str | None = None
        self._ended, self._stop = threading.Event(), False
        self._passed = cache_folder() / "checked" / _identity(file)
        remember = whole and file.size >= _REMEMBERED_FROM
        if remember and self._passed.exists():
            self._ended.set()
            return
        threading.Thread(target=self._run, args=(remember,), daemon=True, name="finite").start()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end, at most so long; whether it has come. Raises UserError if a weight is not finite."""
        ended = self._ended.wait(seconds)
        if self._error:
            raise UserError(self._error)
        return ended

    def stop(self) -> None:
        """Look no further."""
        self._stop = True

    def _run(self, remember: bool) -> None:
        try:
            for tensor in self._tensors:
                found = first_not_finite(tensor, lambda: self._stop)
                if found is not None:
                    self._error = _said(self._file, tensor, found)
                    return
            if remember and not self._stop:
                self._remember()
        finally:
            self._ended.set()

    def _remember(self) -> None:
        try:
            self._passed.parent.mkdir(parents=True, exist_ok=True)
            self._passed.touch()
        except OSError:
            pass  # it is looked at again the next time


def _identity(file: GGUFFile) -> str:
    """A name for these very bytes, as far as the file system tells."""
    facts = [(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns) for status in (w.status() for w in file.watched)]
    return hashlib.sha256(repr(("1", *facts)).encode()).hexdigest()[:32]
