"""Rounded activations: every part of a row that quantize_row() leaves, against NumPy."""

import numpy as np
import pytest
from support.from_python import from_python

from glmrun.kernels import activations
from glmrun.kernels.activations import row_bytes
from glmrun.kernels.simd.target import has_neon, sums_in_16_bits

quantize_row = from_python(activations.quantize_row)
LENGTHS = (32, 64, 96, 224, 256, 288, 512, 768, 1312, 2048)


def rows(n: int) -> list[np.ndarray]:
    """Values of all kinds, float32 (n,) each: usual, zeros in between and alone, tiny, huge, halves of whole numbers."""
    rng = np.random.default_rng(n)
    usual = rng.standard_normal(n)
    wide, halves = usual * np.exp(6 * rng.standard_normal(n)), np.round(40 * usual) / 2
    found = (usual, usual * rng.integers(0, 2, n), 0 * usual, usual * 1e-36, usual * 1e30, wide, halves, -np.ones(n))
    return [x.astype(np.float32) for x in found]


def row_of(x: np.ndarray, few: bool) -> np.ndarray:
    """quantize_row() of it, uint8 (row_bytes,); nothing is written behind that."""
    out = np.full(row_bytes(len(x)) + 64, 0x55, np.uint8)
    quantize_row(x.ctypes.data, len(x), few, out.ctypes.data)
    assert (out[-64:] == 0x55).all()
    return out[:-64]


def scales_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(D, what k is rounded up from) of a row, float64 (groups,) and (n / 32,)."""
    tops = np.abs(x.astype(np.float64)).reshape(-1, 32).max(1)
    group = np.arange(len(tops)) // 8
    highest = np.array([tops[group == g].max() for g in range(group[-1] + 1)])  # float64 (groups,)
    highest[highest < 1e-30] = 0
    return highest / 127**2, 127 * tops / np.where(highest > 0, highest, np.inf)[group]


@pytest.mark.parametrize("few", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_every_part_of_a_row(n: int, few: bool) -> None:
    for x in rows(n):
        out = row_of(x, few)
        units, ratios = scales_of(x)
        at = {"scales": n, "sums_32": n + n // 8, "multiples": n + n // 4, "sums_16": n + 3 * n // 8, "starts": n + n // 2}

        def part(name: str, dtype: type, count: int, out: np.ndarray = out, at: dict[str, int] = at) -> np.ndarray:
            return out[at[name] : at[name] + count * np.dtype(dtype).itemsize].view(dtype)

        codes, scales = out[:n].view(np.int8).astype(np.int64), part("scales", np.float32, n // 32)
        multiples = part("multiples", np.int16, n // 16)[::2].astype(np.int64)
        # Less than 1 above what is rounded up; where that is a whole number, a division's last bit may make one of it.
        assert (multiples >= ratios - 1e-4).all() and (multiples <= np.minimum(ratios + 1 + 1e-4, 127)).all()
        assert np.allclose(scales, units[np.arange(n // 32) // 8] * multiples, rtol=3e-7, atol=0)
        per_value = np.repeat(scales, 32).astype(np.float64)
        exact = np.divide(x.astype(np.float64), per_value, out=np.zeros(n), where=per_value > 0)
        assert np.abs(codes - exact).max() <= 0.5 + 1e-4 and np.abs(codes).max() <= 127
        sums = codes.reshape(-1, 16).sum(1)
        of_32 = sums.reshape(-1, 2).sum(1)
        assert np.array_equal(part("sums_32", np.float32, n // 32), scales * of_32.astype(np.float32))
        assert np.array_equal(part("multiples", np.int16, n // 16), np.repeat(multiples, 2))
        assert np.array_equal(part("sums_16", np.int16, n // 16), sums)
        assert np.array_equal(part("starts", np.int32, n // 32), -128 * of_32)
        starts = out[n + 5 * n // 8 : n + 7 * n // 8]
        if sums_in_16_bits():
            pairs = codes.reshape(-1, 4, 2, 2).sum((1, 3))  # of codes 0 1, 4 5, ... and of the others
            assert np.array_equal(starts.view(np.int16), -32 * pairs.ravel())
        elif not has_neon():
            assert np.array_equal(starts.view(np.int32), -32 * sums)
        if few:
            fours = out[activations.minus_128_sums_of_4.py_func(n) :][:n].view(np.int32)
            assert np.array_equal(fours, -128 * codes.reshape(-1, 4).sum(1))
        if few and n % 256 == 0:
            packed = out[activations.k_quant_codes.py_func(n) :]
            if sums_in_16_bits():  # of the halves of 256 in turns, two and two, as 256-bit registers are unpacked
                halves = np.arange(n).reshape(-1, 2, 4, 2, 2, 4, 2)  # block, half, quarter, lane, low or high, four, pair
                order = halves.transpose(0, 2, 4, 3, 5, 1, 6).ravel()
                k, b, zeros = (z.reshape(-1, 1, 2, 4).swapaxes(2, 3) for z in (multiples, of_32, np.zeros_like(of_32)))
                sixteens = sums.reshape(-1, 2, 4, 2).transpose(0, 3, 2, 1)  # block, half, quarter, which of its 16
                assert np.array_equal(packed[n + n // 4 : n + 3 * n // 8].view(np.int16), sixteens.ravel())
            else:
                order = np.arange(n).reshape(-1, 4, 32)[:, [0, 2, 1, 3]].ravel()
                k, b, zeros = (z.reshape(-1, 2, 4) for z in (multiples, of_32, np.zeros_like(of_32)))
            assert np.array_equal(packed[:n].view(np.int8), codes[order])
            beside_s_and_m = 1 if sums_in_16_bits() else 2  # first all s, then all m; or four of each
            assert np.array_equal(packed[n : n + n // 8].view(np.int16), np.stack([zeros, b], beside_s_and_m).ravel())
            assert np.array_equal(packed[n + n // 8 : n + n // 4].view(np.int16), np.stack([k, k], beside_s_and_m).ravel())
            units_at = n + 3 * n // 8
            assert np.allclose(packed[units_at : units_at + n // 64].view(np.float32), units, rtol=3e-7, atol=0)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_all_scales_of_its_256_so(wrong: float) -> None:
    for n, place in ((96, 0), (256, 37), (544, 543), (544, 300)):
        x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        x[place] = wrong
        scales = row_of(x, True)[n : n + n // 8].view(np.float32)
        beside = np.arange(n // 32) // 8 == place // 256
        assert not np.isfinite(scales[beside]).any() and np.isfinite(scales[~beside]).all()
