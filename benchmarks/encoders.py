"""Our block encoders beside GGML's: error left on seeded rows, and speed, both as ours / GGML's.

python benchmarks/encoders.py     # needs llama-cpp-python; prints Markdown, writes benchmarks/results/encoders.json
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from make_golden_blocks import KINDS, ggml_encode, mean_squared_error, sample_rows, sample_weights  # noqa: E402

from quant.formats import FORMATS  # noqa: E402

SEARCHED, EXACT = ("Q4_K", "Q6_K", "Q5_0", "Q8_0"), ("F16", "BF16")
ROWS, COLUMNS, REPEATS = 256, 2048, 5


def fastest(*encoders: Callable[[], np.ndarray]) -> list[float]:
    """Seconds of processor time each encoder needs at best; they take turns, so that a busy machine treats all alike."""
    best = [float("inf")] * len(encoders)
    for _ in range(REPEATS):
        for i, encode in enumerate(encoders):
            start = time.thread_time()
            encode()
            best[i] = min(best[i], time.thread_time() - start)
    return best


def measure(name: str) -> dict:
    """One format: error ratios per distribution (of the searched ones), identical bytes (of the others), speed ratio."""
    f, weights = FORMATS[name], sample_weights(COLUMNS)
    result: dict = {"format": name, "error ours/ggml": {}, "weighted error ours/ggml": {}}
    for kind in KINDS:
        x = sample_rows(kind, ROWS, COLUMNS)
        ours, theirs = f.encode(x), ggml_encode(name, x)
        if name in EXACT:
            result["identical bytes"] = result.get("identical bytes", True) and bool(np.array_equal(ours, theirs))
            continue
        result["error ours/ggml"][kind] = mean_squared_error(name, x, ours) / mean_squared_error(name, x, theirs)
        ours, theirs = f.encode(x, weights), ggml_encode(name, x, weights)
        ratio = mean_squared_error(name, x, ours, weights) / mean_squared_error(name, x, theirs, weights)
        result["weighted error ours/ggml"][kind] = ratio
    x = sample_rows("normal", ROWS, COLUMNS)
    ours_seconds, their_seconds = fastest(lambda: f.encode(x), lambda: ggml_encode(name, x))
    result["million weights/s"] = {"ours": x.size / ours_seconds / 1e6, "ggml": x.size / their_seconds / 1e6}
    result["speed ours/ggml"] = their_seconds / ours_seconds
    return result


def markdown(results: list[dict]) -> str:
    """The table of the printed report."""
    lines = [f"| | {' | '.join(KINDS)} | speed |", "|---|" + "---|" * (len(KINDS) + 1)]
    for r in results:
        speed = f"{r['speed ours/ggml']:.1f} x ({r['million weights/s']['ours']:,.0f} M/s)"
        if "identical bytes" in r:
            cells = [("same bytes" if r["identical bytes"] else "DIFFERENT")] * len(KINDS)
            lines.append(f"| {r['format']} | {' | '.join(cells)} | {speed} |")
            continue
        for label in ("error ours/ggml", "weighted error ours/ggml"):
            cells = [f"{r[label][kind]:.3f}" for kind in KINDS]
            note = ", weighted" if label.startswith("weighted") else ""
            lines.append(f"| {r['format']}{note} | {' | '.join(cells)} | {'' if note else speed} |")
    return "\n".join(lines)


def main() -> None:
    """Measure all formats, print the table, write the numbers."""
    results = [measure(name) for name in (*SEARCHED, *EXACT)]
    about = {
        "command": "python benchmarks/encoders.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, one thread",
        "with": {package: version(package) for package in ("llama-cpp-python", "numba", "numpy")},
        "rows": f"make_golden_blocks.sample_rows(), {ROWS} x {COLUMNS}; speed in processor time, best of {REPEATS} turns",
    }
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "encoders.json").write_text(json.dumps(about | {"results": results}, indent=2) + "\n")
    print("Squared error, ours / GGML's (below 1: less error), one thread:\n")
    print(markdown(results))


if __name__ == "__main__":
    main()
