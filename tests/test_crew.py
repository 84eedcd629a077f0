"""How many threads write: fewer only where that was measured to be faster while cores were taken, and back when they are not."""

from pathlib import Path

import numpy as np
import pytest
from support.tiny_model import ODD, write_tiny

import glmrun
from glmrun.engine.crew import STAYS, STEPS, Crew
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence


def steps(crew: Crew, n: int, seconds: dict[int, float], waited: dict[int, float]) -> list[int]:
    """The number of threads of n steps that take what `seconds` says for it, and share `waited` of it without a core."""
    used = []
    for _ in range(n):
        used.append(crew.n)
        crew.add(seconds[crew.n], waited[crew.n] * seconds[crew.n])
    return used


SELDOM, OFTEN = {n: 0.03 * n for n in range(1, 5)}, {1: 0.0, 2: 0.3, 3: 0.4, 4: 0.5}
QUIET, BUSY = {1: 0.86, 2: 0.5, 3: 0.4, 4: 0.3}, {1: 0.86, 2: 1.2, 3: 1.1, 4: 1.0}


def test_all_threads_where_no_core_is_taken() -> None:
    assert steps(Crew(2), 1000, BUSY, SELDOM) == [2] * 1000


def test_fewer_where_a_core_is_taken_and_that_is_faster() -> None:
    crew = Crew(2)
    assert steps(crew, 2 * STEPS, BUSY, OFTEN) == [2] * STEPS + [1] * STEPS
    assert steps(crew, STAYS, BUSY, OFTEN) == [1] * STAYS
    used = steps(crew, 10 * (STAYS + STEPS), BUSY, OFTEN)  # all threads are tried from time to time
    assert used.count(2) == 10 * STEPS and used[-1] == 1


def test_all_threads_again_when_they_are_faster() -> None:
    crew = Crew(2)
    steps(crew, 2 * STEPS, BUSY, OFTEN)
    used = steps(crew, 1000, QUIET, SELDOM)
    assert used == [1] * STAYS + [2] * (1000 - STAYS)


def test_fewer_are_tried_and_left_where_they_are_slower() -> None:
    used = steps(Crew(2), 1000, {1: 0.86, 2: 0.85}, OFTEN)
    assert used[-1] == 2 and used.count(1) <= 1000 * STEPS / STAYS


@pytest.mark.parametrize("n_threads", [3, 4])
def test_as_many_fewer_as_pay(n_threads: int) -> None:
    crew = Crew(n_threads)
    used = steps(crew, 1000, {1: 0.9, 2: 0.6, 3: 1.2, 4: 1.5}, OFTEN)
    assert used[-1] == 2 and min(used) == 1


def test_a_hopeless_trial_ends_early() -> None:
    used = steps(Crew(2), 1000, {1: 1.2, 2: 0.85}, OFTEN)
    assert used[-1] == 2 and 0 < used.count(1) <= 2 * (1 + 1000 // STAYS)


def test_the_numbers_do_not_depend_on_how_many_threads_compute(tmp_path: Path) -> None:
    path, tokens = write_tiny(tmp_path / "tiny.gguf", ODD, "Q4_K_M", seed=2).path, np.arange(5, 30)
    with glmrun.load(path, n_ctx=64, n_threads=2, draft="off") as model:

        def logits(threads: list[int]) -> np.ndarray:
            sequence, rows = Sequence(*model.weights.cache_shape(64)), []
            for token, n in zip(tokens, threads, strict=True):
                model.runner._passes._crews[1].n = n
                assert model.runner.step([Run(sequence, np.array([token]), sequence.logits)])
                rows.append(sequence.logits.copy())
            return np.concatenate(rows)  # float32 (tokens, n_vocab)

        np.testing.assert_array_equal(logits([2] * 25), logits([1 + i % model.n_threads for i in range(25)]))
