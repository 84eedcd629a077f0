"""The contract of a step of several runs: a token's logits and cached rows depend on its own sequence, and on how many tokens of
its own run meet a matrix; never on who else is in the step, in which order, nor on the number of threads. Bit for bit.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support.foreign_file import Parts
from support.tiny_model import ODD, Tiny, write_tiny

import glmrun
from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.engine.runner import Runner
from glmrun.engine.sequence import Sequence
from glmrun.tensors.weights import Weights
from quant.errors import UserError
from quant.formats import FORMATS, WRITTEN

N_CTX = 5120
CONFIG = replace(ODD, max_position_embeddings=N_CTX)


def sequence_at(weights: Weights, position: int, seed: int) -> Sequence:
    """A sequence whose first rows are random numbers."""
    sequence = Sequence(*weights.cache_shape(N_CTX))
    values = np.random.default_rng(seed).standard_normal((len(sequence.rows), position, int(weights.model["row"])))
    sequence.rows.view(np.float32 if weights.model["cache_type"] == 0 else np.float16)[:, :position] = values
    sequence.extend([0] * position)
    return sequence


def outcome(weights: Weights, runner: Runner, wanted: list[tuple[int, int, int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(logits, new cached rows) of runs (position, tokens, logits, seed), all in one step."""
    runs = []
    for position, n_tokens, n_logits, seed in wanted:
        tokens = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, n_tokens)  # int64 (n_tokens,)
        logits = np.full((n_logits, CONFIG.vocab_size), np.nan, np.float32)  # float32 (n_logits, n_vocab)
        runs.append(Run(sequence_at(weights, position, seed), tokens, logits))
    assert runner.step(runs)
    ends = [position + n_tokens for position, n_tokens, _, _ in wanted]
    assert [len(run.sequence.tokens) for run in runs] == ends
    return [(run.logits, run.sequence.rows[:, end - len(run.tokens) : end].copy()) for run, end in zip(runs, ends, strict=True)]


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Weights]:
    made: dict[str, Model] = {}

    def weights(recipe: str) -> Weights:
        if recipe not in made:
            path = tmp_path_factory.mktemp("batch") / f"{recipe}.gguf"
            write_tiny(path, CONFIG, "F32" if recipe == "read only" else recipe, seed=3)
            if recipe == "read only":
                parts = Parts.read(path)
                parts.put_random(*(name for name in FORMATS if name not in WRITTEN))
                parts.write(path)
            made[recipe] = glmrun.load(path, n_ctx=64)
        return made[recipe].weights

    return weights


@pytest.mark.parametrize("recipe", ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q4_K_M", "read only"])
def test_company_changes_no_bit(weights_of: Callable[[str], Weights], recipe: str) -> None:
    weights, rng = weights_of(recipe), np.random.default_rng(8)
    alone, together = Runner(weights, N_CTX, 1), Runner(weights, N_CTX, 2, max_tokens=1024)
    try:
        for n_runs in (1, 2, 5, 16):
            wanted = []
            for _ in range(n_runs):
                n_tokens = int(rng.choice([1, 1, 2, 3, 4, 5, 17, 64]))
                position = int(rng.choice([0, 1, 63, 255, 256, 1000, 5000]))
                n_logits = int(rng.choice([0, 1, n_tokens]))
                wanted.append((position, n_tokens, n_logits, int(rng.integers(1 << 30))))
            company = outcome(weights, together, wanted)
            for run, (logits, rows) in zip(wanted, company, strict=True):
                [(expected, expected_rows)] = outcome(weights, alone, [run])
                assert np.isfinite(expected).all()
                np.testing.assert_array_equal(logits, expected, err_msg=str(run))
                np.testing.assert_array_equal(rows, expected_rows, err_msg=str(run))
            order = rng.permutation(n_runs)
            for i, (logits, _) in zip(order, outcome(weights, together, [wanted[i] for i in order]), strict=True):
                np.testing.assert_array_equal(logits, company[i][0])
    finally:
        alone.close(), together.close()


def test_a_shared_prefix_is_a_computed_one(weights_of: Callable[[str], Weights]) -> None:
    weights = weights_of("Q4_K_M")
    runner = Runner(weights, N_CTX, 2)
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 90)  # int64 (90,)
    first, copy, again = (sequence_at(weights, 0, 0) for _ in range(3))
    out = np.empty((3, 1, CONFIG.vocab_size), np.float32)  # float32 (3, 1, n_vocab)
    for sequence in (first, again):
        assert runner.step([Run(sequence, ids[:70], out[0])])
    copy.share(first, 70)
    assert copy.tokens == ids[:70].tolist()
    first.truncate(0)
    assert runner.step([Run(first, ids[:3], out[0])])  # the copy is its own
    assert runner.step([Run(copy, ids[70:], out[1])]) and runner.step([Run(again, ids[70:], out[2])])
    np.testing.assert_array_equal(out[1], out[2])
    np.testing.assert_array_equal(copy.rows[:, :90], again.rows[:, :90])
    runner.close()


def test_a_cancelled_step_leaves_every_sequence_as_it_was(weights_of: Callable[[str], Weights]) -> None:
    weights = weights_of("Q8_0")
    runner = Runner(weights, N_CTX, 2)
    one, two = sequence_at(weights, 10, 0), sequence_at(weights, 0, 1)
    tokens = np.arange(5)
    runs = [Run(s, tokens, s.logits) for s in (one, two)]
    assert not runner.step(runs, cancelled=lambda: True)
    assert (len(one.tokens), len(two.tokens)) == (10, 0)
    assert runner.step(runs) and (len(one.tokens), len(two.tokens)) == (15, 5)
    runner.close()


@pytest.fixture
def model(tiny_gguf: Callable[..., Tiny]) -> Model:
    return glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=256, n_threads=2)


def answer(model: Model, prompt: list[int]) -> list[int | None]:
    return [chunk.token for chunk in model.generate(prompt, max_tokens=12, temperature=0) if chunk.token is not None]


def test_eight_threads_get_what_each_gets_alone(model: Model, tiny_gguf: Callable[..., Tiny]) -> None:
    rng = np.random.default_rng(4)
    prompts = [rng.integers(0, 900, n).tolist() for n in (3, 4, 9, 20, 33, 60, 61, 100)]
    expected = [answer(model, prompt) for prompt in prompts]
    with glmrun.load(tiny_gguf("Q4_K_M", ODD).path, n_ctx=256, n_threads=2) as other:
        got: list = [None] * len(prompts)

        def ask(i: int) -> None:
            got[i] = answer(other, prompts[i])

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got == expected


def test_one_that_gives_up_does_not_touch_the_others(model: Model) -> None:
    prompt = np.random.default_rng(2).integers(0, 900, 200).tolist()
    answer(model, prompt)
    expected = answer(model, prompt)  # as all that follow: behind a cached prompt
    stop = threading.Event()

    def give_up_again_and_again() -> None:
        while not stop.is_set():
            stream = model.generate(prompt[::-1], max_tokens=5, temperature=0)
            next(stream), next(stream)
            stream.close()

    thread = threading.Thread(target=give_up_again_and_again)
    thread.start()
    try:
        assert all(answer(model, prompt) == expected for _ in range(5))
    finally:
        stop.set()
        thread.join()


def test_close_ends_every_thread(tiny_gguf: Callable[..., Tiny]) -> None:
    path = tiny_gguf("Q4_K_M", ODD).path
    before = set(threading.enumerate())
    with glmrun.load(path, n_ctx=64) as model:
        assert answer(model, [1, 2, 3])
        assert set(threading.enumerate()) - before
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before


def test_a_forked_child_is_refused_in_one_line(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(UserError, match="load it again in the child"):
        model.chat([{"role": "user", "content": "x"}])
    with pytest.raises(UserError, match="load it again in the child"):
        model.logits([1])
