"""Logits of the likeliest tokens, exactly: the others have read the first int8 term of x alone.

A token far below the likeliest one is hardly ever drawn, and its logit's error of some thousandths of the logits' deviation changes
nothing about that. So all rows of the output matrix meet the first term, and the second is read by a few hundred of them.
"""

from numba import float32, int64, types

from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.formats.dispatch import dot_rows
from glmrun.kernels.layout import model_record, step_record, worker_record
from glmrun.kernels.rows import reads_codes
from glmrun.kernels.simd.arithmetic import largest, maximum
from glmrun.kernels.simd.memory import load_f32, load_f32x16, load_i64, store_f32
from glmrun.kernels.team import first_piece, leave, next_piece, wait

BLOCK = 64  # tokens whose largest logit is looked at first
BLOCKS = 256  # so many blocks have an exact logit at least, however far below the largest: a sampler may forbid some of them
HALVINGS = 24  # of the distance between two blocks, until the threshold is known well enough


@kernel(types.void(int64, int64, int64))
def _block_maxima(logits, n, out):
    """The largest of each BLOCK of float32 (n,) logits; float32 (n / BLOCK, rounded up)."""
    for b in range((n + BLOCK - 1) // BLOCK):
        first = b * BLOCK
        if first + BLOCK <= n:
            v = maximum(load_f32x16(logits + first * 4), load_f32x16(logits + first * 4 + 64))
            v = maximum(v, maximum(load_f32x16(logits + first * 4 + 128), load_f32x16(logits + first * 4 + 192)))
            store_f32(out + b * 4, largest(v))
            continue
        top = load_f32(logits + first * 4)
        for i in range(first + 1, n):
            top = max(top, load_f32(logits + i * 4))
        store_f32(out + b * 4, top)


@kernel(float32(int64, int64))
def _threshold(maxima, n):
    """The largest number, so far as HALVINGS tell, that at least BLOCKS of n maxima reach; the smallest of them if n is less."""
    low = top = load_f32(maxima)
    for b in range(1, n):
        low = min(low, load_f32(maxima + b * 4))
        top = max(top, load_f32(maxima + b * 4))
    distance = top - low
    for _ in range(HALVINGS):
        distance *= float32(0.5)
        reached = 0
        for b in range(n):
            if load_f32(maxima + b * 4) >= low + distance:
                reached += 1
        if reached >= BLOCKS:
            low += distance
    return low


@kernel(types.void(model_record, step_record, int64, int64, worker_record))
def _sharpen(m, s, i, x, w):
    """Add to the i-th row of logits what the output matrix makes of the second term x, where the logit is among the largest."""
    n, logits, maxima = m.output.rows, s.logits + i * s.logits_stride, s.maxima + w.thread * s.maxima_stride
    _block_maxima(logits, n, maxima)
    n_blocks = (n + BLOCK - 1) // BLOCK
    threshold = _threshold(maxima, n_blocks)
    for b in range(n_blocks):
        if load_f32(maxima + b * 4) < threshold:
            continue
        for r in range(b * BLOCK, min(n, (b + 1) * BLOCK)):
            first = load_f32(logits + r * 4)
            if first >= threshold:
                row = m.output.address + r * m.output.row_bytes
                dot_rows(m.output.format, row, m.output.row_bytes, 1, m.output.columns, x, w.scratch)
                store_f32(logits + r * 4, first + load_f32(w.scratch))


@kernel(types.void(model_record, step_record, int64, worker_record))
def sharpen_likeliest(m, s, first_x, w):
    """Wait for the logits; make the largest of those exact that have read first terms only. normed[first_x:] is what they read.

    Who reads the logits has to wait.
    """
    wait(w)
    if not reads_codes(m.output.format):
        return
    i = first_piece(w)
    while i < s.logits_few:
        if load_i64(s.exact + i * 8) == 0:
            _sharpen(m, s, i, s.normed.rest + (first_x + i) * s.normed.codes_stride, w)
        i = next_piece(w)
    leave(w, s.logits_few)
