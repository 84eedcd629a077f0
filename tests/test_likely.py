"""Logits of which only the largest are exact: which they are, and that the others are near."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.from_python import from_python
from support.tiny_model import ODD, write_tiny

import glmrun
from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.engine.sampling import MAX_LOWERED, Sampler
from glmrun.engine.sequence import Sequence
from glmrun.kernels import likely

N_VOCAB = 40_011  # more blocks than are looked into, and a last one that is not whole
WIDE = replace(ODD, hidden_size=256, num_hidden_layers=2, vocab_size=N_VOCAB, max_position_embeddings=256)
TOKENS = np.random.default_rng(3).integers(0, 1000, 64)  # int64 (64,)


@pytest.fixture(scope="module", params=["Q4_K_M", "Q8_0", "F16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("likely") / f"{request.param}.gguf"
    with glmrun.load(write_tiny(path, WIDE, request.param, seed=5).path, n_ctx=256, n_threads=2, draft="off") as model:
        yield model


def run(model: Model, first: int, n: int, likeliest: bool, exact: bool = False) -> Run:
    """A run of n tokens behind the first ones, and logits for each."""
    sequence = Sequence(*model.weights.cache_shape(256))
    if first:
        assert model.runner.step([Run(sequence, TOKENS[:first], sequence.logits)])
    logits = np.full((n, N_VOCAB), np.nan, np.float32)  # float32 (n, n_vocab)
    return Run(sequence, TOKENS[first : first + n], logits, exact=exact, likeliest=likeliest)


def logits_of(model: Model, first: int, n: int, likeliest: bool, exact: bool = False) -> np.ndarray:
    wanted = run(model, first, n, likeliest, exact)
    assert model.runner.step([wanted])
    return wanted.logits


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_largest_logits_are_exact_and_the_others_near(model: Model, n: int) -> None:
    for first in (0, 20, 30):
        every, some = logits_of(model, first, n, False), logits_of(model, first, n, True)
        for exact, near in zip(every, some, strict=True):
            largest = np.argsort(-exact)[: likely.BLOCKS // 2]
            np.testing.assert_array_equal(near[largest], exact[largest])
            assert near.argmax() == exact.argmax()
            assert np.abs(near - exact).max() <= 0.04 * exact.std()
            assert np.count_nonzero(near != exact) >= (0 if _reads_floats(model) else N_VOCAB // 2)


def _reads_floats(model: Model) -> bool:
    """The output matrix reads float32: nothing is ever left out."""
    return int(model.weights.model["reads_output"]) == 0


def test_who_wants_all_logits_gets_them_beside_who_does_not(model: Model) -> None:
    """In company each run has, bit for bit, what it has alone."""
    shapes = [
        (10, 1, True, False),
        (20, 3, False, False),
        (5, 2, True, True),
        (30, 12, True, False),
        (12, 1, True, False),
        (0, 1, False, True),
    ]
    alone = [logits_of(model, *shape) for shape in shapes]
    together = [run(model, *shape) for shape in shapes]
    assert model.runner.step(together)
    for wanted, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(wanted.logits, expected)


def test_drafts_find_what_single_tokens_find(model: Model) -> None:
    together, one = logits_of(model, 40, 3, True, exact=True), run(model, 40, 1, True)
    for i in range(3):
        assert model.runner.step([Run(one.sequence, TOKENS[40 + i : 41 + i], one.logits, likeliest=True)])
        np.testing.assert_array_equal(one.logits[0], together[i])


def test_what_is_drawn_from_the_likeliest_stays_the_same(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers() -> list[list[int]]:
        return [
            [chunk.token for chunk in model.generate(TOKENS[:9].tolist(), max_tokens=12, **options) if chunk.token is not None]
            for options in (
                {"temperature": 0},
                {"temperature": 1, "top_k": 5, "seed": 1},
                {"temperature": 0, "logit_bias": dict.fromkeys(range(0, N_VOCAB, N_VOCAB // 100), -100.0)},
                {"temperature": 0, "repeat_penalty": 1.3},
            )
        ]

    assert not Sampler(logit_bias=dict.fromkeys(range(101), -100.0), repeat_penalty=1.0).reads_all
    now = answers()
    monkeypatch.setattr(Sampler, "reads_all", True)
    assert answers() == now


@pytest.mark.parametrize("far", [0.0, 20.0, 3000.0])
def test_so_many_blocks_are_exact_however_far_one_stands_above_them(far: float) -> None:
    """A token that is forbidden may have the largest logit by far."""
    maxima = np.random.default_rng(7).normal(0, 3, 2420).astype(np.float32)  # (n_blocks,)
    maxima[1234] += far
    threshold = from_python(likely._threshold)(maxima.ctypes.data, len(maxima))
    assert np.count_nonzero(maxima >= threshold) in range(likely.BLOCKS, likely.BLOCKS + 4)


@pytest.mark.parametrize(
    "options",
    [
        {"repeat_penalty": 0.9},
        {"repeat_penalty": 1.1, "repeat_last_n": 129},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -1.0},
        {"logit_bias": {5: 3.0}},
        {"logit_bias": dict.fromkeys(range(129), -1.0)},
        {"logit_bias": dict.fromkeys(range(65), -1.0), "repeat_penalty": 1.1},
        {"temperature": 3.0},
    ],
)
def test_unlikely_tokens_may_be_drawn(options: dict) -> None:
    assert Sampler(**options).reads_all


def test_otherwise_the_likely_ones_are_enough() -> None:
    assert not Sampler().reads_all and not Sampler(temperature=0).reads_all
    assert not Sampler(repeat_penalty=1.1, logit_bias={5: -100.0}, forbidden=np.arange(63)).reads_all
    assert MAX_LOWERED <= likely.BLOCKS // 2


def test_probabilities_are_those_of_all_logits(model: Model) -> None:
    prompt = TOKENS[20:29].tolist()  # nobody else's: of one that is remembered the last token would be read alone, and rounded so
    chunks = list(model.generate(prompt, max_tokens=3, temperature=0, logprobs=2))
    reported = [chunk.logprobs[0].logprob for chunk in chunks if chunk.logprobs]
    ids = prompt + [chunk.token for chunk in chunks if chunk.token is not None]
    for i, own in enumerate(reported):
        row = logits_of_ids(model, ids[: 9 + i])
        expected = float(row[ids[9 + i]]) - np.log(np.exp(row.astype(np.float64)).sum())
        assert abs(own - expected) <= 2e-5


def logits_of_ids(model: Model, ids: list[int]) -> np.ndarray:
    sequence = Sequence(*model.weights.cache_shape(256))
    assert model.runner.step([Run(sequence, np.array(ids[:9], np.int64), sequence.logits)])
    for token in ids[9:]:
        assert model.runner.step([Run(sequence, np.array([token], np.int64), sequence.logits)])
    return sequence.logits[0]
