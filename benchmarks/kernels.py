"""Each kernel of the token path beside the machine's limit: GB/s of weights for one activation vector, GMAC/s for many.

python benchmarks/kernels.py [--threads 2] [--rounds 5]

Rows of random blocks, as wide as the full-size model's: matrices larger than any cache for one vector, 512 vectors for the
tiles. The best of the rounds, all threads together.
"""

import argparse
import time

import numpy as np
from machine import int8_peak
from numba import int64, njit

from glmrun.kernels.activations import FEW, row_bytes
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.layout import (
    ACTIVATION,
    CODES,
    FLOATS,
    STEP,
    WEIGHT,
    WORKER,
    activation_record,
    step_record,
    weight_record,
    worker_array,
)
from glmrun.kernels.matmul import linear, scratch_bytes
from glmrun.kernels.rows import reads_codes, round_row
from glmrun.kernels.team import Team, wait
from glmrun.measure.bandwidth import read_bandwidth
from quant.formats import FORMATS

COLUMNS = dict.fromkeys(FORMATS, 2048) | {"Q6_K": 1536, "Q5_0": 192, "Q5_1": 192}
LARGE, ROWS, MANY = 512 << 20, 2048, 512  # bytes for one vector; rows and vectors for the tiles


@kernel(int64(step_record, weight_record, activation_record, worker_array, int64, int64, int64, int64, int64), entry=True)
def _matmul(s, m, x, workers, out, out_stride, flags, thread, n_threads):
    w = workers[thread]
    w.flags, w.thread, w.n_threads, w.ticket, w.passed = flags, thread, n_threads, -1, 0
    wait(w)
    linear(s, m, x, (out, out_stride, 0), w)
    wait(w)
    return 0


@njit
def _round(x, r, few, weight_format):
    round_row(x, r, few, CODES if reads_codes(weight_format) else FLOATS, 0)


@njit
def _scratch_bytes(columns, n):
    return scratch_bytes(columns, n)


def random_rows(name: str, rows: int, columns: int) -> np.ndarray:
    """Random codes with tame scales, uint8 (rows, row_bytes)."""
    form, rng = FORMATS[name], np.random.default_rng(0)
    if form.block_length == 1:
        return form.encode(np.full((rows, columns), 0.5, np.float32))
    blocks = rng.integers(0, 256, (rows * columns // form.block_length, form.block_bytes), dtype=np.uint8)
    for offset in form.halves:
        blocks[:, offset : offset + 2] = np.full(len(blocks), 2e-3, np.float16).view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":  # scales are powers of two
        blocks[:, 0] = 119
    return blocks.reshape(rows, -1)  # uint8 (rows, row_bytes)


class Activations:
    """Normal values in both forms; `record` points into the arrays held here."""

    def __init__(self, n: int, columns: int, weight_format: int) -> None:
        self.floats = np.random.default_rng(1).standard_normal((n, columns)).astype(np.float32)  # float32 (n, columns)
        self.codes = np.zeros((n, row_bytes(columns)), np.uint8)  # uint8 (n, row_bytes)
        self.record = np.zeros(1, ACTIVATION)[0]
        self.record["floats"], self.record["floats_stride"] = self.floats.ctypes.data, self.floats.strides[0]
        self.record["codes"], self.record["codes_stride"] = self.codes.ctypes.data, self.codes.strides[0]
        self.record["columns"] = columns
        for r in range(n):
            _round(self.record, r, n < FEW, weight_format)


def seconds(team: Team, name: str, rows: int, n: int, rounds: int) -> tuple[float, int]:
    """(best seconds of one matmul of n activation vectors, bytes of its weights)."""
    form, columns = FORMATS[name], COLUMNS.get(name, 2048)
    blocks = random_rows(name, rows, columns)
    weight = np.array([(blocks.ctypes.data, form.ggml_type, rows, columns, blocks.shape[1], 0)], WEIGHT)[0]
    x = Activations(n, columns, form.ggml_type)
    out = np.zeros((n, rows), np.float32)  # float32 (n, rows)
    step, workers = np.zeros(1, STEP)[0], np.zeros(team.n_threads, WORKER)
    step["n_tokens"], step["n_few"] = n, n if n < FEW else 0
    scratch = [np.zeros(_scratch_bytes(columns, n) + 64, np.uint8) for _ in workers]
    for worker, memory in zip(workers, scratch, strict=True):
        worker["scratch"] = -(-memory.ctypes.data // 64) * 64
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        team.run(_matmul, step, weight, x.record, workers, out.ctypes.data, out.strides[0])
        best = min(best, time.perf_counter() - start)
    return best, blocks.nbytes


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    team = Team(options.threads)
    bandwidth, peak = read_bandwidth(team), int8_peak(team)
    print(f"{team.n_threads} threads: {bandwidth / 1e9:.1f} GB/s read, {peak / 1e9:.0f} GMAC/s int8\n")
    print("| format | columns | one vector, GB/s | of the bandwidth | 512 vectors, GMAC/s | of the peak |")
    print("|---|---|---|---|---|---|")
    for name in FORMATS:
        columns = COLUMNS.get(name, 2048)
        row_bytes = FORMATS[name].row_bytes(columns)
        one, n_bytes = seconds(team, name, LARGE // row_bytes, 1, options.rounds)
        many, _ = seconds(team, name, ROWS, MANY, options.rounds)
        speed, products = n_bytes / one, ROWS * columns * MANY / many
        print(
            f"| {name} | {columns} | {speed / 1e9:.1f} | {speed / bandwidth:.0%} | {products / 1e9:.0f} | {products / peak:.0%} |"
        )


if __name__ == "__main__":
    main()
