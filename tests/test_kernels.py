"""The kernels, one by one, against NumPy on the same numbers: odd sizes, both ways through multiply(), extreme blocks."""

import ctypes
import mmap
import os

import numpy as np
import pytest
from support.from_python import from_python

from glmrun.engine.workspace import rope_table
from glmrun.kernels import activations, matmul
from glmrun.kernels import rows as of_rows
from glmrun.kernels.activations import FEW, row_bytes
from glmrun.kernels.formats import dispatch
from glmrun.kernels.layout import WEIGHT
from glmrun.kernels.matmul import ADD, STORE
from quant.formats import FORMATS

BLOCK_FORMATS = [name for name, f in FORMATS.items() if f.block_length > 1]
OF_32 = [name for name, f in FORMATS.items() if f.block_length == 32]
quantize_row, multiply, scratch_bytes = map(from_python, (activations.quantize_row, matmul.multiply, matmul.scratch_bytes))
reads_codes, rms_norm, silu_multiply = map(from_python, (of_rows.reads_codes, of_rows.rms_norm, of_rows.silu_multiply))
dot_rows, dot_rows_two = from_python(dispatch.dot_rows), from_python(dispatch.dot_rows_two)


def random_rows(name: str, rows: int, columns: int, fill: int | None = None) -> np.ndarray:
    """Blocks with every code possible (or all bytes `fill`) and float16 scales near 0.004, uint8 (rows, row_bytes)."""
    rng, form = np.random.default_rng(rows * columns), FORMATS[name]
    if form.block_length == 1:
        return form.encode(rng.standard_normal((rows, columns)).astype(np.float32))
    shape = (rows * columns // form.block_length, form.block_bytes)
    blocks = (
        rng.integers(0, 256, shape, dtype=np.uint8) if fill is None else np.full(shape, fill, np.uint8)
    )  # uint8 (blocks, bytes)
    for offset in form.halves:
        scale = rng.uniform(0.002, 0.006, len(blocks)).astype(np.float16)  # f16 (blocks,)
        blocks[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":  # scales are powers of two
        blocks[:, 0] = rng.integers(118, 121, len(blocks))
    return blocks.reshape(rows, -1)


def rounded(x: np.ndarray, name: str, at_once: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows as a kernel for this format reads them, at_once or all together; uint8 or float32; the same rows as numbers)."""
    if not reads_codes(FORMATS[name].ggml_type):
        return x, x
    n, columns = x.shape
    out = np.full((n, row_bytes(columns)), 0x77, np.uint8)  # uint8 (n, row_bytes)
    for i in range(n):
        quantize_row(x[i].ctypes.data, columns, (at_once or n) < FEW, out[i].ctypes.data)
    codes = out[:, :columns].view(np.int8).astype(np.float64)
    scales = out[:, columns : columns + columns // 8].copy().view(np.float32)  # f32 (n, blocks)
    with np.errstate(invalid="ignore"):  # an infinite scale times 0
        return out, codes * np.repeat(scales, 32, axis=1)


def product(name: str, blocks: np.ndarray, rows: np.ndarray, columns: int, mode: int = STORE, weights=None, index=None, out=None):
    """multiply() of all rows, float32 (n, matrix rows)."""
    matrix = np.array([(blocks.ctypes.data, FORMATS[name].ggml_type, len(blocks), columns, blocks.shape[1], 0)], WEIGHT)[0]
    n = len(rows) if index is None else len(index)
    out = np.zeros((n, len(blocks)), np.float32) if out is None else out  # float32 (n, matrix rows)
    scratch = np.zeros(scratch_bytes(columns, n) + 64, np.uint8)
    counts = (n, 0) if n < FEW else (0, n)
    multiply(
        matrix, (0, 0, len(blocks)), (rows.ctypes.data, rows.strides[0], 0 if index is None else index.ctypes.data), counts,
        (out.ctypes.data, out.strides[0], 0), 0 if weights is None else weights.ctypes.data, mode,
        -(-scratch.ctypes.data // 64) * 64, 0,
    )  # fmt: skip
    return out


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 31, 33])
@pytest.mark.parametrize("name", FORMATS)
def test_multiply_is_the_dequantized_product(name: str, n: int) -> None:
    for n_rows, columns in ((1, 256), (31, 768), (33, 512)):
        blocks = random_rows(name, n_rows, columns)
        x = np.random.default_rng(n).standard_normal((n, columns)).astype(np.float32)  # float32 (n, columns)
        rows, values = rounded(x, name)
        weights = FORMATS[name].decode(blocks).astype(np.float64)  # float64 (n_rows, columns)
        error = np.abs(product(name, blocks, rows, columns) - values @ weights.T)  # float64 (n, n_rows)
        assert np.all(error <= 2e-7 * (np.abs(values) @ np.abs(weights).T))  # of what is added up; seen: 8.2e-8


@pytest.mark.parametrize("columns", [32, 96, 160])
@pytest.mark.parametrize("name", OF_32)
def test_an_odd_number_of_blocks(name: str, columns: int) -> None:
    blocks = random_rows(name, 40, columns)
    for n in (1, 4, 9):
        rows, values = rounded(np.random.default_rng(n).standard_normal((n, columns)).astype(np.float32), name)
        expected = values @ FORMATS[name].decode(blocks).astype(np.float64).T
        error = np.abs(product(name, blocks, rows, columns) - expected).max()
        assert error <= 2e-6 * np.abs(expected).max()


@pytest.mark.skipif(os.name == "nt", reason="no mprotect")
@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_read_behind_the_last_row(name: str) -> None:
    """The last tensor may end where the file does, and the file where a page does: a byte more is a bus error."""
    page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
    memory = mmap.mmap(-1, 1 << 17)
    behind = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + (1 << 17) - page
    assert libc.mprotect(ctypes.c_void_p(behind), ctypes.c_size_t(page), 0) == 0
    for columns in (256, 32) if FORMATS[name].block_length < 256 else (256,):
        source = random_rows(name, 33, columns)
        blocks = np.frombuffer(memory, np.uint8)[-page - source.nbytes : -page].reshape(source.shape)
        blocks[:] = source.view(np.uint8)
        for n in (1, 2, 9):
            rows, _ = rounded(np.random.default_rng(n).standard_normal((n, columns)).astype(np.float32), name)
            assert np.array_equal(product(name, blocks, rows, columns), product(name, source, rows, columns))


@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_extreme_blocks_do_not_overflow(name: str, fill: int) -> None:
    """Every code at its end, every activation at +-127: integer sums as large as they can be."""
    columns = 10240
    blocks = random_rows(name, 33, columns, fill)
    for sign in (np.ones(columns), -np.ones(columns), np.resize([1, -1], columns)):
        for n in (1, 4, 8):
            rows, values = rounded(np.tile(sign.astype(np.float32), (n, 1)), name)
            expected = values @ FORMATS[name].decode(blocks).astype(np.float64).T
            size = np.abs(values) @ np.abs(FORMATS[name].decode(blocks).astype(np.float64)).T
            error = np.abs(product(name, blocks, rows, columns) - expected)
            assert (error <= 5e-6 * size + 1e-30).all()  # 320 float32 additions, all rounding the same way


@pytest.mark.parametrize("scale", [0x7F, 0x80])
def test_the_largest_sums_of_q6_k_fit(scale: int) -> None:
    """Every code 63 and every scale at its end: 127 * 63 * 4 * 127 * 128 * 4, three percent below what an int32 holds."""
    blocks = random_rows("Q6_K", 33, 2048, 0xFF)
    blocks.reshape(-1, 210)[:, 192:208] = scale
    for sign in (1, -1):
        for n in (1, 4):
            rows, values = rounded(np.full((n, 2048), sign, np.float32), "Q6_K")
            expected = values @ FORMATS["Q6_K"].decode(blocks).astype(np.float64).T
            error = np.abs(product("Q6_K", blocks, rows, 2048) - expected).max()
            assert error <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_gives_the_same_number_beside_others(name: str) -> None:
    """One activation alone and four at once: prompts and answers, drafts and plain writing agree to the last bit."""
    blocks = random_rows(name, 33, 768)
    rows, _ = rounded(np.random.default_rng(0).standard_normal((4, 768)).astype(np.float32), name)
    together = product(name, blocks, rows, 768)
    for i in range(4):
        assert (product(name, blocks, rows[i : i + 1], 768)[0] == together[i]).all()


def test_all_byte_values_of_q8_0_are_exact() -> None:
    """-128 among them, which GGML never writes (class G41)."""
    blocks = np.zeros((256, 34), np.uint8)  # uint8 (rows, one block)
    blocks[:, :2] = np.float16(1).tobytes()[0], np.float16(1).tobytes()[1]
    blocks[:, 2:] = np.arange(256, dtype=np.uint8)[:, None]
    for n in (1, 4, 8):
        rows, values = rounded(np.ones((n, 32), np.float32), "Q8_0")
        expected = np.outer(values.sum(1), np.arange(256, dtype=np.uint8).view(np.int8))  # float64 (n, 256)
        assert np.abs(product("Q8_0", blocks, rows, 32) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_scale_of_mxfp4() -> None:
    """From 2**-128, which counts as nothing, to the largest that the check of weights lets pass."""
    blocks = np.full((160, 17), 0x72, np.uint8)  # uint8 (rows, one block)
    blocks[:, 0] = np.arange(160)
    for n in (1, 4, 8):
        rows, values = rounded(np.random.default_rng(n).random((n, 32), np.float32), "MXFP4")
        expected = values @ FORMATS["MXFP4"].decode(blocks).astype(np.float64).T  # float64 (n, 160)
        assert (np.abs(product("MXFP4", blocks, rows, 32) - expected) <= 2e-6 * np.abs(expected) + 1e-36).all()


@pytest.mark.parametrize("n", [3, 5, 7, 12, 13, 33])
def test_gather_weigh_and_add(n: int) -> None:
    """The expert's case: chosen rows of x, each product weighted, added to what is there."""
    blocks, rng = random_rows("Q4_K", 50, 512), np.random.default_rng(n)
    rows, values = rounded(rng.standard_normal((20, 512)).astype(np.float32), "Q4_K", at_once=n)
    index, weights = rng.integers(0, 20, n), rng.random(n, np.float32)  # int64 (n,), float32 (n,)
    before = rng.standard_normal((n, 50)).astype(np.float32)  # float32 (n, 50)
    out = product("Q4_K", blocks, rows, 512, ADD, weights, index, before.copy())
    expected = before + weights[:, None] * (values[index] @ FORMATS["Q4_K"].decode(blocks).astype(np.float64).T)
    assert np.abs(out - expected).max() <= 2e-6 * np.abs(expected).max()


def test_rounding_of_activations() -> None:
    x = np.random.default_rng(0).standard_normal((4, 512)).astype(np.float32)
    x[1, :32], x[2, 3], x[2, 5], x[3] = 0, 7.5, -7.5, 1e-42  # zeros, a tie of magnitudes, denormals
    rows, values = rounded(x, "Q8_0")
    top = np.abs(x).reshape(4, 2, 8, 32).max(-1)  # float32 (4, groups, blocks)
    scale = (top / 127 + top.max(-1, keepdims=True) / 127**2).reshape(4, -1)  # float32 (4, blocks): as large as one may become
    error = np.abs(values - x).reshape(4, -1, 32).max(-1)
    assert (error[:3] <= 0.5001 * scale[:3]).all()
    assert np.isfinite(values).all()
    assert (rows[1, :32] == 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [*BLOCK_FORMATS, "F32", "BF16"])
def test_what_is_not_finite_stays_visible(name: str, bad: float) -> None:
    """In the compiled kernels too: no flag lets LLVM assume that NaN does not happen."""
    blocks = random_rows(name, 3, 512)
    x = np.random.default_rng(0).standard_normal((9, 512)).astype(np.float32)
    x[:, 300] = bad
    rows, _ = rounded(x, name, at_once=1)
    for n in (1, 9):
        assert not np.isfinite(product(name, blocks, rows[:n], 512)).any()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 2048])
def test_norm_and_gate(n: int) -> None:
    rng = np.random.default_rng(n)
    x, w = rng.standard_normal((2, n)).astype(np.float32)
    out, padded = np.zeros(n, np.float32), -(-n // 16) * 16
    rms_norm(x.ctypes.data, w.ctypes.data, n, np.float32(1e-5), out.ctypes.data)
    expected = w * (x.astype(np.float64) / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-5))
    assert np.abs(out - expected).max() <= 1e-6 * np.abs(expected).max() + 1e-12
    gate, up = np.zeros((2, padded), np.float32)
    gate[:n], up[:n] = x * 30, w
    expected = (gate * up / (1 + np.exp(-gate.astype(np.float64))))[:n]
    silu_multiply(gate.ctypes.data, up.ctypes.data, n, gate.ctypes.data)
    assert np.abs(gate[:n] - expected).max() <= 1e-6 * np.abs(expected).max() + 1e-12


@pytest.mark.parametrize("position", [0, 1, 40, 4095, 32767])
def test_rope_angles_are_exact_far_out(position: int) -> None:
    table = rope_table(position, position + 1, 64, 1e6)[0]
    i = np.arange(32, dtype=np.longdouble)
    angle = np.longdouble(position) * np.longdouble(1e6) ** (-2 * i / 64)
    assert np.abs(table[:, 0] - np.cos(angle)).max() <= 1e-6
    assert np.abs(table[:, 1] - np.sin(angle)).max() <= 1e-6


@pytest.mark.parametrize("name,columns", [*((name, 512) for name in BLOCK_FORMATS), *((name, 224) for name in OF_32)])
def test_two_at_once_are_what_each_is_alone(name: str, columns: int) -> None:
    blocks, (rows, values) = (
        random_rows(name, 33, columns),
        rounded(np.random.default_rng(3).standard_normal((2, columns)).astype(np.float32), name),
    )
    number, out = FORMATS[name].ggml_type, np.zeros((4, 33), np.float32)
    at = (number, blocks.ctypes.data, blocks.shape[1], 33, columns)
    dot_rows_two(*at, rows[0].ctypes.data, rows[1].ctypes.data, out[0].ctypes.data, out[1].ctypes.data)
    for i in range(2):
        dot_rows(*at, rows[i].ctypes.data, out[2 + i].ctypes.data)
    assert out[:2].tobytes() == out[2:].tobytes()
    expected = values @ FORMATS[name].decode(blocks).astype(np.float64).T  # float64 (2, 33)
    assert np.abs(out[:2] - expected).max() <= 2e-6 * np.abs(expected).max()


def test_python_calls_only_entries() -> None:
    """Others have no side for Python, apart or not, whether or not a kernel has called them: without a refusal the process ends."""
    others = (activations.quantize_row, (0, 0, True, 0)), (of_rows.reads_codes, (8,)), (dispatch.dot_rows, (0,) * 7)
    for kernel, arguments in others:
        with pytest.raises(TypeError):
            kernel(*arguments)
    assert reads_codes(8)
    with pytest.raises(TypeError):
        of_rows.reads_codes(8)
