"""Nothing is lost and nothing half-done has the final name, whatever happens when; an interrupted conversion goes on."""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_folder import write_folder
from support.conversion import refused, run

import quant.publish
from quant.checkpoint import Checkpoint
from quant.convert import Progress, convert, plan
from quant.errors import Interrupted, UserError
from quant.publish import journal_path, partial_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source") / "Small-GLM")


@pytest.fixture(scope="module")
def wanted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file as an undisturbed conversion writes it."""
    path = tmp_path_factory.mktemp("wanted") / "x.gguf"
    run(folder, path)
    return path.read_bytes()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor enters the journal; the disk itself is not waited for."""
    monkeypatch.setattr(quant.publish, "_SYNC_BYTES", 0)
    monkeypatch.setattr(quant.publish, "sync_data", lambda file: None)


def resumed(steps: list[Progress]) -> int:
    """Tensors that an earlier run had finished."""
    return sum(bool(step.done and step.resumed) for step in steps)


def notes(steps: list[Progress]) -> list[str]:
    return [step.note for step in steps if step.note]


def interrupt(folder: Path, output: Path, after: int, **options: Any) -> None:
    """A conversion that is closed after so many tensors."""
    steps = convert(plan(Checkpoint.open(folder), "BF16"), output, **options)
    for step in steps:
        if step.tensors_done == after:
            break
    steps.close()


# --- going on ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
def test_an_interrupted_conversion_goes_on(folder: Path, tmp_path: Path, wanted: bytes) -> None:
    output = tmp_path / "x.gguf"
    for after in (7, 20, 40):
        interrupt(folder, output, after)
        assert sorted(p.name for p in tmp_path.iterdir()) == [".x.gguf.journal", ".x.gguf.partial"]
        assert partial_path(output).read_bytes()[:4] == bytes(4)  # never looks like a model
    steps = run(folder, output, n_threads=1)
    assert 39 <= resumed(steps) <= 40 and "continuing after" in notes(steps)[0]
    assert [step.tensor for step in steps if step.done] == [row.name for row in plan(Checkpoint.open(folder), "BF16").rows]
    assert output.read_bytes() == wanted and list(tmp_path.iterdir()) == [output]


def test_what_was_not_synced_is_not_kept(folder: Path, tmp_path: Path) -> None:
    interrupt(folder, tmp_path / "x.gguf", 5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("often")
def test_other_options_start_over(folder: Path, tmp_path: Path, wanted: bytes) -> None:
    output = tmp_path / "x.gguf"
    interrupt(folder, output, 9)
    steps = run(folder, output, "Q8_0")
    assert resumed(steps) == 0 and notes(steps) == ["starting over: the options changed since the attempt that was interrupted"]
    output.unlink()
    interrupt(folder, output, 9)
    os.utime(folder / "config.json")
    steps = run(folder, output)
    assert resumed(steps) == 0 and "the source changed" in notes(steps)[0]
    output.unlink()
    interrupt(folder, output, 9)
    steps = run(folder, output, restart=True)
    assert (resumed(steps), notes(steps), output.read_bytes()) == (0, [], wanted)


@pytest.mark.usefixtures("often")
def test_data_that_were_torn_are_written_again(folder: Path, tmp_path: Path, wanted: bytes) -> None:
    output = tmp_path / "x.gguf"
    interrupt(folder, output, 30)
    data = bytearray(partial_path(output).read_bytes())
    at = wanted.index(bytes(data[len(data) // 4 : len(data) // 4 + 64]))
    data[at] ^= 1
    partial_path(output).write_bytes(data)
    steps = run(folder, output)
    assert 0 < resumed(steps) < 30 and "is damaged in the partial file" in notes(steps)[1]
    assert output.read_bytes() == wanted


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("spoil", [b"", b"\0\xff", b"[1]\n", b'{"at": 0', b"{}\n" * 3])
def test_a_journal_that_is_torn_or_garbage(folder: Path, tmp_path: Path, wanted: bytes, spoil: bytes) -> None:
    output = tmp_path / "x.gguf"
    for keep in (0, 1, 5):
        interrupt(folder, output, 12)
        lines = journal_path(output).read_bytes().splitlines(keepends=True)
        journal_path(output).write_bytes(b"".join(lines[:keep]) + spoil)
        run(folder, output)
        assert output.read_bytes() == wanted and list(tmp_path.iterdir()) == [output]
        output.unlink()


@pytest.mark.usefixtures("often")
def test_a_partial_file_that_is_gone(folder: Path, tmp_path: Path, wanted: bytes) -> None:
    output = tmp_path / "x.gguf"
    interrupt(folder, output, 12)
    partial_path(output).unlink()
    assert "the unfinished file of an earlier attempt is gone" in notes(run(folder, output))[0]
    assert output.read_bytes() == wanted


@pytest.mark.usefixtures("often")
def test_an_output_that_appears_meanwhile_costs_nothing(folder: Path, tmp_path: Path, wanted: bytes) -> None:
    output, steps = tmp_path / "x.gguf", convert(plan(Checkpoint.open(folder), "BF16"), tmp_path / "x.gguf")
    next(steps)
    output.write_text("precious")
    with pytest.raises(Interrupted, match="exists already"):
        list(steps)
    assert output.read_text() == "precious"
    assert "exists already" in str(refused(folder, output))
    output.unlink()
    assert resumed(run(folder, output)) == len(plan(Checkpoint.open(folder), "BF16").rows) and output.read_bytes() == wanted


def test_split_files_are_published_together(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan(Checkpoint.open(folder), "BF16", split_bytes=2_000_000)
    for _ in convert(planned, tmp_path / "a.gguf"):
        assert not list(tmp_path.glob("a*"))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"a-{i + 1:05}-of-{len(names):05}.gguf" for i in range(len(names))] and len(names) > 2
    replace, left = os.replace, [2]

    def fail(*args: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        list(convert(planned, tmp_path / "b.gguf"))
    monkeypatch.setattr(os, "replace", replace)
    assert len(list(tmp_path.glob("b-*"))) == 2 and not (tmp_path / names[0].replace("a", "b")).exists()
    list(convert(planned, tmp_path / "b.gguf"))
    for name in names:
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("a-", "b-")).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2 * len(names)


# --- the machine stops -------------------------------------------------------------------------------------------------


class Stopped(BaseException):
    """The process ends here: nothing after it runs."""


class FakeSystem:
    """Calls that change files, counted; the one with number `at` and all after it fail, as `how` says.

    "stop": the process is gone before the call. "power": the same, and of what was written since the last sync, some is lost.
    An errno: only that call fails.
    """

    CALLS = ("pwrite", "write", "ftruncate", "fsync", "fdatasync", "replace", "unlink")

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, at: int, how: str | int) -> None:
        self.folder, self.at, self.how, self.n = str(folder), at, how, 0
        self.unsynced: dict[str, list[tuple[int, bytes]]] = {}  # by file: where, and what was there before
        self.real = {name: getattr(os, name) for name in self.CALLS}
        for name in self.CALLS:
            patch.setattr(os, name, lambda *args, name=name: self.call(name, *args))
        patch.setattr(quant.publish, "sync_data", lambda file: self.call("fdatasync", file))

    def call(self, name: str, *args: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
        if not path.startswith(self.folder):
            return self.real[name](*args)
        self.n += 1
        if isinstance(self.how, int) and self.n == self.at:
            raise OSError(self.how, os.strerror(self.how))
        if isinstance(self.how, str) and self.n >= self.at:
            raise Stopped
        if name == "pwrite":
            file, data, offset = args
            self.unsynced.setdefault(path, []).append((offset, os.pread(file, len(data), offset)))
        elif name in ("fsync", "fdatasync"):
            self.unsynced.pop(path, None)
            return None  # nothing would be learned from waiting for the disk
        elif name == "replace":
            assert path not in self.unsynced, "renamed before it was synced"
        return self.real[name](*args)

    def lose_power(self, rng: random.Random) -> None:
        """Some of what was not synced never reached the disk."""
        for path, writes in self.unsynced.items():
            with open(path, "r+b") as file:
                for offset, before in reversed(writes):
                    if rng.random() < 0.5:
                        file.seek(offset)
                        file.write(before)


def stop_at(folder: Path, output: Path, at: int, how: str | int) -> tuple[bool, BaseException | None]:
    """(was there such a call, how the conversion ended)."""
    error: BaseException | None = None
    with pytest.MonkeyPatch.context() as patch:
        system = FakeSystem(patch, output.parent, at, how)
        try:
            run(folder, output, n_threads=1)
        except (Stopped, UserError) as why:
            error = why
    if how == "power":
        system.lose_power(random.Random(at))
    return system.n >= at, error


def every_call(folder: Path, tmp_path: Path, how: str | int, step: int = 1) -> Iterator[tuple[Path, BaseException | None]]:
    """The output of a conversion that was disturbed at its 1st, 2nd, ... call."""
    at, reached = 1, True
    while reached:
        (tmp_path / str(at)).mkdir()
        output = tmp_path / str(at) / "x.gguf"
        reached, error = stop_at(folder, output, at, how)
        yield output, error
        shutil.rmtree(output.parent)
        at += step


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("how", ["stop", "power"])
def test_stopped_at_any_call(folder: Path, tmp_path: Path, wanted: bytes, how: str) -> None:
    n_stopped = n_resumed = 0
    for output, error in every_call(folder, tmp_path, how, step=2 if how == "power" else 3):
        n_stopped += error is not None
        if output.exists():
            assert output.read_bytes() == wanted
        if error is not None:
            steps = run(folder, output, n_threads=1)
            n_resumed += bool(resumed(steps))
        assert output.read_bytes() == wanted and list(output.parent.iterdir()) == [output]
    assert n_stopped > 60 and n_resumed > 0.9 * n_stopped - 8


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_call_that_fails(folder: Path, tmp_path: Path, wanted: bytes, code: int) -> None:
    n_failed = 0
    for output, error in every_call(folder, tmp_path, code, step=7):
        if error is None:  # a sync of the folder, which some file systems do not know, a leftover that stays, or no call at all
            assert output.read_bytes() == wanted
            continue
        n_failed += 1
        assert isinstance(error, Interrupted) and os.strerror(code) in str(error) and not output.exists()
        kept = "continues from there" in str(error)
        assert kept == partial_path(output).exists() == journal_path(output).exists()
        assert bool(resumed(run(folder, output))) == kept and output.read_bytes() == wanted
    assert n_failed > 30


def test_short_writes_are_continued(folder: Path, tmp_path: Path, wanted: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:1000], offset))
    run(folder, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == wanted


def test_killed_processes(folder: Path) -> None:
    """A short run of scripts/kill_convert.py, in a process of its own because it forks."""
    program = Path(__file__).parent.parent / "scripts" / "kill_convert.py"
    command = [
        sys.executable,
        str(program),
        "random",
        str(folder),
        "-q",
        "BF16",
        "-n",
        "5",
        "--seed",
        str(random.randrange(1 << 30)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(program.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, (command, done.stderr)
    totals = json.loads(done.stdout)
    assert totals["kills"] == 5 and totals["damaged"] == 0
