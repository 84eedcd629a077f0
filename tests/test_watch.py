"""A model file that another program changes ends the answer with one line, not the process with a signal."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_model import Tiny

import glmrun
from glmrun.gguf.open import open_gguf
from quant.errors import UserError


@pytest.fixture
def copy(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> Path:
    return Path(shutil.copy(tiny_gguf("Q4_K_M").path, tmp_path / "model.gguf"))


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_shortened_file(copy: Path, size: int) -> None:
    """Class G46."""
    model = glmrun.load(copy, n_ctx=64)
    model.logits([1, 2])
    os.truncate(copy, size)
    for _ in range(2):
        with pytest.raises(UserError, match="changed by another program"):
            model.logits([1, 2])


def test_during_an_answer(copy: Path) -> None:
    answer = glmrun.load(copy, n_ctx=64).generate([1, 2, 3], max_tokens=20, temperature=0)
    chunks = [next(answer) for _ in range(4)]
    os.utime(copy)
    with pytest.raises(UserError, match="changed by another program"):
        list(answer)
    assert chunks[-1].token is not None


def test_a_replaced_file_is_still_the_old_one(copy: Path, tmp_path: Path) -> None:
    """Class G45."""
    model = glmrun.load(copy, n_ctx=64)
    before = model.logits([1, 2])
    (tmp_path / "other").write_bytes(b"other")
    os.replace(tmp_path / "other", copy)
    assert (model.logits([1, 2]) == before).all()


def test_a_lease_makes_a_writer_wait(copy: Path) -> None:
    file = open_gguf(copy)
    if not file.watched[0].lease():
        pytest.skip("the system gives no leases here")
    file.watched[0].check()
    writer = subprocess.Popen([sys.executable, "-c", f"import os; os.truncate({str(copy)!r}, 0)"])
    try:
        for _ in range(500):
            try:
                file.watched[0].check()
            except UserError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the writer was not noticed")
        assert writer.wait(30) == 0  # the lease was given back
    finally:
        writer.kill()
        writer.wait()
    assert copy.stat().st_size == 0


def test_no_descriptor_is_lost(copy: Path, tmp_path: Path) -> None:
    """Class G27: also where the file is refused half-way."""
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(copy.read_bytes()[:5000])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    for _ in range(20):
        open_gguf(copy)
        with pytest.raises(UserError):
            open_gguf(bad)
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_a_file_that_shrinks_and_grows_while_it_is_opened(copy: Path) -> None:
    """The header is read, not mapped, and weights are touched later: a line or a file, whatever moment it is."""
    spoil = f"""
import os, itertools
whole = open({str(copy)!r}, "rb").read()
for size in itertools.cycle((0, 100, 5000, len(whole) // 2, len(whole) - 1)):
    with open({str(copy)!r}, "r+b", buffering=0) as file:
        file.truncate(size)
        os.sched_yield()
        file.seek(0)
        file.write(whole)
    os.sched_yield()
"""
    spoiler = subprocess.Popen([sys.executable, "-c", spoil])
    refused, end = 0, time.monotonic() + 60
    try:
        while refused < 200 and time.monotonic() < end:
            try:
                assert open_gguf(copy).tensors
            except UserError as why:
                assert "\n" not in str(why)
                refused += 1
    finally:
        spoiler.kill()
        spoiler.wait()
    assert refused == 200


def test_a_script_that_never_lets_go_of_its_model_ends_in_silence(copy: Path) -> None:
    """The interpreter takes its modules apart before the last objects."""
    script = f"import glmrun; model = glmrun.load({str(copy)!r}, n_ctx=64, n_threads=1)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
