"""A conversation's cache on disk: the same logits after a restart, and nothing but a slower start where the file does not fit."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.comparison import tokens_of
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.engine.saved_cache import SavedCache, fingerprint

PROMPT = np.random.default_rng(5).integers(0, 256, 60).tolist()
SMALL = replace(ODD, num_hidden_layers=2, hidden_size=256, intermediate_size=512)


@pytest.fixture(scope="module")
def tiny(tiny_gguf: Callable[..., Tiny]) -> Tiny:
    return tiny_gguf("Q4_K_M", SMALL)


def opened(tiny: Tiny, **options) -> "glmrun.Model":
    return glmrun.load(tiny.path, **{"n_ctx": 256, "n_threads": 2} | options)


def last_logits(model: "glmrun.Model", tokens: list[int]) -> np.ndarray:
    """Logits after tokens, of which as much as possible is found in the cache."""
    assert list(model.generate(tokens, max_tokens=1, temperature=0))[-1].stats.n_generated == 1
    return model.latest.logits.copy()


def saved(tiny: Tiny, path: Path, tokens: list[int] = PROMPT) -> np.ndarray:
    """Write the cache of a model that has read tokens; returns the logits after them and three more."""
    model = opened(tiny)
    last_logits(model, tokens)
    SavedCache(path, model).save()
    return last_logits(model, [*tokens, 1, 2, 3])  # read as a step of their own: how tokens are grouped shows in the last bits


def test_a_restart_goes_on_with_identical_logits_and_reads_only_what_is_new(tiny: Tiny, tmp_path: Path) -> None:
    expected = saved(tiny, tmp_path / "c")
    model = opened(tiny)
    assert SavedCache(tmp_path / "c", model).load() == len(PROMPT)
    chunks = list(model.generate([*PROMPT, 1, 2, 3], max_tokens=1, temperature=0))
    assert chunks[-1].stats.n_cached == len(PROMPT)
    assert np.array_equal(model.latest.logits, expected) and np.isfinite(expected).all()
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600


def test_only_new_rows_are_appended_and_what_was_taken_back_is_replaced(tiny: Tiny, tmp_path: Path) -> None:
    model, path = opened(tiny), tmp_path / "c"
    cache, sizes = SavedCache(path, model), []
    other = [*PROMPT[:50], *PROMPT[:15]]
    for tokens in (PROMPT[:40], PROMPT, PROMPT, PROMPT[:20], other):
        last_logits(model, tokens)
        cache.save()
        sizes.append(path.stat().st_size)
    grown = np.diff(sizes)
    assert 0 < grown[1] == grown[2] < grown[0] < sizes[0]  # 20 rows more, the last token twice again, which was read again
    again = opened(tiny)
    assert SavedCache(path, again).load() == len(other)
    assert again.latest.tokens == other
    more = [*other, 1, 2, 3]
    assert np.array_equal(last_logits(again, more), last_logits(model, more))


@pytest.mark.parametrize("change", ["cut", "bit", "junk behind", "empty", "text"])
def test_a_damaged_file_costs_time_and_nothing_else(tiny: Tiny, tmp_path: Path, change: str) -> None:
    path, model = tmp_path / "c", opened(tiny)
    expected = saved(tiny, path)
    data = bytearray(path.read_bytes())
    if change == "bit":
        data[len(data) // 2] ^= 8
    path.write_bytes({"cut": data[:-9], "junk behind": data + b"junk", "empty": b"", "text": b"hello\n"}.get(change, bytes(data)))
    cache = SavedCache(path, model)
    count = cache.load()
    assert count == (len(PROMPT) if change == "junk behind" else 0) and cache.ignored
    if not count:
        last_logits(model, PROMPT)
    assert np.array_equal(last_logits(model, [*PROMPT, 1, 2, 3]), expected)
    cache.save()  # and it is a good one again
    again = opened(tiny)
    assert SavedCache(path, again).load() == len(PROMPT) + 3


def test_rows_that_name_another_position_are_left_aside(tiny: Tiny, tmp_path: Path) -> None:
    """A turned bit in a segment's position would put its rows, whose keys are turned by other angles, elsewhere."""
    model, path = opened(tiny), tmp_path / "c"
    cache = SavedCache(path, model)
    for tokens in (PROMPT, [*PROMPT, 1, 2, 3]):
        last_logits(model, tokens)
        cache.save()
    data = bytearray(path.read_bytes())
    data[data.rindex(b"SEGMENT\n") + 8] -= 1
    path.write_bytes(data)
    again = SavedCache(path, opened(tiny))
    assert again.load() == len(PROMPT) - 1 and again.tokens == PROMPT[:-1] and again.ignored


def test_a_longer_cache_than_the_context_is_not_called_damaged(tiny: Tiny, tmp_path: Path) -> None:
    saved(tiny, tmp_path / "c")
    cache = SavedCache(tmp_path / "c", opened(tiny, n_ctx=32))
    assert cache.load() == 0 and cache.ignored == f"it reaches position {len(PROMPT)}, this context holds 32"


def test_every_cut_leaves_a_prefix_of_what_was_saved(tiny: Tiny, tmp_path: Path) -> None:
    model, path = opened(tiny), tmp_path / "c"
    cache = SavedCache(path, model)
    for n in (20, 40, 60):
        last_logits(model, PROMPT[:n])
        cache.save()
    data = path.read_bytes()
    counts = set()
    for end in np.linspace(0, len(data), 40).astype(int):
        path.write_bytes(data[:end])
        count = SavedCache(path, model).load()
        assert model.latest.tokens == PROMPT[:count]
        counts.add(count)
    assert counts == {0, 20, 40, 60}


def test_a_cache_of_something_else_is_left_aside(tiny: Tiny, tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    path = tmp_path / "c"
    saved(tiny, path)
    for model in (opened(tiny, kv_type="q8_0"), opened(tiny_gguf("Q4_K_M", SMALL, seed=1)), opened(tiny_gguf("Q6_K", SMALL))):
        cache = SavedCache(path, model)
        assert cache.load() == 0 and "another model" in str(cache.ignored) and model.latest.tokens == []
    smaller = glmrun.load(tiny.path, n_ctx=32)
    cache = SavedCache(path, smaller)
    assert cache.load() == 0 and cache.ignored  # 60 positions do not fit; it stays usable
    assert len(tokens_of(list(smaller.generate(PROMPT[:9], max_tokens=2, temperature=0)))) == 2


def test_the_fingerprint_follows_the_file(tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny.path.read_bytes())
    os.utime(copy, ns=(1, 1))
    first = fingerprint(glmrun.load(copy, n_ctx=32))
    assert fingerprint(glmrun.load(copy, n_ctx=64, n_threads=1)) == first  # neither context nor threads change a row
    os.utime(copy, ns=(1, 2))
    assert fingerprint(glmrun.load(copy, n_ctx=32)) != first


def test_no_file_is_no_cache(tiny: Tiny, tmp_path: Path) -> None:
    cache = SavedCache(tmp_path / "none", opened(tiny))
    assert cache.load() == 0 and cache.ignored is None


def test_a_disk_that_is_nearly_full_keeps_its_room(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(tiny)
    last_logits(model, PROMPT)
    cache = SavedCache(tmp_path / "c", model)
    size = cache._position_bytes * len(PROMPT)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * size - 1))
    with pytest.raises(OSError, match="of disk are free"):
        cache.save()
    assert not (tmp_path / "c").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * size))
    cache.save()
    assert size < (tmp_path / "c").stat().st_size < size + 1000 and SavedCache(tmp_path / "c", opened(tiny)).load() == len(PROMPT)
