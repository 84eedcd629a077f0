"""The measurement's arithmetic and names; how fast anything is, no test asserts."""

import csv
import io
import json
import math
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import glmrun
from glmrun.cli.bench_output import BenchOutput, bar_chart
from glmrun.cli.bench_table import BenchTable
from glmrun.engine.runner import MAX_TOKENS
from glmrun.measure.bench import N_UBATCH, Case, Choices, Result, cpu_name, measure, model_type
from glmrun.measure.bench_rows import compare, curves, read_rows, welch
from quant.errors import UserError

A, B = Path("a.gguf"), Path("b.gguf")

# llama-bench's fields in its order, with the type of its SQL column; then what only its JSON has.
SCHEMA = """
build_commit TEXT, build_number INTEGER, cpu_info TEXT, gpu_info TEXT, backends TEXT, model_filename TEXT, model_type TEXT,
model_size INTEGER, model_n_params INTEGER, n_batch INTEGER, n_ubatch INTEGER, n_threads INTEGER, cpu_mask TEXT, cpu_strict INTEGER,
poll INTEGER, type_k TEXT, type_v TEXT, n_gpu_layers INTEGER, n_cpu_moe INTEGER, split_mode TEXT, main_gpu INTEGER,
no_kv_offload INTEGER, flash_attn INTEGER, devices TEXT, tensor_split TEXT, tensor_buft_overrides TEXT, load_mode TEXT,
embeddings INTEGER, no_op_offload INTEGER, no_host INTEGER, fit_target INTEGER, fit_min_ctx INTEGER, n_prompt INTEGER,
n_gen INTEGER, n_depth INTEGER, test_time TEXT, avg_ns INTEGER, stddev_ns INTEGER, avg_ts REAL, stddev_ts REAL
"""
FIELDS = [column.split()[0] for column in SCHEMA.split(",")]
LISTS = ["samples_ns", "samples_ts"]
BOOLEANS = {"cpu_strict", "no_kv_offload", "embeddings", "no_host"}  # true or false in its JSON


# Of its Markdown table: (width, right-aligned).
WIDTHS = [(30, 0), (10, 1), (10, 1), (10, 0), (7, 1), (15, 1), (20, 1)]


class Stopwatch:
    """A model that remembers the calls and says they took a millisecond per prompt token, ten per generated one."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None) -> None:
        self.path, self.n_ctx, self.n_threads, self.n_batch = path, n_ctx, n_threads or 2, 512
        self.config = SimpleNamespace(vocab_size=100, num_hidden_layers=47)
        tensor = SimpleNamespace(shape=(4, 256), n_bytes=4 * 144)
        self.file = SimpleNamespace(tensors={"x": tensor}, metadata={"general.file_type": 15})
        self.weights = SimpleNamespace(model={"cache_type": 8}, bytes_per_token=5_000_000)  # GGML's number of Q8_0
        self.calls: list[tuple[str, int]] = []
        self.n_cached = 0
        self.runner = self
        self.wanted = 0

    @property
    def hits(self) -> tuple[int, int]:
        return 4 * self.wanted, 3 * self.wanted

    def close(self) -> None:
        self.calls.append(("close", 0))

    def truncate(self, n_tokens: int) -> None:
        self.calls.append(("truncate", n_tokens))
        self.n_cached = min(self.n_cached, n_tokens)

    def prefill(self, tokens: list[int], n_ubatch: int = 512) -> float:
        assert all(0 <= token < 100 for token in tokens) and self.n_cached + len(tokens) <= self.n_ctx
        self.calls.append(("prefill" if n_ubatch == 512 else f"prefill by {n_ubatch}", len(tokens)))
        self.n_cached += len(tokens)
        return len(tokens) / 1000

    def decode(self, count: int) -> float:
        self.wanted += count
        self.calls.append(("decode", count))
        self.n_cached += count
        assert self.n_cached <= self.n_ctx
        return count / 100


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Stopwatch]:
    models: list[Stopwatch] = []

    def load(path: Path, n_ctx: int, n_threads: int | None, kv_type: str | None, draft: str) -> Stopwatch:
        models.append(Stopwatch(path, n_ctx, n_threads))
        return models[-1]

    monkeypatch.setattr(glmrun, "load", load, raising=False)
    monkeypatch.setattr("glmrun.measure.bench.Steps", lambda model: model)
    monkeypatch.setattr(glmrun, "__version__", "0.1.0", raising=False)
    return models


def _results(todo: list[Case], **options: Any) -> list[Result]:
    return [result for _, _, result in measure(todo, **options) if result is not None]


def test_cases_come_in_llama_benchs_order() -> None:
    todo = Choices([512], [64, 0], [(16, 4)], [0, 4096]).cases(A)
    names = ["pp512", "tg64", "pp16+tg4"]
    assert [c.name for c in todo] == [*names, *(f"{name} @ d4096" for name in names)]
    assert [(c.n_threads, c.n_ubatch) for c in Choices([8], [], n_threads=[1, 2], n_ubatch=[64, 128]).cases(A)] == [
        (1, 64), (2, 64), (1, 128), (2, 128),
    ]  # fmt: skip


def test_the_step_of_a_prompt_is_the_engines() -> None:
    assert N_UBATCH == MAX_TOKENS


def test_a_case_is_warmed_up_then_measured_from_the_same_state(loaded: list[Stopwatch]) -> None:
    results = _results(Choices([64], [8], [], [0, 32], [3]).cases(A), repetitions=2)
    assert len(loaded) == 1 and loaded[0].n_ctx == 96 and loaded[0].n_threads == 3
    pp, tg = [("truncate", 0), ("prefill", 64)], [("truncate", 0), ("decode", 8)]
    deep_pp, deep_tg = [("truncate", 32), ("prefill", 64)], [("truncate", 32), ("decode", 8)]
    first = [("truncate", 0), ("truncate", 32), ("prefill", 32), ("prefill", 64)]
    assert loaded[0].calls == 3 * pp + 3 * tg + first + 2 * deep_pp + 3 * deep_tg
    assert [result.samples_ns for result in results] == [[64_000_000] * 2, [80_000_000] * 2] * 2
    assert [round(result.asdict()["avg_ts"], 6) for result in results] == [1000.0, 100.0] * 2


def test_a_prompt_and_an_answer_are_one_test(loaded: list[Stopwatch]) -> None:
    (result,) = _results(Choices([], [], [(64, 8)], [0], [None], [16]).cases(A), repetitions=1, warmup=False)
    assert loaded[0].calls == [("truncate", 0), ("prefill by 16", 64), ("decode", 8)]
    row = result.asdict()
    assert (row["n_prompt"], row["n_gen"], row["n_ubatch"], row["avg_ns"]) == (64, 8, 16, 144_000_000)
    assert round(row["avg_ts"], 6) == 500.0 and result.wide(None)["ttft_ms"] == 64.0


def test_every_number_of_threads_is_loaded_once(loaded: list[Stopwatch]) -> None:
    todo = [case for path in (A, B) for case in Choices([16], [4], n_threads=[1, 2]).cases(path)]
    _results(todo, repetitions=1, warmup=False)
    assert [(m.path, m.n_threads) for m in loaded] == [(A, 1), (A, 2), (B, 1), (B, 2)]


def test_rows_have_the_names_types_and_order_of_llama_bench(loaded: list[Stopwatch]) -> None:
    row = _results(Choices([512], [], n_threads=[2]).cases(A), repetitions=1)[0].asdict()
    assert list(row) == FIELDS + LISTS
    python = {"TEXT": str, "INTEGER": int, "REAL": float}
    for column in SCHEMA.split(","):
        name, kind = column.split()
        assert type(row[name]) is (bool if name in BOOLEANS else python[kind]), name
    assert (row["model_type"], row["model_size"], row["model_n_params"]) == ("deepseek2 30B.A3B Q4_K - Medium", 576, 1024)
    assert (row["n_prompt"], row["n_gen"], row["avg_ns"], row["stddev_ns"], row["stddev_ts"]) == (512, 0, 512_000_000, 0, 0.0)
    assert row["type_k"] == row["type_v"] == "q8_0"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["test_time"])
    assert json.loads(json.dumps(row)) == row


def _printed(form: str, rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    out = BenchOutput(form, stream, BenchTable())
    for row in rows:
        out.row(row)
    out.end()
    return stream.getvalue()


def test_every_form_says_the_same(loaded: list[Stopwatch]) -> None:
    rows = [result.asdict() for result in _results(Choices([512], [4]).cases(Path('it\'s, "a".gguf')), repetitions=2)]
    assert json.loads(_printed("json", rows)) == rows
    assert [json.loads(line) for line in _printed("jsonl", rows).splitlines()] == rows
    heading, *lines = _printed("csv", rows).splitlines()
    assert heading == ",".join(FIELDS) and all(line.startswith('"') for line in lines)
    plain = [{n: int(v) if isinstance(v, bool) else v for n, v in row.items() if n in FIELDS} for row in rows]
    values = [{n: str(v) for n, v in row.items()} for row in plain]
    assert list(csv.DictReader([heading, *lines])) == values
    database = sqlite3.connect(":memory:")
    database.executescript(_printed("sql", rows))
    database.row_factory = sqlite3.Row
    assert [dict(row) for row in database.execute("SELECT * FROM llama_bench")] == [{n: row[n] for n in FIELDS} for row in rows]
    columns = database.execute("SELECT name, type FROM pragma_table_info('llama_bench')").fetchall()
    assert [f"{name} {kind}" for name, kind in columns] == [" ".join(column.split()) for column in SCHEMA.split(",")]


def test_a_consumer_of_llama_benchs_json_takes_every_field(loaded: list[Stopwatch]) -> None:
    """As llama.cpp's own comparison reads it: a table of the known fields, each object without its samples inserted whole."""
    rows = json.loads(_printed("json", [r.asdict() for r in _results(Choices().cases(A), repetitions=2)]))
    database = sqlite3.connect(":memory:")
    database.execute(f"CREATE TABLE llama_bench({SCHEMA})")
    for row in rows:
        for name in LISTS:
            del row[name]
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        database.execute(f"INSERT INTO llama_bench({names}) VALUES({marks})", tuple(row.values()))
    assert database.execute("SELECT n_prompt, n_gen FROM llama_bench").fetchall() == [(512, 0), (0, 128)]


def test_what_only_we_measure_stands_apart(loaded: list[Stopwatch], monkeypatch: pytest.MonkeyPatch) -> None:
    results = _results(Choices([512], [8]).cases(A), repetitions=2)
    pp, tg = (replace(result, disk_bytes=0) for result in results)  # whatever this process has really read meanwhile
    found = tg.wide(2e9)  # 100 tokens a second of 5 MB each
    assert (found["weights_gb_s"], found["bandwidth_share"], found["ttft_ms"]) == (0.5, 0.25, None)
    assert found["disk_hit_rate"] == 0.75 and pp.wide(2e9)["disk_hit_rate"] is None  # nothing was read from a disk
    found = replace(tg, disk_bytes=4 * sum(tg.samples_ns)).wide(2e9)
    assert found["disk_gb_s"] == 4.0 and "     4.00 |" in BenchTable(measured=True).row(tg.asdict() | found)
    found = pp.wide(2e9)
    assert (found["weights_gb_s"], found["bandwidth_share"], found["ttft_ms"]) == (None, None, 512.0)
    assert set(found).isdisjoint(FIELDS + LISTS)
    if Path("/proc/self/status").exists():
        assert 10_000_000 < found["peak_memory_bytes"] < 1 << 45
    table = BenchTable(["n_ubatch"], measured=True)
    lines = [table.heading().splitlines()[0], *(table.row(r.asdict() | r.wide(2e9)) for r in (pp, tg))]
    heading, first, second = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert heading[5:] == ["n_ubatch", "test", "t/s", "ttft ms", "peak memory", "GB/s", "of bandwidth", "disk GB/s", "hit rate"]
    assert first[5:9] == ["512", "pp512", "1000.00 ± 0.00", "512.0"] and first[10:] == ["", "", "", ""]
    assert second[8] == "" and second[10:] == ["0.50", "25%", "", "75.0%"]
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setenv("COLUMNS", "80")
    line, below = BenchTable(["n_ubatch"], measured=True).row(tg.asdict() | tg.wide(2e9)).splitlines()
    assert len(line) <= 80 and re.fullmatch(r"  (peak memory: .* MiB, )?GB/s: 0\.50, of bandwidth: 25%, hit rate: 75.0%", below)


def test_mean_and_spread_are_those_of_the_samples() -> None:
    row = Result(Case(A, 2, 0, 10), {}, "", [10**9, 2 * 10**9], [0, 0], 0.0, 0.0, 0, None).asdict()
    assert (row["avg_ns"], row["stddev_ns"]) == (1_500_000_000, 707_106_781)
    assert row["samples_ts"] == [10.0, 5.0] and row["avg_ts"] == 7.5 and abs(row["stddev_ts"] - 3.5355339) <= 1e-6


def test_the_markdown_is_llama_benchs() -> None:
    row = {"model_type": "deepseek2 30B.A3B Q4_K - Medium", "model_size": 18_123_246_080, "model_n_params": 29_943_393_024}
    row |= {
        "backends": "numba-cpu",
        "n_threads": 2,
        "avg_ts": 48.123,
        "stddev_ts": 0.456,
        "n_prompt": 512,
        "n_gen": 0,
        "n_depth": 0,
    }
    lines = f"{BenchTable().heading()}\n{BenchTable().row(row)}".splitlines()
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


# ---- comparing and drawing -------------------------------------------------------------------------------------------


def _row(samples: list[float], **changes: Any) -> dict[str, Any]:
    row = {"model_type": "m", "model_filename": "f.gguf", "n_threads": 2, "n_prompt": 0, "n_gen": 8, "n_depth": 0, "n_ubatch": 512}
    return row | {"samples_ts": samples, "avg_ts": sum(samples) / len(samples)} | changes


@pytest.mark.parametrize(
    ("x", "y", "p"),
    [  # from tables of Student's distribution: t = 1.812 at 10 degrees of freedom leaves 0.1, 2.776 at 4 leaves 0.05
        ([-1, 1, -1, 1, -1, 1], [d + 1.812461 * (12 / 30) ** 0.5 for d in (-1, 1, -1, 1, -1, 1)], 0.1),
        ([-1, 0, 1], [d + 2.776445 * (2 / 3) ** 0.5 for d in (-1, 0, 1)], 0.05),
        ([1, 2], [1, 2], 1.0),
    ],
)
def test_welchs_test_is_that_of_the_tables(x: list[float], y: list[float], p: float) -> None:
    found = welch(x, y)
    assert found is not None and abs(found - p) <= 1e-4


def test_welchs_test_weighs_unequal_spread() -> None:
    """By Welch's formula and Student's density, integrated in t with its own factor."""
    found = welch([1, 2, 3, 4], [2, 12, 7, 9, 3])
    v1, v2 = (5 / 3) / 4, 17.3 / 5
    t, freedom = 4.1 / (v1 + v2) ** 0.5, (v1 + v2) ** 2 / (v1**2 / 3 + v2**2 / 4)
    factor = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    steps = (np.arange(100_000) + 0.5) * t / 100_000
    inside = 2 * factor * float(np.sum((1 + steps**2 / freedom) ** (-(freedom + 1) / 2))) * t / 100_000
    assert found is not None and abs(found - (1 - inside)) <= 1e-6
    assert welch([1], [2, 3]) is None and welch([1, 1], [1, 1]) == 1.0 and welch([1, 1], [2, 2]) == 0.0


def test_two_results_are_compared_test_by_test(tmp_path: Path) -> None:
    a = [_row([10, 10.1, 9.9]), _row([5, 5.1], n_depth=64), _row([7.0], n_depth=128), _row([1, 2], n_gen=9)]
    b = [_row([20, 20.2, 19.8]), _row([5.05, 5.06], n_depth=64), _row([8.0], n_depth=128)]
    (tmp_path / "a.json").write_text(json.dumps(a))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, b)))
    found, alone = compare(read_rows(str(tmp_path / "a.json")), read_rows(str(tmp_path / "b.jsonl")))
    assert [d.test for d in found] == ["tg8", "tg8 @ d64", "tg8 @ d128"] and alone == 1
    assert [d.verdict for d in found] == ["faster", "unclear", "one sample only"]
    assert abs(found[0].relative - 1.0) <= 1e-9 and compare(b, a)[0][0].verdict == "slower"
    (tmp_path / "c.json").write_text('[{"samples_ts": [1]}]')
    with pytest.raises(UserError, match="not the output of glmrun bench or llama-bench"):
        read_rows(str(tmp_path / "c.json"))


def test_results_may_differ_in_their_threads_or_their_model() -> None:
    one, two = [_row([10.0], n_threads=1), _row([8.0], n_threads=1, n_depth=64)], [_row([15.0])]
    found, alone = compare(one, two)
    assert [(d.model, d.threads, d.test, d.relative) for d in found] == [("m", "1 and 2", "tg8", 0.5)] and alone == 1
    (other,), alone = compare(two, [_row([30.0], model_type="n")])
    assert (other.model, other.threads, other.relative, alone) == ("m and n", "2", 1.0, 0)
    assert compare(two, [_row([1.0], model_type="n", n_threads=1)]) == ([], 2)  # both
    assert compare([*one, _row([9.0], n_threads=4)], two) == ([], 4)  # which of its threads?
    assert compare([*one, *two], two)[0][0].threads == "2"


def test_curves_are_by_depth_or_by_threads() -> None:
    deep = [_row([4.0], n_depth=64), _row([8.0]), _row([100.0], n_prompt=512, n_gen=0)]
    assert curves(deep) == ("depth", {"tg8": {"f": [(0, 8.0), (64, 4.0)]}, "pp512": {"f": [(0, 100.0)]}})
    assert curves([_row([4.0], n_threads=1), _row([8.0])]) == ("threads", {"tg8": {"f": [(1, 4.0), (2, 8.0)]}})
    by, found = curves([_row([4.0], n_threads=1), _row([8.0]), _row([2.0], n_depth=9)])
    assert by == "depth" and list(found["tg8"]) == ["f, 1 threads", "f, 2 threads"]
    chart = bar_chart(*curves([*deep, _row([0.65], model_filename="a/g.v1.gguf")])).splitlines()
    assert chart == [
        "tokens a second by depth", "", "tg8, f", f"   d0 {'█' * 40} 8.00", f"  d64 {'█' * 20} 4.00", "",
        "tg8, g.v1", "   d0 ███▎ 0.65", "", "pp512, f", f"  d0 {'█' * 40} 100.00",
    ]  # fmt: skip
