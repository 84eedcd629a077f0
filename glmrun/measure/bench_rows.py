"""Rows of llama-bench's JSON, ours or llama-bench's own: read from files, compared, arranged for a plot."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from glmrun.measure.bench import case_name
from quant.errors import UserError
from quant.text import decode_text

Row = dict[str, Any]
SIGNIFICANT = 0.05  # a difference that chance makes less often than this is called one


def read_rows(path: str) -> list[Row]:
    """The rows of a JSON or JSON-lines file. Raises UserError for another file (OSError if it can't be read)."""
    text = decode_text(Path(path).read_bytes(), path)
    try:
        rows = (
            json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]
        )
        for row in rows:
            samples = row["samples_ts"]
            if not samples or not all(isinstance(x, (int, float)) and 0 < x < float("inf") for x in samples):
                raise ValueError("samples_ts")
            _key(row)
    except (ValueError, KeyError, TypeError, RecursionError) as why:
        raise UserError(f"{path}: not the output of glmrun bench or llama-bench as json or jsonl: {why}") from None
    return list(rows)


def _key(row: Row) -> tuple[str, str, str]:
    """What makes two rows the same test: (model, threads, test)."""
    name = case_name(int(row["n_prompt"]), int(row["n_gen"]), int(row["n_depth"]))
    return str(row["model_type"]), str(int(row["n_threads"])), name


@dataclass(frozen=True)
class Difference:
    """One test in two files: tokens a second of each, b / a - 1, and how often chance alone makes such a difference."""

    model: str  # both, joined by "and", where that is what differs; so are the threads
    threads: str
    test: str
    a: float
    b: float
    relative: float
    p_value: float | None  # None with a single sample, which says nothing about chance

    @property
    def verdict(self) -> str:
        if self.p_value is None:
            return "one sample only"
        if self.p_value >= SIGNIFICANT:
            return "unclear"
        return "faster" if self.b > self.a else "slower"


def compare(a: Sequence[Row], b: Sequence[Row]) -> tuple[list[Difference], int]:
    """The tests that are in both, in a's order, and how many are in one only. Several rows of the same test count as one.

    If there are none, and each file has one number of threads or one model, those may differ.
    """
    for among in ("", "threads", "model"):
        first, second = _samples(a, among), _samples(b, among)
        settings = [_settings(rows, among) for rows in (a, b)]
        if any(len(each) > 1 for each in settings) or not (both := [key for key in first if key in second]):
            continue
        differing = " and ".join(value for each in settings for value in each)
        found = []
        for key in both:
            x, y = first[key], second[key]
            model, threads, test = key
            setup = (model if among != "model" else differing, threads if among != "threads" else differing, test)
            found.append(
                Difference(
                    *setup, statistics.fmean(x), statistics.fmean(y), statistics.fmean(y) / statistics.fmean(x) - 1, welch(x, y)
                )
            )
        return found, len(first.keys() ^ second.keys())
    return [], len(_samples(a).keys() ^ _samples(b).keys())


def _settings(rows: Sequence[Row], among: str) -> list[str]:
    """The numbers of threads, or the models, that a file holds, in its order; nothing where nothing may differ."""
    return list(dict.fromkeys(_key(row)[("model", "threads").index(among)] for row in rows)) if among else []


def _samples(rows: Sequence[Row], among: str = "") -> dict[tuple[str, str, str], list[float]]:
    """Speeds by test; with what may differ left out of the key."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        model, threads, test = _key(row)
        key = (model if among != "model" else "", threads if among != "threads" else "", test)
        found.setdefault(key, []).extend(row["samples_ts"])
    return found


def welch(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Welch's t-test, two-sided: the probability of means at least so far apart if there were no difference.

    None if a sample is alone; variances need not be equal.
    """
    if len(x) < 2 or len(y) < 2:
        return None
    vx, vy = statistics.variance(x) / len(x), statistics.variance(y) / len(y)
    apart = abs(statistics.fmean(x) - statistics.fmean(y))
    if vx + vy == 0:
        return 1.0 if apart == 0 else 0.0
    freedom = (vx + vy) ** 2 / (vx**2 / (len(x) - 1) + vy**2 / (len(y) - 1))
    # With t = sqrt(freedom) * tan(angle), Student's density becomes cos(angle)**(freedom - 1) on 0 to pi / 2.
    least = np.arctan(apart / sqrt(vx + vy) / sqrt(freedom))
    tail, whole = (np.cos(_midpoints(start, pi / 2)) ** (freedom - 1) for start in (least, 0.0))
    return float(tail.mean() * (pi / 2 - least) / (whole.mean() * pi / 2))


def _midpoints(start: float, end: float, count: int = 20_000) -> np.ndarray:
    return start + (end - start) * (np.arange(count) + 0.5) / count  # float64 (count,)


# ---- arranged for a plot ---------------------------------------------------------------------------------------------


Curves = dict[str, dict[str, list[tuple[int, float]]]]


def curves(rows: Sequence[Row]) -> tuple[str, Curves]:
    """(what varies: "depth" or "threads", {test: {label: [(that, tokens a second)]}}): one curve for each test and model.

    Threads if several were measured and only one depth, otherwise depth.
    """
    threads, depths = ({int(row[name]) for row in rows} for name in ("n_threads", "n_depth"))
    by = "n_threads" if len(threads) > 1 and len(depths) == 1 else "n_depth"
    found: Curves = {}
    for row in rows:
        test = found.setdefault(case_name(int(row["n_prompt"]), int(row["n_gen"]), 0), {})
        test.setdefault(", ".join(_label(row, by, rows)), []).append((int(row[by]), float(row["avg_ts"])))
    return by.removeprefix("n_"), {test: {label: sorted(points) for label, points in some.items()} for test, some in found.items()}


def _label(row: Row, by: str, rows: Sequence[Row]) -> Iterator[str]:
    """The parts of a curve's name: the file always, the other things only where they differ."""
    yield Path(str(row["model_filename"])).name.removesuffix(".gguf")
    for name, text in (("n_threads", "{} threads"), ("n_depth", "d{}"), ("n_ubatch", "ubatch {}")):
        if name != by and len({other[name] for other in rows}) > 1:
            yield text.format(row[name])
