"""Block formats: decoding against gguf-py bit for bit, encoding against what GGML's own encoders made (tests/golden/blocks.*)."""

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from make_golden_blocks import KINDS, mean_squared_error, sample_rows, sample_weights

from quant.errors import UserError
from quant.formats import FORMATS, WRITTEN, by_ggml_type, ggml_type_name

GOLDEN = Path(__file__).parent / "golden"
SEARCHED = ("Q4_K", "Q6_K", "Q5_0", "Q8_0")


@pytest.fixture(scope="module")
def ggml() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "blocks.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def ggml_error() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads((GOLDEN / "blocks.json").read_text())["mean squared error"]


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(n: int, columns: int, seed: int = 0) -> np.ndarray:
    return rng(seed).standard_normal((n, columns), dtype=np.float32)


def test_table_agrees_with_gguf() -> None:
    known = {t.value: (t.name, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    for f in FORMATS.values():
        assert known[f.ggml_type] == (f.name, f.block_length, f.block_bytes)
        assert by_ggml_type(f.ggml_type) is f
    assert len(WRITTEN) == 7
    assert by_ggml_type(16) is None  # IQ2_XXS
    assert by_ggml_type(-1) is None
    assert ggml_type_name(-1) is None
    assert ggml_type_name(1000) is None


def test_table_loads_no_numba() -> None:
    code = "import sys, quant.formats, quant.recipes; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_only_who_writes_a_file_waits_for_gguf() -> None:
    reads = "glmrun.cli, glmrun.cli.chat, glmrun.engine.chat, glmrun.gguf.architecture, glmrun.store.local, quant.recipes"
    code = "import sys, {}; sys.exit('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code.format(reads)]).returncode == 0
    assert subprocess.run([sys.executable, "-c", code.format(f"{reads}, quant.mapping")]).returncode == 1


@pytest.mark.parametrize("name", [f.name for f in WRITTEN.values() if f.halves])
def test_decode_is_bit_identical_for_every_scale(name: str) -> None:
    """All 65,536 patterns of each float16 field, the other bytes random.

    NaN bits are compared too. A NaN scale becomes a quiet float32 NaN of the same sign and payload, and so do its products;
    infinite times zero is the CPU's own NaN. We multiply in the same order as gguf-py, so even these agree on one machine.
    """
    f = WRITTEN[name]
    patterns = np.arange(1 << 16, dtype="<u2")
    for field in f.halves:
        blocks = rng(field).integers(0, 256, (1 << 16, f.block_bytes), dtype=np.uint8)
        blocks[:, field : field + 2] = patterns.view(np.uint8).reshape(-1, 2)
        with np.errstate(invalid="ignore"):
            expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
        decoded = f.decode(blocks)
        assert decoded.dtype == np.float32
        assert np.array_equal(bits(decoded), bits(expected))
        assert np.isnan(decoded).any()


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_halves_of_every_pattern(name: str) -> None:
    f = WRITTEN[name]
    raw = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(256, 512)
    decoded = f.decode(raw)
    assert np.array_equal(bits(decoded), bits(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])))
    again = f.encode(decoded).view("<u2").reshape(-1)
    nan = np.isnan(decoded).reshape(-1)
    assert np.array_equal(again[~nan], np.flatnonzero(~nan))
    assert np.isnan(f.decode(again[nan].view(np.uint8))).all()


def test_singles_pass_through() -> None:
    x = rng().integers(0, 1 << 32, (4, 256), dtype=np.uint32).view(np.float32)
    encoded = WRITTEN["F32"].encode(x)
    assert encoded.shape == (4, 1024)
    assert np.array_equal(bits(WRITTEN["F32"].decode(encoded)), bits(x))


@pytest.mark.parametrize("name", WRITTEN)
def test_shapes(name: str) -> None:
    f = WRITTEN[name]
    blocks = f.encode(normal(6, 512)).reshape(2, 3, -1)
    assert blocks.dtype == np.uint8
    assert blocks.shape[-1] == f.row_bytes(512) == 512 // f.block_length * f.block_bytes
    decoded = f.decode(blocks)
    assert decoded.shape == (2, 3, 512)
    assert np.array_equal(decoded[1, 2], f.decode(blocks[1, 2]))
    assert np.array_equal(f.decode(blocks[:, ::2]), decoded[:, ::2])
    assert f.encode(np.zeros((0, 512), np.float32)).shape == (0, f.row_bytes(512))
    assert f.decode(blocks[:0]).shape == (0, 3, 512)


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q6_K", "Q4_K"])
def test_rows_must_be_whole_blocks(name: str) -> None:
    f = WRITTEN[name]
    with pytest.raises(UserError, match=f"{f.block_length} values; this row has {f.block_length + 8}"):
        f.encode(np.zeros((1, f.block_length + 8), np.float32))


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_encode_is_ggml_byte_for_byte(name: str, ggml: dict[str, np.ndarray]) -> None:
    assert np.array_equal(WRITTEN[name].encode(ggml["rows"]), ggml[name])
    assert np.array_equal(WRITTEN[name].encode(ggml["patterns"]), ggml[f"{name}_patterns"])


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0"])
def test_no_block_has_more_error_than_ggml_leaves(name: str, ggml: dict[str, np.ndarray]) -> None:
    """GGML's scale is one of those tried, and each value has its nearest code; where GGML's scale is infinite ours is not."""
    rows = ggml["rows"].astype(np.float64)
    with np.errstate(invalid="ignore"):
        ours, theirs = (
            ((WRITTEN[name].decode(blocks) - rows) ** 2).reshape(-1, 32).sum(axis=1)
            for blocks in (WRITTEN[name].encode(ggml["rows"]), ggml[name])
        )
    finite = np.isfinite(theirs)
    assert 0.8 <= finite.mean() < 1
    assert np.all(ours[finite] <= theirs[finite] * (1 + 1e-5))
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SEARCHED)
def test_search_beats_ggml(name: str, kind: str, ggml_error: dict[str, dict[str, dict[str, float]]]) -> None:
    """At least 2 % (Q5_0: 1 %) less squared error than GGML's encoder leaves on the same rows, plain and weighted."""
    rows, weights, most = sample_rows(kind), sample_weights(), 0.99 if name == "Q5_0" else 0.98
    theirs = ggml_error[name][kind]
    assert mean_squared_error(name, rows, WRITTEN[name].encode(rows)) <= most * theirs["plain"]
    assert mean_squared_error(name, rows, WRITTEN[name].encode(rows, weights), weights) <= most * theirs["weighted"]


def moved(name: str, blocks: np.ndarray, step: int) -> np.ndarray:
    """Blocks whose four-bit codes (of Q6_K: the lower four bits of the codes) are one step up or down, except at the ends."""
    out = blocks.copy()
    nibbles = out[:, 16:144] if name == "Q4_K" else out[:, :128]
    low, high = (np.clip(half.astype(np.int16) + step, 0, 15).astype(np.uint8) for half in (nibbles & 15, nibbles >> 4))
    nibbles[:] = low | high << 4
    return out


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_no_code_next_to_the_chosen_one_is_better(name: str) -> None:
    """Given the stored scales each value has its nearest code, up to float32's last bits."""
    f = WRITTEN[name]
    for kind in ("normal", "outliers"):
        x = sample_rows(kind, 32, 256)
        blocks = f.encode(x)
        error = np.abs(f.decode(blocks) - x)
        for step in (-1, 1):
            other = np.abs(f.decode(moved(name, blocks, step)) - x)
            assert np.all(error <= other * (1 + 1e-5) + 1e-9)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_power_of_two_changes_only_the_scales(name: str) -> None:
    f, x = WRITTEN[name], normal(8, 512)
    assert np.array_equal(f.decode(f.encode(x * 64)), 64 * f.decode(f.encode(x)))


@pytest.mark.parametrize("name", SEARCHED)
def test_a_row_does_not_depend_on_its_neighbours(name: str) -> None:
    f, x = WRITTEN[name], normal(5, 768)
    for weights in (None, rng(1).random(768, dtype=np.float32)):
        together = f.encode(x, weights)
        for i in range(5):
            assert np.array_equal(f.encode(x[i : i + 1], weights)[0], together[i])


@pytest.mark.parametrize("name", SEARCHED)
def test_weights_choose_where_the_error_falls(name: str) -> None:
    f, x = WRITTEN[name], normal(64, 512)
    weights = np.ones(512, np.float32)
    plain = f.encode(x)
    assert np.array_equal(plain, f.encode(x, weights))
    assert np.array_equal(plain, f.encode(x, np.full(512, 1e-30, np.float32)))
    assert np.array_equal(plain, f.encode(x, np.zeros(512, np.float32)))
    weights[::2] = 100
    weighted = f.encode(x, weights)
    assert np.array_equal(weighted, f.encode(x, weights * 8))
    heavy = [float(np.mean((f.decode(blocks) - x)[:, ::2] ** 2)) for blocks in (plain, weighted)]
    assert heavy[1] <= 0.9 * heavy[0]
    for bad in (-1, np.nan, np.inf):
        weights[3] = bad
        with pytest.raises(ValueError, match="finite and not negative"):
            f.encode(x, weights)


@pytest.mark.parametrize("name", WRITTEN)
def test_any_memory_layout_will_do(name: str) -> None:
    f, x = WRITTEN[name], normal(4, 512)
    expected = f.encode(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    unaligned = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(4, 512)
    for same in (frozen, unaligned, np.asfortranarray(x), x.astype(np.float64), np.repeat(x, 2, axis=0)[::2]):
        assert np.array_equal(f.encode(same), expected)


def test_weights_of_the_wrong_length_are_refused() -> None:
    with pytest.raises(ValueError, match="expected \\(512,\\)"):
        WRITTEN["Q4_K"].encode(normal(2, 512), np.ones(256, np.float32))


@pytest.mark.parametrize("name", ["Q8_0", "Q5_0", "Q6_K", "Q4_K"])
def test_zeros_stay_zeros(name: str) -> None:
    decoded = WRITTEN[name].decode(WRITTEN[name].encode(np.zeros((3, 256), np.float32)))
    assert np.array_equal(decoded, np.zeros((3, 256)))


@pytest.mark.parametrize("name", SEARCHED)
def test_any_finite_row_gets_finite_scales(name: str, ggml: dict[str, np.ndarray]) -> None:
    """From the smallest subnormal to float32's end, constants and lone outliers; never worse than storing zeros."""
    f = WRITTEN[name]
    lonely = np.eye(256, dtype=np.float32)
    for x in (ggml["rows"], lonely, -lonely, 1e6 * lonely + normal(256, 256), np.full((3, 256), 3.4e38, np.float32)):
        decoded = f.decode(f.encode(x)).astype(np.float64)
        assert np.isfinite(decoded).all()
        whole = ((decoded - x) ** 2).reshape(len(x), -1).sum(axis=1)
        assert np.all(whole <= (x.astype(np.float64) ** 2).sum(axis=1))


@pytest.mark.parametrize("name", SEARCHED)
def test_subnormal_scales_are_used(name: str) -> None:
    """Weights near 2**-20 want scales that float16 holds only as subnormals: a few bits of them must still count."""
    f, x = WRITTEN[name], normal(32, 256) * np.float32(2.0**-20)
    error = np.mean((f.decode(f.encode(x)).astype(np.float64) - x) ** 2) / np.mean(x.astype(np.float64) ** 2)
    assert error <= {"Q4_K": 0.02, "Q5_0": 0.005}.get(name, 0.002)


@pytest.mark.parametrize("name", SEARCHED)
def test_constant_blocks_are_nearly_exact(name: str) -> None:
    x = np.repeat(normal(16, 8), 32, axis=1)
    decoded = WRITTEN[name].decode(WRITTEN[name].encode(x))
    assert float(np.mean((decoded - x) ** 2)) <= 1e-5


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_not_a_number_does_not_crash(name: str) -> None:
    for bad in (np.nan, np.inf, -np.inf):
        x = normal(3, 512)
        x[1, 7] = bad
        x[2] = bad
        assert np.array_equal(WRITTEN[name].encode(x)[0], WRITTEN[name].encode(x[:1])[0])
