"""Conversations in a folder: read from there after a restart, whatever killed the process before; bounded; never wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pytest
from support.comparison import tokens_of
from support.tiny_model import Tiny
from test_saved_cache import SMALL

import glmrun
from glmrun.engine import saved_cache
from glmrun.engine.disk_cache import LEAST, DiskCache
from glmrun.engine.model import Model
from glmrun.engine.saved_cache import SavedCache
from quant.errors import UserError

RNG = np.random.default_rng(3)
LONG = RNG.integers(0, 256, 150).tolist()
OTHER = RNG.integers(0, 256, 100).tolist()
ROOM = 1 << 30


@pytest.fixture(scope="module")
def tiny(tiny_gguf: Callable[..., Tiny]) -> Tiny:
    return tiny_gguf("Q4_K_M", SMALL)


def opened(tiny: Tiny, folder: Path | None, room: int = ROOM, said: list[str] | None = None, **options: Any) -> Model:
    model = glmrun.load(tiny.path, **{"n_ctx": 256, "n_threads": 2} | options)
    if folder is not None:
        model.keep_on_disk(DiskCache(folder, room, model, ([] if said is None else said).append))
    return model


def answered(model: Model, tokens: list[int], n: int = 4) -> tuple[int, list[int]]:
    """(tokens of the prompt that were cached, the answer)."""
    chunks = list(model.generate(tokens, max_tokens=n, temperature=0))
    return chunks[-1].stats.n_cached, tokens_of(chunks)


def after_all_is_written(model: Model, folder: Path) -> dict[Path, int]:
    """{file: tokens in it} of a folder, once the model is closed."""
    model.close()
    found = {}
    with glmrun.load(model.path, n_ctx=256, n_threads=1) as other:
        for path in folder.glob("*.rows"):
            found[path] = SavedCache(path, other).load()
    return found


def test_a_conversation_goes_on_after_a_restart(tiny: Tiny, tmp_path: Path) -> None:
    with opened(tiny, tmp_path) as model:
        first = answered(model, LONG)[1]
        expected = answered(model, [*LONG, *first, 1, 2, 3])
    said: list[str] = []
    with opened(tiny, tmp_path, said=said) as model:
        n_cached, tokens = answered(model, [*LONG, *first, 1, 2, 3])
        assert n_cached >= len(LONG) + len(first) - 1 and tokens == expected[1]
        n_kept = len(LONG) + len(first) + 3 + len(tokens) - 1
        assert said == [f"{tmp_path}: 1 conversations of {n_kept:,} tokens are cached there"]
    [path] = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_memory_gives_up_is_found_on_the_disk(tiny: Tiny, tmp_path: Path) -> None:
    with opened(tiny, tmp_path, n_ctx=160) as model:  # memory for one context: one of the two has to go
        for tokens in (LONG, OTHER):
            answered(model, tokens)
            wait_until_kept(model, [len(LONG) + 3] if tokens is LONG else [len(OTHER) + 3, len(LONG) + 3])
        assert not model._idle.longest(LONG)
        assert answered(model, LONG)[0] == len(LONG) - 1
        assert answered(model, [*OTHER, 5])[0] >= len(OTHER)
        assert answered(model, [*LONG[:100], 7])[0] == 100  # a part of a file, too


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def wait_until_kept(model: Model, sizes: list[int]) -> None:
    """Until files of so many tokens are there."""
    disk = model._disk
    assert isinstance(disk, DiskCache)
    wait_for(lambda: sorted(len(file.tokens) for file in disk._files) == sizes)


def test_a_conversation_has_a_file_that_grows_and_a_branch_its_own(tiny: Tiny, tmp_path: Path) -> None:
    model = opened(tiny, tmp_path)
    model.keep(ROOM)
    tokens, names = LONG[:100], set()
    for _ in range(3):
        tokens = [*tokens, *answered(model, tokens)[1], 9]
        wait_until_kept(model, [len(tokens) - 2])
        names |= set(tmp_path.iterdir())
    assert len(names) == 1
    branch = [*tokens[:40], *OTHER]
    answered(model, branch)
    found = after_all_is_written(model, tmp_path)
    assert len(found) == 2 and set(found) > names
    assert sorted(found.values()) == sorted([len(tokens) - 2, len(branch) + 3])


def test_short_conversations_are_not_worth_a_file(tiny: Tiny, tmp_path: Path) -> None:
    model = opened(tiny, tmp_path)
    answered(model, LONG[: LEAST - 10], n=2)
    assert after_all_is_written(model, tmp_path) == {}


def test_the_folder_takes_no_more_than_it_may_and_the_oldest_goes(tiny: Tiny, tmp_path: Path) -> None:
    size = int(3 * 110 * SMALL.num_hidden_layers * 2 * (SMALL.kv_lora_rank + SMALL.qk_rope_head_dim))  # of three, roughly
    (tmp_path / "someone_elses.txt").write_bytes(bytes(1000))
    model = opened(tiny, tmp_path, room=size)
    for i in range(5):
        answered(model, [i, *OTHER])
        time.sleep(0.02)  # the files' times differ
    model.close()
    files = list(tmp_path.glob("*.rows"))
    assert 2 <= len(files) <= 3 and sum(path.stat().st_size for path in files) <= size
    assert (tmp_path / "someone_elses.txt").exists()
    with opened(tiny, tmp_path, room=size) as model:
        assert [answered(model, [i, *OTHER], n=1)[0] > 0 for i in (4, 0)] == [True, False]
    small = tmp_path / "small"
    model = opened(tiny, small, room=1000)
    answered(model, LONG)
    assert after_all_is_written(model, small) == {}


@pytest.mark.parametrize("change", ["cut", "bit", "empty", "text", "another model", "another cache"])
def test_what_is_wrong_is_left_aside_in_one_line(tiny: Tiny, tiny_gguf: Callable[..., Tiny], tmp_path: Path, change: str) -> None:
    with opened(tiny, None) as model:
        expected = answered(model, LONG)[1]
    maker = tiny_gguf("Q4_K_M", SMALL, seed=1) if change == "another model" else tiny
    with opened(maker, tmp_path, **({"kv_type": "q8_0"} if change == "another cache" else {})) as model:
        answered(model, LONG)
    [path] = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    if change == "bit":
        data[len(data) // 2] ^= 8
    path.write_bytes({"cut": data[:-9], "empty": b"", "text": b"hello\n"}.get(change, bytes(data)))
    said: list[str] = []
    with opened(tiny, tmp_path, said=said) as model:
        assert answered(model, LONG) == (0, expected)
    [wrong] = [line for line in said if path.name in line]
    assert re.search("damaged|another model|no saved cache", wrong) and "\n" not in wrong
    with opened(tiny, tmp_path) as model:
        assert answered(model, LONG) == (len(LONG) - 1, expected)  # a good file is there now


def test_a_process_that_is_killed_while_it_writes_leaves_whole_segments(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a forked child, behind half of each write in turn."""
    monkeypatch.setattr(saved_cache, "PIECE", 32)
    path, counts, put = tmp_path / "c", [], saved_cache._put
    with opened(tiny, None) as model:
        answered(model, LONG, n=1)
        rows, tokens = model.latest.rows.copy(), model.latest.tokens.copy()
        n_writes = 1 + 5 * (3 + SMALL.num_hidden_layers)
        for nth in range(n_writes + 1):
            path.unlink(missing_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                child = os.fork()
            if not child:
                left = [nth]

                def half(file: Any, data: Any, left: list[int] = left) -> None:
                    if left[0] == 0:
                        put(file, memoryview(data).cast("B")[: len(memoryview(data).cast("B")) // 2])
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    put(file, data)

                saved_cache._put = half
                SavedCache(path, model).save()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == (signal.SIGKILL if nth < n_writes else 0)
            cache, into = SavedCache(path, model), model._idle.new()
            counts.append(cache.load(into))
            assert into.tokens == tokens[: counts[-1]] and (cache.ignored is None) == (counts[-1] == len(tokens))
            assert (into.rows[:, : counts[-1]] == rows[:, : counts[-1]]).all()
    assert sorted(set(counts)) == [0, 32, 64, 96, 128, 150] and counts == sorted(counts)


def test_a_sequence_that_is_taken_while_it_is_written_spoils_no_file(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_cache, "PIECE", 32)
    put = saved_cache._put
    n_writes = 1 + 5 * (3 + SMALL.num_hidden_layers)
    for nth in range(1, n_writes + 1):
        with opened(tiny, None) as model:
            answered(model, LONG, n=1)
            sequence, cache, left = model.latest, SavedCache(tmp_path / f"{nth}", model), [nth]

            def taken(file: Any, data: Any, model: Model = model, left: list[int] = left) -> None:
                left[0] -= 1
                if left[0] == 0:
                    monkeypatch.setattr(saved_cache, "_put", put)
                    answered(model, [*LONG[:100], *OTHER[:40]], n=1)  # in the middle of a write
                put(file, data)

            monkeypatch.setattr(saved_cache, "_put", taken)
            whole = cache.save(sequence)
            monkeypatch.setattr(saved_cache, "_put", put)
            assert whole == (nth == n_writes) and sequence is model.latest  # the last write ends a segment that was whole
            again = SavedCache(cache.path, model)
            n, into = again.load(model._idle.new()), model._idle.new()
            assert again.ignored is None and again.tokens == LONG[:n] and n % 32 in (0, len(LONG) % 32)
            assert cache.save(model.latest)  # and what it has become can be saved behind that
            assert SavedCache(cache.path, model).load(into) == 140 and into.tokens == model.latest.tokens
            assert (into.rows[:, :140] == model.latest.rows[:, :140]).all()


def test_a_folder_or_disk_that_takes_nothing_is_told(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with glmrun.load(tiny.path, n_ctx=64) as model, pytest.raises(UserError, match="name a folder"):
        DiskCache(tmp_path / "file", ROOM, model, print)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    said: list[str] = []
    with opened(tiny, tmp_path / "new", said=said) as model:
        for tokens in (LONG, OTHER):
            assert len(answered(model, tokens)[1]) == 4
    assert len(said) == 2 and "of disk are free" in said[1]


def test_a_server_that_is_killed_finds_its_conversations_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "glmrun", "serve", "nano", "--port", "0", "-c", "1024", "--cache-disk", str(tmp_path / "kept")]
    question = {"role": "user", "content": "The quick brown fox jumps over the lazy dog. " * 12}
    body = {"messages": [question], "max_tokens": 8, "temperature": 0}
    cached = []
    for _ in range(2):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}) as server:
            assert server.stderr is not None
            address = ""
            while not (found := re.search(r" at (http://\S+) ", address)):
                address = server.stderr.readline()
                assert address, "the server has ended"
            usage = httpx2.post(f"{found[1]}/v1/chat/completions", json=body, timeout=60).json()["usage"]
            cached.append((usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]))
            sizes = [0]

            def is_written(sizes: list[int] = sizes) -> bool:  # something, and nothing more comes
                time.sleep(0.5)
                sizes.append(sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()))
                return 0 < sizes[-1] == sizes[-2]

            wait_for(is_written)
            server.kill()
    (before, n_prompt), (after, _) = cached
    assert before == 0 and n_prompt > 100 and after >= n_prompt - 2  # the prediction layer reads one again
