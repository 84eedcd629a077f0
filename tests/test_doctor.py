"""`glmrun doctor`: facts, problems with advice, and that a broken part is a finding and not a crash."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
from support.command_line import exit_code
from test_cli import glmrun

from glmrun.machine import Memory
from glmrun.measure import doctor
from glmrun.measure.bandwidth import Bandwidth
from glmrun.measure.doctor import Report, cpu_quota, examine, folder_bytes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "memory_bandwidth", lambda again: Bandwidth(40e9, 2, "x", "2026-01-02T00:00:00Z"))


def test_everything_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("doctor", "--json") in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"facts", "problems", "hints"}
    facts = found["facts"]
    assert set(facts) == {"versions", "processor", "kernels", "memory", "folders"} and all(facts.values())
    assert facts["versions"]["numba"] and facts["processor"]["threads"] >= 1 and facts["memory"]["bytes_per_second"] == 40e9
    assert facts["kernels"]["target"] and facts["folders"]["cache"]["path"]


def test_the_text_names_problem_and_advice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "memory", lambda: Memory(1 << 33, 5, True))
    assert exit_code("doctor") == 1
    out = capsys.readouterr().out
    assert "problem: only 5 bytes of memory are available\n  -> close other programs" in out and "No problem" not in out
    assert "40.0 GB/s" in out and "processor\n" in out


def test_settings_that_stop_every_command_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text("temprature = 1\n")
    monkeypatch.setenv("GLMRUN_CONFIG", str(config))
    monkeypatch.setenv("GLMRUN_SED", "3")
    assert exit_code("doctor") == 1
    out = capsys.readouterr().out
    assert f"problem: {config}: line 1: there is no setting 'temprature'" in out and "hint: GLMRUN_SED means nothing" in out


def test_a_value_that_no_command_takes_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('kv_type = "q4"\ncontext = "big"\nthreads = 2\ndraft = "ngram"\n')
    monkeypatch.setenv("GLMRUN_CONFIG", str(config))
    monkeypatch.setenv("GLMRUN_LOG_FORMAT", "xml")
    assert exit_code("doctor", "--json") == 1
    found = {problem["found"] for problem in json.loads(capsys.readouterr().out)["problems"]}
    assert f"{config}, line 1: kv_type: 'q4' is not one of f32, f16, q8_0" in found
    assert any(what.startswith(f"{config}, line 2: context: 'big' is not a size") for what in found)
    assert any(what.startswith("GLMRUN_LOG_FORMAT: log_format: 'xml' is not one of") for what in found)
    assert not any("threads: " in what or "draft: " in what for what in found)


def test_a_broken_part_is_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(report: Report) -> dict[str, object]:
        raise ImportError("no such symbol: \x1b[31m")

    monkeypatch.setattr(doctor, "_processor", broken)
    assert exit_code("doctor") == 1
    out = capsys.readouterr().out
    assert "processor can't be examined: ImportError: no such symbol: ␛[31m" in out and "\x1b" not in out and "folders\n" in out


def test_without_compiling_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert any("NUMBA_DISABLE_JIT" in what for what, _ in examine().problems)


def test_every_library_of_ours_is_looked_for() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {*doctor.LIBRARIES} == {re.split(r"[<>=!~ ;\[]", wanted)[0] for wanted in project["dependencies"]} | {"llvmlite"}


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("numpy", "no-such-library-of-ours"))
    report = Report()
    assert doctor._versions(report)["no-such-library-of-ours"] is None
    assert report.problems == [("the library no-such-library-of-ours is not installed", "pip install no-such-library-of-ours")]


def test_processor_limits_of_control_groups(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert cpu_quota(membership, tmp_path) is None
    (tmp_path / "a" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    assert cpu_quota(membership, tmp_path) == 1.5
    membership.write_text("3:cpu,cpuacct:/jobs\n1:memory:/\n")
    (tmp_path / "cpu" / "jobs").mkdir(parents=True)
    (tmp_path / "cpu" / "jobs" / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu" / "jobs" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quota(membership, tmp_path) is None
    (tmp_path / "cpu" / "jobs" / "cpu.cfs_quota_us").write_text("50000\n")
    assert cpu_quota(membership, tmp_path) == 0.5


def test_sizes_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(bytes(100))
    (tmp_path / "y").write_bytes(bytes(11))
    os.symlink(tmp_path, tmp_path / "a" / "loop")
    os.symlink(tmp_path / "y", tmp_path / "z")
    assert folder_bytes(tmp_path) == 111 and folder_bytes(tmp_path / "nothing") == 0


def test_a_folder_that_cannot_be_written_is_a_problem(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = glmrun("doctor", "--json", env={**os.environ, "GLMRUN_CACHE_DIR": str(blocked / "cache"), "PYTHONPATH": os.getcwd()})
    found = json.loads(done.stdout)
    assert done.returncode == 1 and any("every start compiles" in p["found"] for p in found["problems"])


def test_a_target_that_this_processor_cannot_run_is_refused_in_one_line() -> None:
    for name in ("neon-i8mm", "AVX2", "avx9"):
        done = glmrun("run", "nano", "x", env={**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_SIMD": name})
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"GLMRUN_SIMD" in done.stderr
