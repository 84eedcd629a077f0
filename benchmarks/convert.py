"""glmrun convert beside llama.cpp's quantizer on the same BF16 file, two threads each, in turns; needs llama-cpp-python.

convert.py model-BF16.gguf [-q RECIPE] [--rounds N]    prints Markdown, writes benchmarks/results/convert.json
    (scripts/make_synthetic.py --layers 2 -q BF16 -o /dev/shm/model-BF16.gguf writes one with the real shapes, into memory: what
    both write goes beside it, and on a disk its speed would be measured, because only glmrun waits until the disk has it all)
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import llama  # noqa: E402

from glmrun.gguf.source import GGUFSource  # noqa: E402
from glmrun.store.nano import CHECKPOINT  # noqa: E402
from quant.checkpoint import Checkpoint  # noqa: E402
from quant.convert import convert, plan  # noqa: E402
from quant.plan import Source  # noqa: E402


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """(seconds, seconds of CPU in all threads): the second tells where other programs were at work, too."""
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cpu


def _ours(source: Source, output: Path, quantization: str) -> None:
    for _ in convert(plan(source, quantization), output, n_threads=2):
        pass


def measure(path: Path, quantization: str, rounds: int) -> dict[str, Any]:
    """The best of `rounds` runs of both: seconds, seconds of CPU, bytes, and the ratios."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        source, out = GGUFSource.open(path), Path(folder) / "x.gguf"
        _ours(Checkpoint.open(CHECKPOINT), out, quantization)  # compiles
        out.unlink()
        row: dict[str, Any] = {"weights": plan(source, quantization).n_weights, "seconds": {}, "cpu_seconds": {}, "bytes": {}}
        work = {"glmrun": partial(_ours, source), "llama-quantize": partial(llama.quantize, path)}
        for name in list(work) * rounds:
            seconds, cpu = _timed(partial(work[name], out, quantization))
            row["seconds"][name] = min(seconds, row["seconds"].get(name, seconds))
            row["cpu_seconds"][name] = min(cpu, row["cpu_seconds"].get(name, cpu))
            row["bytes"][name] = out.stat().st_size
            out.unlink()
    for kind in ("seconds", "cpu_seconds"):
        row[f"ratio of {kind}"] = row[kind]["llama-quantize"] / row[kind]["glmrun"]
    return row


def main() -> None:
    """Measure the recipes, print the table, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("-q", "--quant", action="append", help="default: Q4_K_M and Q6_K")
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    target = ROOT / "benchmarks" / "results" / "convert.json"
    known = json.loads(target.read_text()) if target.exists() else {}
    results = known.get("results", {}) | {
        name: measure(args.source, name, args.rounds) for name in args.quant or ("Q4_K_M", "Q6_K")
    }
    about = {
        "command": "python benchmarks/convert.py",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, 2 threads",
        "with": {package: version(package) for package in ("llama-cpp-python", "numba", "numpy")},
        "source": args.source.name,
    }
    target.write_text(json.dumps(known | about | {"results": results}, indent=2) + "\n")
    print("| million weights a second | glmrun | llama-quantize | ratio | ratio of CPU seconds |\n|---|---|---|---|---|")
    for recipe, row in results.items():
        ours, theirs = (row["weights"] / 1e6 / row["seconds"][name] for name in ("glmrun", "llama-quantize"))
        ratios = f"{row['ratio of seconds']:.1f} | {row['ratio of cpu_seconds']:.1f}"
        print(f"| {recipe} | {ours:.0f} | {theirs:.0f} | {ratios} |")


if __name__ == "__main__":
    main()
