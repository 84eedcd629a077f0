"""Who shares a step with whom, and that nobody can hold up the others: an iterator that is left alone, a fork."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.engine import generate
from glmrun.engine.runner import LEAST_PIECE, Size, next_batch, piece

MAX_TOKENS, MAX_RUNS = 528, 16


def test_all_who_write_go_beside_one_piece_of_the_oldest_prompt() -> None:
    waiting = [Size(1), Size(512), Size(1), Size(512), Size(1)]
    assert sorted(next_batch(waiting, MAX_TOKENS, MAX_RUNS)) == [0, 1, 2, 4]
    assert next_batch([], MAX_TOKENS, MAX_RUNS) == []


def test_one_that_must_be_alone_is_alone() -> None:
    assert next_batch([Size(100, alone=True), Size(1)], MAX_TOKENS, MAX_RUNS) == [0]
    assert next_batch([Size(1), Size(100, alone=True), Size(1)], MAX_TOKENS, MAX_RUNS) == [0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_every_step_fits_and_everybody_has_a_turn(seed: int) -> None:
    rng = random.Random(seed)
    row = [
        (i, Size(rng.choice([1, 1, 1, 2, 40, 512]), rng.choice([1, 1, 2]), rng.random() < 0.05)) for i in range(rng.randint(1, 60))
    ]
    turns = {i: 0 for i, _ in row}
    steps_without = dict.fromkeys(turns, 0)
    for _ in range(200):
        sizes = [size for _, size in row]
        batch = next_batch(sizes, MAX_TOKENS, MAX_RUNS)
        assert 0 in batch and len(set(batch)) == len(batch)
        chosen = [sizes[i] for i in batch]
        assert sum(size.n_tokens for size in chosen) <= MAX_TOKENS and sum(size.n_runs for size in chosen) <= MAX_RUNS
        assert len(batch) == 1 or not any(size.alone for size in chosen)
        left = [(sizes[i].n_tokens, sizes[i].n_runs) for i in range(len(sizes)) if i not in batch and not sizes[i].alone]
        if not chosen[0].alone:  # what was left out has no room
            n_tokens, n_runs = sum(size.n_tokens for size in chosen), sum(size.n_runs for size in chosen)
            assert all(n_tokens + tokens > MAX_TOKENS or n_runs + runs > MAX_RUNS for tokens, runs in left)
        served = [row[i] for i in batch]
        for i in turns:
            steps_without[i] += 1
        for i, _ in served:
            turns[i] += 1
            steps_without[i] = 0
        assert max(steps_without.values()) < len(row)  # nobody waits for longer than one step for each of the others
        row = [one for one in row if one not in served] + served  # each asks again at once
    assert min(turns.values()) >= 200 // len(row)


def test_a_prompt_that_nobody_reads_on_holds_up_nobody(tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PROGRESS_SECONDS", 0.0)
    prompt = np.random.default_rng(1).integers(0, 900, 240).tolist()
    path = tiny_gguf("Q4_K_M", ODD).path
    with glmrun.load(path, n_ctx=256, n_threads=2) as model:
        expected = [chunk.token for chunk in model.generate(prompt, max_tokens=3, temperature=0) if chunk.token is not None]
    with glmrun.load(path, n_ctx=256, n_threads=2) as model:
        held = model.generate(prompt, max_tokens=3, temperature=0)
        next(held), next(held)  # a report from the middle of a step
        other = threading.Thread(target=lambda: list(model.generate([1, 2, 3], max_tokens=2, temperature=0)), daemon=True)
        other.start()
        other.join(30)
        assert not other.is_alive()
        assert [chunk.token for chunk in held if chunk.token is not None] == expected


def test_pieces_last_a_second_beside_others_and_are_whole_alone() -> None:
    assert piece(70.0, 1, 512) == 512 == piece(None, 4, 512) and piece(70.0, 2, 512) == 70
    assert piece(3.0, 5, 512) == LEAST_PIECE and piece(9999.0, 2, 512) == 512 and piece(70.0, 2, 40) == 40


def test_prompts_share_a_step_up_to_their_limit_and_readers_never_wait() -> None:
    row = [Size(70), Size(1), Size(70), Size(30), Size(1)]
    assert sorted(next_batch(row, 528, 16, 100)) == [0, 1, 3, 4]
    assert sorted(next_batch([Size(512), *row], 528, 16, 100)) == [0, 2, 5]  # the oldest, though it is longer


def test_a_pace_is_learned_from_steps_with_prompts(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=256, n_threads=2) as model:
        runner = model.runner
        assert runner.piece == 256
        with runner.answering(), runner.answering():
            runner._measure(64, 1.0)
            assert runner.piece == 64
            list(model.generate([1, 2, 3], max_tokens=5))
            assert runner.piece == 64  # steps of single tokens say nothing of prompts
            runner._measure(64, 0.5)
            assert runner.piece == 96
        assert runner.piece == 256
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=256, n_threads=2) as model:
        assert model.runner._pace is None
        model.measure()
        assert model.runner._pace is not None and model.runner._pace > 0


FORK = """
import os, signal, sys
import glmrun
from quant.errors import UserError

model = glmrun.load(sys.argv[1], n_ctx=64, n_threads=2)
assert list(model.generate([1, 2, 3], max_tokens=2, temperature=0))
child = os.fork()
if child == 0:
    signal.alarm(60)
    for call in (lambda: model.generate([1]), lambda: model.logits([1]), lambda: model.chat([{"role": "user", "content": "x"}])):
        try:
            call()
        except UserError as error:
            assert "load it again in the child" in str(error) and "\\n" not in str(error)
        else:
            sys.exit(3)
    model.close()
    sys.exit(0)  # with all that an interpreter does at its end
_, status = os.waitpid(child, 0)
assert list(model.generate([1, 2, 3], max_tokens=2, temperature=0))
model.close()
sys.exit(os.waitstatus_to_exitcode(status) % 256)
"""


def test_a_real_fork_is_told_and_hangs_nowhere(tiny_gguf: Callable[..., Tiny]) -> None:
    arguments = [sys.executable, "-c", FORK, str(tiny_gguf("Q4_K_M", ODD).path)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
