"""Record what GGML's own encoders make of some rows, in tests/golden/blocks.npz and blocks.json.

python scripts/make_golden_blocks.py     # needs llama-cpp-python, whose package brings GGML's library

blocks.npz   rows: float32 (n, 256) that are hard to encode; Q8_0, Q5_0, F16, BF16: GGML's bytes for them;
             patterns: float32 (m, 256) of all signs and exponents, NaNs and infinities too; F16_patterns, BF16_patterns: the same
blocks.json  how it was made; mean squared errors of GGML's quantizers on sample_rows(), plain and weighted by sample_weights()
"""

import ctypes
import json
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from quant.formats import FORMATS

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
KINDS = ("normal", "laplace", "student t, df 3", "outliers", "uniform", "shifted")


def sample_rows(kind: str, n: int = 64, columns: int = 1024) -> np.ndarray:
    """Seeded weights of one distribution: float32 (n, columns), of the size weights have."""
    rng = np.random.RandomState(KINDS.index(kind))  # its streams are frozen for good, unlike those of a Generator
    shape = (n, columns)
    if kind == "normal":
        x = rng.standard_normal(shape)
    elif kind == "laplace":
        x = rng.laplace(size=shape)
    elif kind == "student t, df 3":
        x = rng.standard_t(3, shape)
    elif kind == "outliers":  # one value in 200 is twenty times as large
        x = rng.standard_normal(shape) * np.where(rng.uniform(size=shape) < 0.005, 20, 1)
    elif kind == "uniform":
        x = rng.uniform(-1, 1, shape)
    else:
        x = rng.standard_normal(shape) + 2
    return (0.02 * x).astype(np.float32)


def sample_weights(columns: int = 1024) -> np.ndarray:
    """Seeded importance of the columns, spread over two orders of magnitude: float32 (columns,)."""
    return np.random.RandomState(100).lognormal(size=columns).astype(np.float32)


def hard_rows() -> np.ndarray:
    """Finite rows that are hard to encode: float32 (48, 256)."""
    rng = np.random.RandomState(200)
    n = 4
    zeros = rng.standard_normal((n, 256))
    zeros[:, 32:64], zeros[:, 64:96], zeros[:, 96::3] = 0.0, -0.0, 0.0
    ties_127, ties_16 = rng.randint(-254, 255, (n, 256)) / 2, rng.randint(-32, 33, (n, 256)) / 2
    ties_127[:, 3::32], ties_16[:, 3::32], ties_16[:, 7::32] = -127, 16, -16
    bits = rng.randint(0, 1 << 32, (n, 256), dtype=np.uint32).view(np.float32)
    halves = np.resize(np.arange(65536, dtype=np.uint16).view(np.float16)[:0x7C00].astype(np.float64), (124, 256))[:: 124 // n][:n]
    rows = [
        rng.standard_normal((n, 256)),
        rng.standard_t(2, (n, 256)),
        zeros,
        ties_127,
        ties_16,
        np.ldexp(rng.uniform(-1, 1, (n, 256)), rng.randint(-149, -118, (n, 256))),  # subnormal in float32
        np.ldexp(rng.uniform(-1, 1, (n, 256)), rng.randint(-30, -10, (n, 1))),  # scales subnormal in float16
        np.ldexp(rng.uniform(-1, 1, (n, 256)), rng.randint(14, 128, (n, 1))),  # scales beyond float16
        np.repeat(np.ldexp(rng.uniform(-1, 1, (n, 8)), rng.randint(-149, 128, (n, 8))), 32, axis=1),  # constant blocks
        np.where(np.isfinite(bits), bits, 0),
        halves * (1 + 2.0**-11),  # half-way between two float16 numbers
        -np.abs(rng.standard_normal((n, 256))),
    ]
    return np.concatenate(rows).astype(np.float32)


def patterns() -> np.ndarray:
    """One float32 in 262,147: every sign and exponent with 32 mantissas each, NaNs and infinities among them: float32 (64, 256)."""
    return (np.arange(64 * 256, dtype=np.uint64) * 262147 % (1 << 32)).astype(np.uint32).view(np.float32).reshape(64, 256)


@cache
def _ggml() -> ctypes.CDLL:
    package = find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise SystemExit("llama-cpp-python is not installed; pip install 'glmrun[dev]' brings it")
    library = ctypes.CDLL(str(next((Path(package.origin).parent / "lib").glob("*ggml-base.*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    sizes, pointer = [ctypes.c_int64] * 3, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, *sizes, pointer]
    return library


def ggml_encode(format_name: str, rows: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """GGML's blocks of rows: float32 (n, columns) -> uint8 (n, row_bytes); weights as an importance matrix has them, (columns,)."""
    f = FORMATS[format_name]
    n, columns = rows.shape
    out = np.zeros((n, f.row_bytes(columns)), np.uint8)  # (n, row_bytes)
    importance = None if weights is None else weights.ctypes.data
    written = _ggml().ggml_quantize_chunk(f.ggml_type, rows.ctypes.data, out.ctypes.data, 0, n, columns, importance)
    assert written == out.size
    return out


def mean_squared_error(format_name: str, rows: np.ndarray, blocks: np.ndarray, weights: np.ndarray | None = None) -> float:
    """mean(weights * (rows - what blocks decode to)**2), in float64."""
    distance = FORMATS[format_name].decode(blocks).astype(np.float64) - rows
    return float(np.mean(distance**2 if weights is None else weights * distance**2))


def main() -> None:
    """Write both files."""
    arrays = {"rows": hard_rows(), "patterns": patterns()}
    arrays |= {name: ggml_encode(name, arrays["rows"]) for name in ("Q8_0", "Q5_0", "F16", "BF16")}
    arrays |= {f"{name}_patterns": ggml_encode(name, arrays["patterns"]) for name in ("F16", "BF16")}
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / "blocks.npz", **arrays)  # type: ignore[arg-type]
    error: dict[str, dict[str, dict[str, float]]] = {}
    for name in ("Q4_K", "Q6_K", "Q5_0", "Q8_0"):
        error[name] = {}
        for kind in KINDS:
            rows, weights = sample_rows(kind), sample_weights()
            plain = mean_squared_error(name, rows, ggml_encode(name, rows))
            weighted = mean_squared_error(name, rows, ggml_encode(name, rows, weights), weights)
            error[name][kind] = {"plain": plain, "weighted": weighted}
    about = {
        "made by": "python scripts/make_golden_blocks.py",
        "with": f"ggml_quantize_chunk of llama-cpp-python {version('llama-cpp-python')}",
        "holds": "GGML's bytes in blocks.npz, its mean squared errors on make_golden_blocks.sample_rows() here",
    }
    (GOLDEN / "blocks.json").write_text(json.dumps(about | {"mean squared error": error}, indent=2) + "\n")


if __name__ == "__main__":
    main()
