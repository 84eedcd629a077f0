"""The measurement's arithmetic and names; how fast anything is, no test asserts."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import glmrun
from glmrun.measure.bench import Case, Result, cases, cpu_name, measure, model_type
from glmrun.terminal.tables import BenchTable

A, B = Path("a.gguf"), Path("b.gguf")

# What llama-bench's JSON calls its columns, as far as they mean anything here.
FIELDS = """
build_commit build_number cpu_info gpu_info backends model_filename model_type model_size model_n_params n_batch n_ubatch n_threads
type_k type_v n_prompt n_gen n_depth test_time avg_ns stddev_ns avg_ts stddev_ts samples_ns samples_ts
""".split()  # noqa: SIM905


# Of its Markdown table: (width, right-aligned).
WIDTHS = [(30, 0), (10, 1), (10, 1), (10, 0), (7, 1), (15, 1), (20, 1)]


class Stopwatch:
    """A model that remembers the calls and says they took a millisecond per prompt token, ten per generated one."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None) -> None:
        self.path, self.n_ctx, self.n_threads, self.n_batch = path, n_ctx, n_threads or 2, 512
        self.config = SimpleNamespace(vocab_size=100, num_hidden_layers=47)
        tensor = SimpleNamespace(shape=(4, 256), n_bytes=4 * 144)
        self.file = SimpleNamespace(tensors={"x": tensor}, metadata={"general.file_type": 15})
        self.calls: list[tuple[str, int]] = []

    def reset(self) -> None:
        self.calls.append(("reset", 0))

    def prefill_tokens(self, tokens: list[int]) -> float:
        assert all(0 <= token < 100 for token in tokens)
        self.calls.append(("prefill", len(tokens)))
        return len(tokens) / 1000

    def decode_tokens(self, count: int) -> float:
        self.calls.append(("decode", count))
        return count / 100


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Stopwatch]:
    models: list[Stopwatch] = []

    def load(path: Path, n_ctx: int, n_threads: int | None, kv_type: str | None) -> Stopwatch:
        models.append(Stopwatch(path, n_ctx, n_threads))
        return models[-1]

    monkeypatch.setattr(glmrun, "load", load, raising=False)
    monkeypatch.setattr(glmrun, "__version__", "0.1.0", raising=False)
    return models


def _results(todo: list[Case], **options: Any) -> list[Result]:
    return [result for _, _, result in measure(todo, **options) if result is not None]


def test_files_stand_side_by_side() -> None:
    todo = cases([A, B], [512], [64, 0], [0, 4096], [None])
    assert [(c.path, c.name) for c in todo] == [
        (path, name) for path in (A, B) for name in ("pp512", "tg64", "pp512 @ d4096", "tg64 @ d4096")
    ]  # fmt: skip


def test_a_case_is_warmed_up_then_measured_from_the_same_state(loaded: list[Stopwatch]) -> None:
    results = _results(cases([A], [64], [8], [0, 32], [3]), repetitions=2)
    assert len(loaded) == 1 and loaded[0].n_ctx == 96 and loaded[0].n_threads == 3
    pp, tg = [("reset", 0), ("prefill", 64)], [("reset", 0), ("decode", 8)]
    deep_pp, deep_tg = [("reset", 0), ("prefill", 32), ("prefill", 64)], [("reset", 0), ("prefill", 32), ("decode", 8)]
    assert loaded[0].calls == 3 * pp + 3 * tg + 3 * deep_pp + 3 * deep_tg
    assert [result.samples_ns for result in results] == [[64_000_000] * 2, [80_000_000] * 2] * 2
    assert [round(result.asdict()["avg_ts"], 6) for result in results] == [1000.0, 100.0] * 2


def test_every_file_and_number_of_threads_is_loaded_once(loaded: list[Stopwatch]) -> None:
    _results(cases([A, B], [16], [4], [0], [1, 2]), repetitions=1, warmup=False)
    assert [(m.path, m.n_threads) for m in loaded] == [(A, 1), (A, 2), (B, 1), (B, 2)]


def test_rows_have_the_names_and_numbers_of_llama_bench(loaded: list[Stopwatch]) -> None:
    row = _results(cases([A], [512], [], [0], [2]), repetitions=1)[0].asdict()
    assert [name for name in row if name in FIELDS] == FIELDS
    assert (row["model_type"], row["model_size"], row["model_n_params"]) == ("deepseek2 30B.A3B Q4_K - Medium", 576, 1024)
    assert (row["n_prompt"], row["n_gen"], row["avg_ns"], row["stddev_ns"], row["stddev_ts"]) == (512, 0, 512_000_000, 0, 0.0)
    assert json.loads(json.dumps(row)) == row


def test_mean_and_spread_are_those_of_the_samples() -> None:
    row = Result(Case(A, 2, 0, 10), {}, "", [10**9, 2 * 10**9], 0.0, 0.0).asdict()
    assert (row["avg_ns"], row["stddev_ns"]) == (1_500_000_000, 707_106_781)
    assert row["samples_ts"] == [10.0, 5.0] and row["avg_ts"] == 7.5 and abs(row["stddev_ts"] - 3.5355339) <= 1e-6


def test_the_markdown_is_llama_benchs() -> None:
    row = {"model_type": "deepseek2 30B.A3B Q4_K - Medium", "model_size": 18_123_246_080, "model_n_params": 29_943_393_024}
    row |= {"backends": "numba-cpu", "n_threads": 2, "avg_ts": 48.123, "stddev_ts": 0.456}
    lines = f"{BenchTable().heading()}\n{BenchTable().row(row, 'pp512')}".splitlines()
    assert [re.sub(" +", " ", line) for line in lines] == [
        "| model | size | params | backend | threads | test | t/s |",
        "| " + " | ".join("-" * (n - right) + ":" * right for n, right in WIDTHS) + " |",
        "| deepseek2 30B.A3B Q4_K - Medium | 16.88 GiB | 29.94 B | numba-cpu | 2 | pp512 | 48.12 ± 0.46 |",
    ]
    assert len(lines[0]) == len(lines[1])


def test_a_model_is_called_as_llama_cpp_calls_it() -> None:
    assert model_type(47, 18) == "deepseek2 30B.A3B Q6_K"
    assert model_type(4, 7) == "deepseek2 ?B Q8_0"
    assert model_type(4, None) == "deepseek2 ?B unknown"


def test_the_processor_has_a_name() -> None:
    assert cpu_name().strip() and "\n" not in cpu_name()
