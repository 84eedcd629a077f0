"""Attention's kernels without a model: int8 against NumPy rounding the same way, float32 against NumPy, one thread against two."""

from collections.abc import Sequence

import gguf
import numpy as np
import pytest
from naive import attend_rounded
from numba import int64
from support.from_python import from_python

from glmrun.kernels.activations import FEW
from glmrun.kernels.attention import attend as attention
from glmrun.kernels.attention import cached_row, columns
from glmrun.kernels.attention import exact as attention_float
from glmrun.kernels.attention.cached_row import row_bytes
from glmrun.kernels.attention.columns import QUERIES
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import (
    F16,
    F32,
    LAYER,
    MODEL,
    Q8_0,
    RUN,
    STEP,
    WORKER,
    layer_record,
    model_record,
    step_record,
    worker_array,
)
from glmrun.kernels.team import Team

LATENT, ROW = 128, 192
store_cached = from_python(cached_row.store_cached)
Q8 = gguf.GGMLQuantizationType.Q8_0
RUNS_AS_INT8, RUNS_EXACTLY = range(2)


@kernel(int64(model_record, layer_record, step_record, worker_array, int64, int64, int64, int64), entry=True)
def _attend(m, layer, s, workers, way, flags, thread, n_threads):
    w = workers[thread]
    w.flags, w.thread, w.n_threads, w.ticket, w.passed = flags, thread, n_threads, -1, 0
    if way == RUNS_EXACTLY:
        attention_float.attend(m, layer, s, w)
    else:
        columns.round_cache(m, layer, s, w)
        attention.attend(m, layer, s, w)
    return 0


class Attention:
    """One layer's cache, queries and buffers, for heads heads and up to n_ctx positions."""

    def __init__(self, heads: int, n_ctx: int, kind: int = F16, latent: int = LATENT, row: int = ROW, n_threads: int = 2) -> None:
        self.memory: list[np.ndarray] = []
        self.model, self.step = m, s = np.zeros(1, MODEL)[0], np.zeros(1, STEP)[0]
        m["num_attention_heads"], m["latent"], m["row"], m["kv_lora_rank"] = heads, latent, row, latent
        m["float_attention"] = kind == F32
        m["cache_type"], m["row_bytes"], m["softmax_scale"] = kind, row_bytes(row, kind), 0.1
        self.heads, self.n_threads = heads, n_threads
        cache = self.room((n_ctx, int(m["row_bytes"])), np.uint8)  # uint8 (n_ctx, row_bytes)
        self.stored = cache
        if kind != Q8_0:
            self.cache = cache.view(np.float32 if kind == F32 else np.float16)  # (n_ctx, row)
        self.query = self.room((n_ctx * heads, row))  # float32 (n_ctx * heads, row)
        self.context = self.room((n_ctx * heads, latent + 16))  # float32
        s["query"] = self.query.ctypes.data
        s["context"]["floats"], s["context"]["floats_stride"] = self.context.ctypes.data, self.context.strides[0]
        queries = max(heads * (FEW - 1), QUERIES)
        partial = max(
            attention.SEGMENTS * -(-queries // QUERIES) * attention.result_bytes(m),
            -(-n_ctx // attention_float.SEGMENT) * queries * (latent + 16) * 4,
        )
        self.run_record = np.zeros(1, RUN)  # RUN (1,)
        self.run_of = np.zeros(n_ctx, np.int64)  # int64 (n_ctx,)
        s["runs"], s["run"], s["n_runs"] = self.run_record.ctypes.data, self.run_of.ctypes.data, 1
        run = self.run_record[0]
        run["cache"], run["partial"] = cache.ctypes.data, self.room((partial,), np.uint8).ctypes.data
        self.rounded = np.zeros(1, np.int64)  # int64 (layers,)
        run["columns"] = self.room((-(-n_ctx // columns.BLOCK) * columns.block_bytes(m),), np.uint8).ctypes.data
        run["tail"], run["rounded"] = self.room((columns.block_bytes(m),), np.uint8).ctypes.data, self.rounded.ctypes.data
        self.layer, self.workers = np.zeros(1, LAYER)[0], np.zeros(n_threads, WORKER)
        for worker in self.workers:
            worker["attention"] = self.room((attention.scratch_bytes(m),), np.uint8).ctypes.data

    def room(self, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
        self.memory.append(np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 64, np.uint8))
        start = -self.memory[-1].ctypes.data % 64
        return self.memory[-1][start : start + int(np.prod(shape)) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)

    def run(self, n_tokens: int, position: int, way: int = RUNS_AS_INT8, rounded: int = 0) -> np.ndarray:
        """float32 (n_tokens * heads, latent): one run of a step, all threads together; columns of `rounded` positions are kept."""
        s, run = self.step, self.run_record[0]
        s["n_tokens"], s["n_few"] = n_tokens, n_tokens if n_tokens < FEW else 0
        run["n_tokens"], run["position"] = n_tokens, position
        np.minimum(self.rounded, rounded // columns.BLOCK * columns.BLOCK, out=self.rounded)
        Team(self.n_threads).run(_attend, self.model, self.layer, s, self.workers, way)
        return self.context[: n_tokens * self.heads, : int(self.model["latent"])].copy()

    def run_float(self, n_tokens: int, position: int) -> np.ndarray:
        """The same in float32: exact.py on the same cache."""
        return self.run(n_tokens, position, RUNS_EXACTLY)

    def fill(self, seed: int, n_tokens: int, position: int, peak: float = 1.0) -> None:
        """Random rows; behind them rows of NaN that nobody may read. peak: how large queries are."""
        rng, n = np.random.default_rng(seed), n_tokens * self.heads
        self.cache[:] = np.nan
        self.cache[: position + n_tokens] = rng.standard_normal((position + n_tokens, self.cache.shape[1]))
        self.query[:] = np.nan
        self.query[:n] = peak * rng.standard_normal((n, self.query.shape[1]))

    def exact(self, n_tokens: int, position: int, rounded: bool) -> np.ndarray:
        """In float64 by NumPy: plain softmax attention, or with the kernels' roundings."""
        keys = self.cache[: position + n_tokens].astype(np.float64)  # (positions, row)
        query = self.query[: n_tokens * self.heads].astype(np.float64).reshape(n_tokens, self.heads, -1)
        latent, scale = int(self.model["latent"]), float(self.model["softmax_scale"])
        return attend_rounded(query, keys, latent, scale, rounded).reshape(n_tokens * self.heads, latent)


SIZES = [
    (1, 0),
    (1, 1),
    (1, 31),
    (1, 300),
    (1, 511),
    (2, 0),
    (3, 255),
    (6, 60),
    (6, 250),
    (7, 1),
    (9, 31),
    (31, 300),
    (33, 0),
    (33, 255),
    (65, 300),
]


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest relative distance of two rows."""
    return float((np.linalg.norm(a - b, axis=1) / np.linalg.norm(b, axis=1)).max())


@pytest.mark.parametrize("heads", [1, 3, 20, 33])
@pytest.mark.parametrize(("n_tokens", "position"), SIZES)
def test_int8_is_the_rounded_softmax_attention(n_tokens: int, position: int, heads: int) -> None:
    a = Attention(heads, 400 if position < 400 else 520)
    a.fill(n_tokens + position, n_tokens, position)
    got = a.run(n_tokens, position)
    rounded, exact = a.exact(n_tokens, position, rounded=True), a.exact(n_tokens, position, rounded=False)
    # here and there a number that float32 rounds to the other side of a half is one step of 127 or 255 off
    size = 0.25 * np.linalg.norm(rounded - exact) + 1e-6 * np.linalg.norm(exact)
    assert np.linalg.norm(got - rounded) <= size and distance(got, rounded) <= 1e-2
    assert distance(got, exact) <= 5e-2


@pytest.mark.parametrize("kind", [F16, F32], ids=["float16", "float32"])
@pytest.mark.parametrize(("n_tokens", "position"), SIZES)
def test_float32_is_the_softmax_attention(n_tokens: int, position: int, kind: int) -> None:
    a = Attention(6, 520, kind)
    a.fill(n_tokens + position, n_tokens, position)
    expected = a.exact(n_tokens, position, rounded=False)
    assert distance(a.run_float(n_tokens, position), expected) <= 2e-6
    if kind == F32:
        assert distance(a.run(n_tokens, position), expected) <= 2e-6


@pytest.mark.parametrize(("n_tokens", "position"), SIZES)
def test_rows_of_q8_0(n_tokens: int, position: int) -> None:
    """As if the numbers that GGML's Q8_0 keeps had been cached."""
    a, b = Attention(5, 520, F32), Attention(5, 520, Q8_0)
    a.fill(3, n_tokens, position)
    b.query[:] = a.query
    for p in range(position + n_tokens):
        store_cached(b.model, a.cache[p].ctypes.data, b.stored[p].ctypes.data)
    b.stored[position + n_tokens :] = 0xFF  # the scales are NaN
    used = a.cache[: position + n_tokens]
    used[:] = gguf.quants.dequantize(gguf.quants.quantize(used, Q8), Q8)  # not ours: our encoder searches for better scales
    expected = a.exact(n_tokens, position, rounded=False)
    assert distance(b.run_float(n_tokens, position), expected) <= 1e-3  # GGML rounds halves up, and by a float16 scale
    assert distance(b.run(n_tokens, position), expected) <= 5e-2


@pytest.mark.parametrize(("n_tokens", "position"), SIZES)
def test_one_thread_equals_two_bit_for_bit(n_tokens: int, position: int) -> None:
    one, two = Attention(20, 520, n_threads=1), Attention(20, 520, n_threads=2)
    for a in (one, two):
        a.fill(1, n_tokens, position)
    np.testing.assert_array_equal(one.run(n_tokens, position), two.run(n_tokens, position))


@pytest.mark.parametrize("n_tokens", [1, 20])
@pytest.mark.parametrize("large", [(0,), (0, 1), (2, 3, 18, 19), (5, 20), range(64)], ids=str)
@pytest.mark.parametrize("score", [1.0, -1.0, 30.0])
def test_codes_at_their_largest(n_tokens: int, large: Sequence[int], score: float) -> None:
    """Of each block of 64 some of a query's values and some positions are as large as can be, so that sums of products are."""
    a = Attention(4, 600)
    a.fill(3, n_tokens, 500)
    some = np.isin(np.arange(64), large)  # bool (64,)
    a.query[:, :LATENT], a.query[:, LATENT:] = np.tile(score / 0.1 / LATENT * 64 / some.sum() * some, LATENT // 64), 0
    a.cache[: 500 + n_tokens] = np.resize(np.where(some, 1, -1), (500 + n_tokens, 1))
    expected = a.exact(n_tokens, 500, rounded=True)
    assert np.abs(a.run(n_tokens, 500) - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("n_tokens", [1, 20])
def test_scores_with_a_sharp_peak(n_tokens: int) -> None:
    """Each query is one row's image, so that one position takes nearly all the weight: e**100 times the others'."""
    a = Attention(4, 600)
    a.fill(5, n_tokens, 500)
    targets = np.random.default_rng(0).integers(0, 500, n_tokens * 4)  # int64 (queries,)
    a.query[: len(targets)] = a.cache[targets].astype(np.float32) * 5
    got = a.run(n_tokens, 500)
    assert distance(got, a.cache[targets, :LATENT].astype(np.float64)) <= 1e-2


@pytest.mark.parametrize("kind", [F16, Q8_0], ids=["float16", "q8_0"])
def test_kept_columns_are_what_would_be_computed_again(kind: int) -> None:
    """Pieces of a prompt, single tokens, and back to an earlier position with other rows behind it."""
    kept, anew = Attention(5, 600, kind), Attention(5, 600, kind)
    for position, n_tokens in (
        (0, 150),
        (150, 3),
        (153, 1),
        (154, 38),
        (192, 64),
        (256, 1),
        (257, 70),
        (140, 2),
        (142, 90),
        (232, 300),
    ):
        for a in (kept, anew):
            rng = np.random.default_rng(position)
            values = rng.standard_normal((n_tokens, ROW)).astype(np.float32)  # float32 (n_tokens, row)
            for i, value in enumerate(values):
                store_cached(a.model, value.ctypes.data, a.stored[position + i].ctypes.data)
            a.query[: n_tokens * 5] = rng.standard_normal((n_tokens * 5, ROW))
        got = kept.run(n_tokens, position, rounded=position)
        assert np.isfinite(got).all() and kept.rounded[0] == (position + n_tokens) // columns.BLOCK * columns.BLOCK
        np.testing.assert_array_equal(got, anew.run(n_tokens, position))


def test_old_rows_behind_the_end_do_not_matter() -> None:
    a, b = Attention(5, 600), Attention(5, 600)
    for x in (a, b):
        x.fill(1, 40, 300)
    a.run(100, 400), a.run(1, 550)  # NaN everywhere, in columns and scratch
    np.testing.assert_array_equal(a.run(40, 300), b.run(40, 300))
    np.testing.assert_array_equal(a.run(1, 339), b.run(1, 339))


@pytest.mark.parametrize("n_tokens", [1, 4])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("column", [3, LATENT + 5], ids=["latent", "rope"])
def test_what_is_not_finite_stays_visible(n_tokens: int, bad: float, column: int) -> None:
    for where in ("query", "cache"):
        a = Attention(3, 300)
        a.fill(2, n_tokens, 200)
        if where == "query":
            a.query[:, column] = bad
        else:
            a.cache[17, column] = bad
        rows = np.isfinite(a.run(n_tokens, 200)).all(axis=1)
        # an infinite rope key may mean a score of minus infinity, which rightly weighs nothing: not for all heads at once
        assert not (rows.all() if np.isinf(bad) else rows.any())


@pytest.mark.parametrize("n_tokens", [1, 9])
def test_extreme_codes_do_not_overflow(n_tokens: int) -> None:
    """Every code at its end, of every sign: integer sums as large as they can be."""
    a = Attention(20, 600, latent=512, row=576)
    rng = np.random.default_rng(0)
    for q_sign, k_sign in ((1, 1), (1, -1), (-1, -1), (0, 0)):
        a.cache[:] = k_sign or rng.choice([-1, 1], a.cache.shape)
        a.query[:] = q_sign or rng.choice([-1, 1], a.query.shape)
        assert distance(a.run(n_tokens, 500), a.exact(n_tokens, 500, rounded=True)) <= 1e-3
