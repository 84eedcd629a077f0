"""A disk that fails, a file that is shortened or replaced, Ctrl-C while it is read: one line, and everything is as before.

The disk is a double: pages of the mapped file are put on an empty file, where reading fails as on a broken disk.
"""

import ctypes
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.served import served
from support.tiny_model import Tiny

from glmrun.engine.model import Model
from glmrun.gguf.watch import Watched
from glmrun.kernels.disk import BLIND, LOOKS, PAGE
from quant.errors import UserError

FIXED = 0x10  # of mmap: at this address, in the place of what is there


class Disk:
    """The pages of some bytes of a mapped file, which can be broken and mended."""

    def __init__(self, path: Path, mapping: np.ndarray, data: np.ndarray, empty: Path) -> None:
        self._path, self._empty = path, empty
        empty.touch()
        self._start = -(-data.ctypes.data // PAGE) * PAGE
        self._n_bytes = (data.ctypes.data + data.nbytes) // PAGE * PAGE - self._start
        self._offset = self._start - mapping.ctypes.data
        assert self._n_bytes > 0 and self._offset % PAGE == 0

    def _map(self, path: Path, offset: int) -> None:
        mapped = ctypes.CDLL(None, use_errno=True).mmap
        mapped.restype = ctypes.c_void_p
        mapped.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        with open(path, "rb") as file:
            flags = mmap.MAP_SHARED | FIXED
            found = mapped(self._start, self._n_bytes, mmap.PROT_READ, flags, file.fileno(), offset)
        assert found == self._start

    def breaks(self) -> None:
        """From now on nobody can read there."""
        self._map(self._empty, 0)

    def is_mended(self) -> None:
        """All is as before."""
        self._map(self._path, self._offset)


@pytest.fixture
def model(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> Iterator[Model]:
    path = shutil.copy(tiny_gguf("Q4_K_M").path, tmp_path / "model.gguf")
    with Model(path, 256, 2) as found:
        assert found.prefault.wait(60) and found.finite()
        if not found.prefault.populates:
            pytest.skip("this system does not report what a disk fails to read")
        found.prefault.from_disk = LOOKS
        yield found


def disk_of(model: Model, tensor: str, folder: Path) -> Disk:
    return Disk(model.path, model.file.mappings[0], model.file.tensors[tensor].data, folder / "empty")


@pytest.mark.parametrize("tensor", ["blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight", "blk.2.ffn_down_exps.weight"])
@pytest.mark.parametrize("way", [LOOKS, BLIND])
def test_a_disk_that_fails(model: Model, tmp_path: Path, tensor: str, way: int) -> None:
    model.prefault.from_disk = way
    disk = disk_of(model, tensor, tmp_path)
    tokens = np.random.default_rng(3).integers(0, 1000, 150).tolist()
    expected = {n: model.logits(tokens[:n]) for n in (1, 4, 150)}
    disk.breaks()
    for n in expected:
        with pytest.raises(UserError, match=r"model\.gguf: the disk failed while it was read; ask again") as why:
            model.logits(tokens[:n])
        assert why.value.kind == "failed"
    disk.is_mended()
    assert all(np.array_equal(model.logits(tokens[:n]), logits) for n, logits in expected.items())


def test_in_the_middle_of_an_answer(model: Model, tmp_path: Path) -> None:
    """What was said stays, and the next answer continues as if nothing had happened."""
    whole = [chunk.token for chunk in model.generate([5, 6, 7], max_tokens=12, temperature=0)]
    disk = disk_of(model, "blk.2.ffn_up_exps.weight", tmp_path)
    answer = model.generate([5, 6, 7], max_tokens=12, temperature=0)
    tokens = [token for _ in range(6) if (token := next(answer).token) is not None]
    disk.breaks()
    with pytest.raises(UserError, match="the disk failed"):
        list(answer)
    before = list(model.latest.tokens)
    disk.is_mended()
    assert before[:3] == [5, 6, 7] and before[3:] == tokens[: len(before) - 3]
    rest = [chunk.token for chunk in model.generate([5, 6, 7, *tokens], max_tokens=12 - len(tokens), temperature=0)]
    assert tokens + [token for token in rest if token is not None] == [token for token in whole if token is not None]


def test_several_answers_at_once(model: Model, tmp_path: Path) -> None:
    disk = disk_of(model, "blk.2.ffn_up_exps.weight", tmp_path)
    prompts = [[i + 1, 2 * i + 1, 7] for i in range(4)]
    expected = [model.logits(prompt) for prompt in prompts]
    for broken in (True, False):
        found: dict[int, object] = {}

        def ask(i: int, found: dict[int, object] = found) -> None:
            try:
                found[i] = model.logits(prompts[i])
            except UserError as why:
                found[i] = str(why)

        if broken:
            disk.breaks()
        else:
            disk.is_mended()
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for i, logits in enumerate(expected):
            assert "the disk failed" in str(found[i]) if broken else np.array_equal(found[i], logits)  # type: ignore[arg-type]


def test_a_file_that_is_shortened_during_a_step(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails as a broken disk does; then it is found that the file is another."""
    check, calls = Watched.check, iter([False, False])  # before the step nothing was to be seen

    def later(self: Watched) -> None:
        if next(calls, True):
            check(self)

    disk = disk_of(model, "blk.2.ffn_up_exps.weight", tmp_path)
    disk.breaks()
    os.utime(model.path, (1, 1))
    monkeypatch.setattr(Watched, "check", later)
    with pytest.raises(UserError, match="changed by another program"):
        model.logits([1, 2])
    assert next(calls, "all used") == "all used"
    disk.is_mended()


def test_a_file_that_is_replaced_is_read_to_its_end(model: Model, tmp_path: Path) -> None:
    expected = model.logits([1, 2, 3])
    (tmp_path / "other").write_bytes(b"other")
    os.replace(tmp_path / "other", model.path)
    mapping = model.file.mappings[0]
    ctypes.CDLL(None).madvise(ctypes.c_void_p(mapping.ctypes.data), ctypes.c_size_t(mapping.nbytes), 4)  # DONTNEED
    os.posix_fadvise(model.file.watched[0].descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    assert np.array_equal(model.logits([1, 2, 3]), expected)


def test_cancelled_while_it_is_read(model: Model) -> None:
    expected = [chunk.token for chunk in model.generate([5, 6, 7], max_tokens=8, temperature=0)]
    mapping = model.file.mappings[0]
    ctypes.CDLL(None).madvise(ctypes.c_void_p(mapping.ctypes.data), ctypes.c_size_t(mapping.nbytes), 4)  # DONTNEED
    answer = model.generate([5, 6, 7], max_tokens=8, temperature=0)
    tokens = [next(answer).token for _ in range(3)]
    model.cancel()
    rest = list(answer)
    assert rest[-1].finish_reason == "cancelled" and len([chunk for chunk in rest if chunk.token is not None]) <= 1
    assert tokens == expected[:3]
    assert [chunk.token for chunk in model.generate([5, 6, 7], max_tokens=8, temperature=0)] == expected


def test_the_server_says_it_too(model: Model, tmp_path: Path) -> None:
    disk = disk_of(model, "blk.2.ffn_up_exps.weight", tmp_path)
    ask = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0}
    with served(model) as server:
        good = server.post("/v1/completions", ask).json()
        disk.breaks()
        bad = server.post("/v1/completions", ask | {"prompt": [9, 8]})
        disk.is_mended()
        again = server.post("/v1/completions", ask).json()
    assert bad.status_code == 500 and "the disk failed" in bad.json()["error"]["message"]
    assert again["choices"] == good["choices"]
