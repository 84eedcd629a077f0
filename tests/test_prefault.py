"""Which bytes of a file are mapped ahead, and that a wrong or small machine only makes it do less."""

import itertools
from collections.abc import Callable

import pytest
from support.tiny_model import Tiny

from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from glmrun.machine import available_memory
from glmrun.tensors.prefault import PAGE, ROOM, SLICE, Prefault, _slices
from quant import system


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


def test_a_system_that_can_not_is_left_alone(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_POPULATE_READ", 9999)
    file = open_gguf(tiny_gguf("Q4_K_M").path)
    found = Prefault(file, config_from_gguf(file))
    assert found.wait(60) and found.n_done == 0


def test_available_memory_is_a_number() -> None:
    assert available_memory() > 0
