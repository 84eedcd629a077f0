"""Writing while another process takes a part of one core: its speed as a share of the quiet speed and of one thread alone.

python benchmarks/busy_core.py FILE [--threads 2] [--tokens 96] [--rounds 5]

In each round, in turns: quiet, one thread alone, beside a process that is busy for 3 of every 10 ms, beside one that is always busy
(both bound to the first core). Medians of the rounds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import glmrun
from glmrun.measure.steps import Steps

_BUSY = """
import os, sys, time
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
share = float(sys.argv[1])
while True:
    end = time.perf_counter() + 0.01 * share
    while time.perf_counter() < end:
        pass
    if share < 1:
        time.sleep(0.01 * (1 - share))
"""


@contextmanager
def busy(share: float) -> Iterator[None]:
    """A process that takes this share of the first core."""
    process = subprocess.Popen([sys.executable, "-c", _BUSY, str(share)])
    time.sleep(0.3)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    engines = {n: Steps(glmrun.load(options.model, n_ctx=512, n_threads=n)) for n in (options.threads, 1)}

    def write(threads: int) -> float:
        steps = engines[threads]
        steps.truncate(0)
        steps.prefill(range(100, 116))
        return options.tokens / steps.decode(options.tokens, 77)

    rows: dict[str, list[float]] = {"quiet": [], "one thread": [], "30 % of a core": [], "a whole core": []}
    for _ in range(options.rounds):
        rows["quiet"].append(write(options.threads))
        rows["one thread"].append(write(1))
        for name, share in (("30 % of a core", 0.3), ("a whole core", 1.0)):
            with busy(share):
                rows[name].append(write(options.threads))
    medians = {name: statistics.median(values) for name, values in rows.items()}
    print("| beside | tokens a second | of quiet | of one thread alone |\n|---|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.1f} | {value / medians['quiet']:.0%} | {value / medians['one thread']:.0%} |")


if __name__ == "__main__":
    main()
