"""Outputs that are refused, and why; what was there before stays as it was."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.checkpoint_folder import SMALL, bf16, source_tensors, write_folder
from support.conversion import refused, run

from quant.checkpoint import Checkpoint
from quant.convert import convert, plan
from quant.errors import UserError
from quant.publish import journal_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source") / "Small-GLM")


def test_output_that_exists(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.gguf"
    output.write_text("precious")
    assert "exists already" in str(refused(folder, output))
    assert output.read_text() == "precious"
    run(folder, output, force=True)
    assert output.read_bytes()[:4] == b"GGUF" and list(tmp_path.iterdir()) == [output]


def test_old_output_survives_a_failed_replacement(tmp_path: Path) -> None:
    tensors = source_tensors(SMALL)
    tensors["lm_head.weight"][1][0, :1] = bf16(np.float32(np.nan))
    output = tmp_path / "x.gguf"
    output.write_text("precious")
    refused(write_folder(tmp_path / "a", tensors=tensors), output, force=True)
    assert output.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [("missing/x.gguf", "missing", "does not exist"), (".", "failed", "a folder"), ("pipe", "failed", "regular file")],
)
def test_output_that_cannot_be(folder: Path, tmp_path: Path, name: str, kind: str, said: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    error = refused(folder, tmp_path / name, force=True)
    assert said in str(error) and error.kind == kind


def test_output_that_is_a_source(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    shard = folder / "model-00002-of-00003.safetensors"
    before = shard.read_bytes()
    (tmp_path / "link.gguf").symlink_to(shard)
    for output in (shard, tmp_path / "link.gguf", folder / "config.json"):
        assert "files it would be made from" in str(refused(folder, output, force=True))
    assert shard.read_bytes() == before


def test_disk_too_small_is_told_before_the_first_byte(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = refused(folder, tmp_path / "x.gguf")
    assert "1,000,000 free; nothing was written" in str(error) and error.kind == "failed"


def test_a_file_too_large_for_the_disk_fails_at_once(folder: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for it; it needs a process of its own."""
    program = (
        "import resource, sys; from quant.checkpoint import Checkpoint; from quant.convert import convert, plan\n"
        "from quant.errors import UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "try: list(convert(plan(Checkpoint.open(sys.argv[1]), 'BF16'), sys.argv[2]))\n"
        "except UserError as error: print(error); sys.exit(1)\n"
    )
    command = [sys.executable, "-c", program, str(folder), str(tmp_path / "x.gguf")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 1 and done.stderr == ""
    assert os.strerror(errno.EFBIG) in done.stdout and done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_two_conversions_never_share_a_file(folder: Path, tmp_path: Path) -> None:
    with open(journal_path(tmp_path / "x.gguf"), "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another process is writing" in str(refused(folder, tmp_path / "x.gguf"))


def test_source_that_changes_meanwhile(tmp_path: Path) -> None:
    """Class S13."""
    folder = write_folder(tmp_path / "a")
    planned = plan(Checkpoint.open(folder), "BF16")
    with open(folder / "model-00003-of-00003.safetensors", "ab") as shard:
        shard.write(b"more")
    with pytest.raises(UserError, match="changed while it was being read"):
        list(convert(planned, tmp_path / "x.gguf"))
    assert not (tmp_path / "x.gguf").exists() and not (tmp_path / ".x.gguf.partial").exists()
