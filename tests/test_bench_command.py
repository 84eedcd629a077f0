"""`glmrun bench`: a file, a source or a server is measured; results are compared and drawn."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.openai_server import HELLO, MODELS, SCRIPTS, delta, openai_server
from test_bench import FIELDS, LISTS, _row
from test_cli import glmrun as run
from test_cli import refused

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.cli import _told
from glmrun.cli.bench import _note_machine
from glmrun.kernels.compiled import cache as kernels
from glmrun.machine import available_cores
from glmrun.measure.bench import Choices
from glmrun.measure.doctor import kernel_target
from glmrun.measure.server_bench import LONG_ANSWER, measure_server
from glmrun.store.nano import CHECKPOINT, nano_path
from glmrun.terminal.interrupt import orderly_end
from glmrun.terminal.plot import write
from quant.errors import UserError


def test_the_command_measures_what_was_asked_for(tmp_path: Path) -> None:
    arguments = ["-m", "nano", "-p", "8-16*2", "-n", "0", "-pg", "4,2", "-d", "0,4", "-t", "1", "-ub", "8", "-r", "2"]
    done = run("bench", *arguments, "-o", "jsonl", "-oe", "md", "--wide", "--plot", "--kv-type", "q8_0")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    tests = [(8, 0, 0), (16, 0, 0), (4, 2, 0), (8, 0, 4), (16, 0, 4), (4, 2, 4)]
    assert [(row["n_prompt"], row["n_gen"], row["n_depth"]) for row in rows] == tests
    assert all(row["n_ubatch"] == 8 and row["type_k"] == "q8_0" and len(row["samples_ns"]) == 2 for row in rows)
    assert all(row["ttft_ms"] > 0 and row["weights_gb_s"] is None for row in rows)
    told = done.stderr.decode()
    table = [line for line in told.splitlines() if line.startswith("| deepseek2")]
    assert [line.split("|")[9].strip() for line in table] == ["pp8", "pp16", "pp4+tg2", "pp8 @ d4", "pp16 @ d4", "pp4+tg2 @ d4"]
    assert f"kernels for {kernel_target()}" in told and "kernels ready after" in told and "numba" in told
    assert "tokens a second by depth" in told
    narrow = run("bench", "-m", "nano", "-p", "0", "-n", "1", "-r", "1", "--no-warmup", "--delay", "0.1")
    assert len(narrow.stdout.splitlines()) == 3 and narrow.returncode == 0


def test_the_command_measures_drafts() -> None:
    done = run(
        "bench",
        "-m",
        "nano",
        "-p",
        "0",
        "-n",
        "20",
        "-d",
        "0,6",
        "-r",
        "1",
        "--draft",
        "mtp:2",
        "-o",
        "jsonl",
        "-oe",
        "md",
        "--wide",
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["n_gen"], row["n_depth"], row["draft"], row["weights_gb_s"]) for row in rows] == [
        (20, 0, "mtp:2", None), (20, 6, "mtp:2", None),
    ]  # fmt: skip
    assert "mtp:2 |" in done.stderr.decode()
    assert "mtp:3" in refused("bench", "-m", "nano", "--draft", "mtp:9", code=2)


@pytest.mark.parametrize(
    ("arguments", "begun"),
    [
        (["bench", "-m", str(CHECKPOINT), "-q", "q8_0", "-p", "64", "-n", "0", "-r", "100000"], "bench-*/nano-Q8_0.gguf"),
        (["perplexity", "nano", "-c", "16", "--kl-divergence-base", "x.kld"], ".x.kld.*"),
        (["imatrix", "nano", "-f", str(CHECKPOINT / "heldout.txt"), "-c", "16", "-o", "x.gguf"], ".x.gguf.partial"),
    ],
)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_lost_terminal_leaves_no_large_file(how: signal.Signals, arguments: list[str], begun: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_CACHE_DIR": str(tmp_path)}
    if kernels.folder is not None:
        (tmp_path / "kernels").symlink_to(kernels.folder.parent)
    process = subprocess.Popen([sys.executable, "-m", "glmrun", *arguments], cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    while not list(tmp_path.glob(begun)):
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert process.returncode == 128 + how
    assert {path.name for path in tmp_path.iterdir()} <= {"kernels", "nano"}


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts a program
    try:
        with orderly_end():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_while_a_module_is_imported_is_a_signal() -> None:
    """What is raised in __set_name__ becomes a RuntimeError."""

    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            raise SystemExit(129)

    with pytest.raises(RuntimeError) as caught:
        type("Owner", (), {"field": Named()})
    assert _told(caught.value, []) == 129


def _finalizer() -> None:
    class Dying:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    Dying()


def _weak_reference() -> None:
    gone = set()  # a set can be referred to weakly
    told = weakref.ref(gone, lambda _: signal.raise_signal(signal.SIGTERM))
    del gone
    assert told() is None


def _foreign_code() -> None:
    ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(signal.SIGTERM))()


@pytest.mark.parametrize("place", [_finalizer, _weak_reference, _foreign_code])
def test_a_signal_where_exceptions_are_dropped_is_not_lost(place: Callable[[], None]) -> None:
    """LLVM's objects have finalizers: Python prints what is raised there, and went on."""
    hook = sys.unraisablehook
    with pytest.raises(SystemExit) as ended, orderly_end():
        place()
        time.sleep(30)
    assert ended.value.code == 128 + signal.SIGTERM and sys.unraisablehook is hook


def test_each_quantization_of_a_source_is_measured_and_gone(tmp_path: Path) -> None:
    cache = {**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_CACHE_DIR": str(tmp_path)}
    if kernels.folder is not None:  # the compiled kernels stay where they are
        (tmp_path / "kernels").symlink_to(kernels.folder.parent)
    arguments = ["-m", str(CHECKPOINT), "-q", "q6_k,Q8_0", "-p", "4", "-n", "0", "-r", "1", "-o", "json"]
    done = run("bench", *arguments, env=cache)
    rows = json.loads(done.stdout)
    assert [row["model_type"].split()[-1] for row in rows] == ["Q6_K", "Q8_0"], done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "kernels"] == []
    assert "converts one source" in refused("bench", "-m", "a,b", "-q", "Q8_0", code=2)
    rows = json.loads(run("bench", "nano", "-q", "Q4_K_M", *arguments[4:]).stdout)
    assert [row["model_type"].split()[-3:] for row in rows] == [["Q4_K", "-", "Medium"]]
    error = refused("bench", "-m", str(nano_path()), "-q", "Q4_K_M", code=1)
    assert "is quantized already; -q converts the checkpoint's folder" in error and "requantize" not in error
    assert "Q4_K_M, Q6_K, Q8_0" in refused("bench", "-q", "Q9", code=2)


def test_an_error_keeps_the_rows_before_it() -> None:
    """A list of files can be hours of work, of which json prints nothing before the end."""
    few = ("-p", "4", "-n", "0", "-r", "1", "--no-warmup", "-o", "json")
    done = run("bench", "-m", "nano", "-m", __file__, *few)
    assert done.returncode == 1 and b"not a GGUF file" in done.stderr
    assert [row["n_prompt"] for row in json.loads(done.stdout)] == [4]
    assert "not a GGUF file" in refused("bench", "-m", __file__, *few, code=1)


def test_ctrl_c_prints_what_is_done() -> None:
    arguments = ["-m", "nano", "-p", "8", "-n", "4000", "-r", "50", "-o", "json"]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    program = [sys.executable, "-m", "glmrun", "bench", *arguments, "-oe", "jsonl"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stderr:
            if line.startswith(b"{"):  # the first test is done, the second will take minutes
                break
        process.send_signal(signal.SIGINT)
        rows = json.loads(process.stdout.read())
        process.stderr.read()
    assert process.returncode == 130 and [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0)]


class Remote:
    """A server that takes 2 ms a prompt token, of which it knew 10, and 20 ms for each token after the first."""

    name, url, path = "org/GLM-4.7", "http://host/v1", "org/GLM-4.7 at http://host/v1"

    def __init__(self, most: int = 1000) -> None:
        self.most = most
        self.asked: list[tuple[str, int]] = []

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        messages, max_tokens = request.messages, request.max_tokens or self.most
        self.asked.append((messages[-1]["content"], max_tokens))
        n, made = 10 + len(messages[-1]["content"].split()), min(max_tokens, self.most)
        stats = Stats(n_prompt=n, n_cached=10, prompt_seconds=0.002 * (n - 10))
        yield Chunk(text="x", stats=stats)
        yield Chunk(finish_reason="stop", stats=replace(stats, n_generated=made, generate_seconds=0.02 * (made - 1)))


def test_a_server_is_measured_by_its_own_counts() -> None:
    remote: Any = Remote(most=5)
    cases = Choices([64], [8], [(32, 4)]).cases(Path(remote.name))
    found = [result for _, _, result in measure_server(remote, cases, 2, warmup=False) if result is not None]
    rows = [result.asdict() for result in found]
    assert [list(row) for row in rows] == [FIELDS + LISTS] * 3
    n_ask = len(remote.asked[2][0].split())
    seconds = [0.128, 0.16, 0.002 * 32 + 0.02 * 4]  # 8 tokens at the speed of the 5 that came
    assert [row["samples_ns"] for row in rows] == [[round(1e9 * s)] * 2 for s in seconds]
    assert [round(row["avg_ts"], 3) for row in rows] == [500.0, 50.0, 250.0]
    assert [found[0].wide(None)["ttft_ms"], found[1].wide(None)["ttft_ms"]] == [128.0, None]
    assert [row["model_type"] for row in rows] == ["org/GLM-4.7"] * 3 and rows[0]["cpu_info"] == "http://host/v1"
    texts, limits = zip(*remote.asked, strict=True)
    assert limits == (1, 1, 8, 8, 4, 4) and [len(t.split()) for t in texts] == [64] * 2 + [n_ask] * 2 + [32 + n_ask] * 2
    assert texts[0] != texts[1] and texts[0].split()[8:] == texts[1].split()[8:]
    with pytest.raises(UserError, match="ended at its first token"):
        list(measure_server(Remote(most=1), cases[1:], 1))  # type: ignore[arg-type]


def test_the_command_measures_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCRIPTS, LONG_ANSWER, [*HELLO[1:3], delta("stop"), {"usage": {"completion_tokens": 2}}])
    with openai_server() as server:
        done = run("bench", "--url", server.url, "-p", "16", "-n", "8", "-r", "2", "-o", "jsonl", "-oe", "md", "--plot")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert done.returncode == 0 and [(row["n_prompt"], row["n_gen"]) for row in rows] == [(16, 0), (0, 8)], done.stderr
        assert all(row["model_type"] == MODELS[0]["id"] and len(row["samples_ns"]) == 2 for row in rows)
        assert f"{server.url}: tokens as the server counts them" in done.stderr.decode() and b"kernels" not in done.stderr
        assert "pp16, GLM-4.7-Flash" in done.stderr.decode() and len(server.requests) == 6
        assert "the server decides about depths" in refused("bench", "--url", server.url, "-d", "8", code=2)
        assert "ended at its first token" in refused("bench", "--url", server.url, "-p", "0", "-n", "0", "-pg", "4,4", code=1)


def test_threads_beyond_the_cores_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    cores = available_cores()
    _note_machine([1, None, cores], 0.0)
    assert "are measured" not in (few := capsys.readouterr().err) and f"threads: 1, {cores}, {cores} of {cores};" in few
    _note_machine([cores + 6], 0.0)
    said = capsys.readouterr().err
    assert f"-t {cores + 6}: this machine has {cores} cores for glmrun, so {cores} threads are measured" in said
    assert f"threads: {cores} of {cores};" in said


def test_two_files_are_compared_on_the_command_line(tmp_path: Path) -> None:
    for name, samples in (("a", [10.0, 10.1, 9.9]), ("b", [12.0, 12.1, 11.9])):
        (tmp_path / f"{name}.json").write_text(json.dumps([_row(samples)]))
    done = run("bench", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    model, heading, row = done.stdout.decode().split("\n")[:3]
    assert model == "m, 2 threads" and heading.split()[:3] == ["test", "a", "t/s"]
    assert row.split() == ["tg8", "10.00", "12.00", "+20.0%", "0.000", "faster"]
    (tmp_path / "c.json").write_text(json.dumps([_row([5.0, 5.1, 4.9], n_threads=1)]))
    done = run("bench", "--compare", str(tmp_path / "c.json"), str(tmp_path / "b.json"))
    assert done.stdout.decode().startswith("m, 1 and 2 threads\n") and b"+140.0%" in done.stdout
    assert "no such file" in refused("bench", "--compare", "a.json", "b.json", code=3).lower()


def test_a_plot_is_a_picture_or_one_line_that_says_what_is_missing(tmp_path: Path) -> None:
    assert "ends in .png or .svg" in refused("bench", "-m", "nano", "--plot-out", "x.gif", code=2)
    assert "folder does not exist" in refused("bench", "-m", "nano", "--plot-out", str(tmp_path / "no" / "x.svg"), code=3)
    (tmp_path / "matplotlib.py").write_text("raise ImportError")
    hidden = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}
    assert "pip install 'glmrun[plot]'" in refused("bench", "-m", "nano", "--plot-out", "x.svg", code=1, env=hidden)


def test_curves_become_pictures(tmp_path: Path) -> None:
    for suffix, start in ((".svg", b"<?xml"), (".png", b"\x89PNG")):
        write(str(tmp_path / f"x{suffix}"), "cpu", "depth", {"tg8": {"f": [(0, 8.0), (64, 4.0)]}, "pp8": {"f": [(0, 9.0)]}})
        assert (tmp_path / f"x{suffix}").read_bytes().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "x.svg"]
    for place in ("nosuch", "x.png"):  # nothing can be cleared away below a file, nor on a disk that can't be written
        with pytest.raises(OSError) as why:  # told with the name that the user wrote
            write(str(tmp_path / place / "x.svg"), "cpu", "depth", {"tg8": {"f": [(0, 8.0), (64, 4.0)]}})
        assert why.value.filename == str(tmp_path / place / "x.svg")
