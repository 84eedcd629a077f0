"""Which bytes of a file are mapped ahead, and that a wrong or small machine only makes it do less."""

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
from support.tiny_model import Tiny

from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from glmrun.kernels.disk import LOOKS
from glmrun.machine import available_memory
from glmrun.tensors import prefault
from glmrun.tensors.prefault import PAGE, ROOM, SLICE, Prefault, _extents, _slices, fit, likely_experts
from quant import system


def join_readers() -> None:
    for thread in threading.enumerate():
        if thread.name == "prefault":
            thread.join(60)


def test_slices_cover_the_extents_in_whole_pages() -> None:
    extents = [(100, 5000), (PAGE, 3 * PAGE), (9 * PAGE + 1, 9 * PAGE + 2), (20 * PAGE, 20 * PAGE + 2 * SLICE + 1)]
    slices = _slices(extents)
    covered = {page for start, end in slices for page in range(start // PAGE, end // PAGE)}
    assert covered == {page for start, end in extents for page in range(start // PAGE, -(-end // PAGE))}
    assert all(start % PAGE == end % PAGE == 0 and 0 < end - start <= SLICE for start, end in slices)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(slices))


def test_a_model_is_mapped_to_its_end(tiny_gguf: Callable[..., Tiny]) -> None:
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    found = Prefault(file, config_from_gguf(file))
    assert found.wait(60) and not found.is_waiting_for_disk() and found.partial is None
    assert found.n_done in (found.n_bytes, 0) and 0 < found.n_bytes <= file.size + PAGE  # 0: a system that can't


def test_memory_that_is_too_small_gets_the_part_that_all_tokens_read(tiny_gguf: Callable[..., Tiny]) -> None:
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    config = config_from_gguf(file)
    always = sum(t.n_bytes for t in file.tensors.values() if "_exps." not in t.name)
    some, none = Prefault(file, config, ROOM + always), Prefault(file, config, ROOM)
    assert some.partial and "are free" in some.partial and 0 < some.n_bytes < Prefault(file, config, 1 << 40).n_bytes
    assert none.partial and none.n_bytes == 0 and none.wait(60)


def test_experts_stay_as_far_as_they_fit(tiny_gguf: Callable[..., Tiny]) -> None:
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    config = config_from_gguf(file)
    tensors = list(file.tensors.values())
    experts = [t for t in tensors if "_exps." in t.name]
    n_experts = sum(t.n_bytes for t in experts)
    always = sum(t.n_bytes for t in tensors) - n_experts
    for share in (0.0, 0.5, 0.75):
        found = fit(file, config, ROOM + always + int(n_experts * share))
        assert not found.whole and abs(found.share - share) < 1e-3 and found.always == always + ROOM
    assert fit(file, config, ROOM + always + n_experts).whole and fit(file, config, 0).share == 0


def test_the_experts_that_were_used_most_come_first(tiny_gguf: Callable[..., Tiny]) -> None:
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    config = config_from_gguf(file)
    experts = [t for t in file.tensors.values() if "_exps." in t.name]
    layers = [config.first_k_dense_replace + i for i in range(config.num_hidden_layers - config.first_k_dense_replace)]
    assert len(experts) == 3 * len(layers) == 6 and config.n_routed_experts == 12

    def extents(layer: int, e: int) -> set[tuple[int, int]]:
        own = [t for t in experts if t.name.startswith(f"blk.{layer}.")]
        return {extent for t in own for extent in _extents(t, e, e + 1)}

    def flat(bands: list[list[tuple[int, int]]]) -> list[tuple[int, int]]:
        return [extent for band in bands for extent in band]

    uses = np.zeros((config.num_hidden_layers + 1, 12), np.int64)
    whole = sum(t.n_bytes for t in experts)
    assert flat(likely_experts(experts, uses, -1)) == flat(likely_experts(experts, uses, 0)) == []
    assert _slices(flat(likely_experts(experts, uses, whole))) == _slices(flat([_extents(t) for t in experts]))
    half = flat(likely_experts(experts, uses, whole // 2))  # equally many of each layer
    assert set(half) == set().union(*(extents(layer, e) for layer in layers for e in range(6)))
    uses[layers[1], [3, 11]], uses[layers[0], 7] = (5, 9), 7
    bands = likely_experts(experts, uses, whole // 2)
    assert len(bands) == 4 and set(bands[0]) == extents(layers[1], 11) | extents(layers[0], 7) | extents(layers[1], 3)
    assert sum(end - start for start, end in flat(bands)) <= whole // 2


def test_memory_that_becomes_less_while_the_model_runs(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    config = config_from_gguf(file)
    kept: list[tuple[int, int]] = []
    given_back: list[tuple[int, int]] = []
    monkeypatch.setattr(prefault, "keep", lambda *range_: kept.append(range_) or True)
    monkeypatch.setattr(prefault, "let_go", lambda *range_: given_back.append(range_))
    need = fit(file, config).needed
    some, whole = Prefault(file, config, need - 1), Prefault(file, config, 1 << 40)
    assert some.wait(60) and whole.wait(60) and some.way() == LOOKS and whole.way() == 0
    join_readers()
    locked = sum(n_bytes for _, n_bytes in kept)
    assert locked == some.n_bytes
    monkeypatch.setattr(prefault, "LOOK_AGAIN", 0.0)
    for available, way, n_given in (
        (need - ROOM, 0, 0),
        (locked, LOOKS, 0),
        (locked - 1, LOOKS, len(kept)),
        (1 << 40, LOOKS, len(kept)),
    ):
        monkeypatch.setattr(prefault, "available_memory", lambda available=available: available)
        assert (whole.way(), some.way(), len(given_back)) == (way, LOOKS, n_given)
    assert given_back == kept


def test_experts_are_read_ahead_until_a_step_begins(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    config = config_from_gguf(file)
    asked: list[int] = []
    first_expert, go_on = threading.Event(), threading.Event()

    def read(start: int, n_bytes: int) -> bool:
        asked.append(start)
        if len(asked) > 1 + n_always:  # one page at first: whether the system can
            first_expert.set()
            go_on.wait(60)
        return True

    available = fit(file, config, 0).needed - 1
    n_always = len(Prefault(file, config, available)._ranges)
    join_readers()
    monkeypatch.setattr(prefault, "populate", read)
    monkeypatch.setattr(prefault, "keep", lambda start, n_bytes: True)
    found = Prefault(file, config, available)
    assert found.wait(60) and found.n_done == found.n_bytes and len(found._experts) > 1
    assert first_expert.wait(60)
    found.experts_on_demand()
    go_on.set()
    join_readers()
    assert len(asked) == n_always + 2


def test_a_system_that_can_not_is_left_alone(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "POPULATE_READ", 9999)
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    found = Prefault(file, config_from_gguf(file))
    assert found.wait(60) and found.n_done == 0


def test_available_memory_is_a_number() -> None:
    assert available_memory() > 0
