"""Experts that are read from the disk: what is asked for and what is waited for, and that no logit depends on it."""

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numba import int64
from support.foreign_file import Parts
from support.tiny_model import Tiny

from glmrun.engine.model import Model
from glmrun.kernels.compiled.cache import kernel
from glmrun.kernels.disk import AHEAD, BLIND, LOOKED_AT, LOOKS, PAGE, arrive, ask_likely, is_resident, used
from glmrun.kernels.layout import layer_array, model_record, step_record, worker_array
from glmrun.machine import disk_bytes
from glmrun.tensors import prefault

DONTNEED = 4  # of madvise


@kernel(int64(int64, int64, int64), entry=True)
def resident(start, n_bytes, found):
    return is_resident(start, n_bytes, found)


@kernel(int64(model_record, layer_array, step_record, worker_array, int64), entry=True)
def likely(m, layers, s, workers, i):
    ask_likely(m, layers[i], s, workers[0])
    return 0


@kernel(int64(layer_array, step_record, worker_array, int64, int64, int64, int64), entry=True)
def arrived(layers, s, workers, i, which, first, end):
    arrive(s, layers[i].ffn_up_exps, which, first, end, workers[0])
    return 0


@kernel(int64(model_record, step_record, int64, int64), entry=True)
def used_expert(m, s, e, n):
    return used(m, s, e, n)


class Mapped:
    """A mapped file whose pages can be dropped."""

    def __init__(self, path: Path, mapping: np.ndarray) -> None:
        self.path, self.address, self.n_bytes = path, mapping.ctypes.data, mapping.nbytes
        self.found = np.zeros(LOOKED_AT, np.uint8)  # uint8 (LOOKED_AT,)

    def drop(self) -> None:
        """Have none of it in memory."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
            start = self.address // PAGE * PAGE
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(self.n_bytes), DONTNEED)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if self.has(self.address, self.n_bytes):
            pytest.skip("this file system keeps its files in memory")

    def has(self, start: int, n_bytes: int) -> bool:
        """Whether all of these addresses is in memory."""
        first = start // PAGE * PAGE
        return bool(resident(first, start + n_bytes - first, self.found.ctypes.data))


def test_missing_pages_are_found(tmp_path: Path) -> None:
    n, there = 2 * LOOKED_AT + 77, LOOKED_AT + 3
    (tmp_path / "file").write_bytes(bytes(n * PAGE))
    with open(tmp_path / "file", "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = Mapped(tmp_path / "file", np.frombuffer(mapping, np.uint8))
        mapped.drop()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        before = disk_bytes()
        os.pread(file.fileno(), there * PAGE, 0)
        assert before is None or (disk_bytes() or 0) - before >= there * PAGE
        for count, expected in ((1, True), (9, True), (there - 1, True), (there, True), (there + 1, False), (n, False)):
            assert mapped.has(mapped.address, count * PAGE) == expected, count
        assert not mapped.has(mapped.address + there * PAGE, PAGE)
        assert not resident(12345 * PAGE, PAGE, mapped.found.ctypes.data)  # no such mapping


@pytest.fixture(params=["a tensor each", "gate and up in one"])
def model(request: pytest.FixtureRequest, tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> Model:
    path = tiny_gguf("Q4_K_M").path
    if request.param == "gate and up in one":
        parts = Parts.read(path)
        parts.fuse_experts()
        path = parts.write(tmp_path / "fused.gguf")
    found = Model(path, 256, 2)
    assert found.prefault.wait(60) and found.finite()
    return found


def test_the_same_logits_from_the_disk(model: Model) -> None:
    mapped = Mapped(model.path, model.file.mappings[0])
    rng = np.random.default_rng(5)
    for n in (1, 3, 40, 200):  # asked for when chosen; from the beginning of the layer on
        tokens = rng.integers(0, 1000, n).tolist()
        model.prefault.from_disk = 0
        expected = model.logits(tokens)
        for way in (LOOKS, BLIND):
            mapped.drop()
            model.prefault.from_disk = way
            assert np.array_equal(model.logits(tokens), expected), (n, way)


def test_what_is_asked_for_comes(model: Model) -> None:
    w, space = model.weights, model.runner.workspace
    mapped, step = Mapped(model.path, model.file.mappings[0]), space.step
    up, other = (w.tensors[f"blk.{i}.ffn_up_exps.weight"].matrices for i in (1, 2))  # uint8 (experts, bytes)
    step["from_disk"], size = LOOKS, up.shape[1]
    step["n_tokens"] = 15  # 45 choices of 12 experts: not yet 4 of each
    mapped.drop()
    likely(w.model, w.layers, step, space.workers, 1)
    time.sleep(0.1)
    assert not mapped.has(up.ctypes.data, PAGE)

    def there() -> bool:
        return all(mapped.has(expert.ctypes.data, size) for expert in up[: min(12, AHEAD)])

    step["n_tokens"] = 16
    likely(w.model, w.layers, step, space.workers, 0)  # a layer without experts
    likely(w.model, w.layers, step, space.workers, 1)
    until = time.monotonic() + 60
    while not there() and time.monotonic() < until:
        time.sleep(0.01)
    assert there()
    rows, row_bytes = int(w.layers[2]["ffn_up_exps"]["rows"]), size // 256
    assert rows == 256 and not mapped.has(other[5].ctypes.data, size)
    arrived(w.layers, step, space.workers, 2, 5, 64, 192)
    assert mapped.has(other[5].ctypes.data + 64 * row_bytes, 128 * row_bytes)
    assert not all(mapped.has(expert.ctypes.data, size) for expert in other)


def test_experts_with_tokens(model: Model) -> None:
    first = np.zeros(25, np.int64)  # int64 (2 * 12 + 1,)
    first[2 * 3 + 1 :] += 1  # few of expert 3, many of 4, both of 9
    first[2 * 4 + 2 :] += 5
    first[2 * 9 + 1 :] += 1
    first[2 * 9 + 2 :] += 7
    step = model.runner.workspace.step
    step["first"] = first.ctypes.data
    found = [used_expert(model.weights.model, step, 0, n) for n in range(4)]
    assert found == [3, 4, 9, 12] and used_expert(model.weights.model, step, 4, 1) == 9


def test_only_a_model_larger_than_memory_asks(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_gguf("Q4_K_M").path

    def way() -> int:
        with Model(path, 64, 1) as model:
            model.logits([1])
            return int(model.runner.workspace.step["from_disk"])

    assert way() == 0
    monkeypatch.setattr(prefault, "available_memory", lambda: prefault.ROOM)
    assert way() == LOOKS
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert way() == BLIND
