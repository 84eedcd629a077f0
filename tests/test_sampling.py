"""The sampler against exact probabilities, and every edge of its options."""

import math

import numpy as np
import pytest

from glmrun.engine.sampling import Sampler
from quant.errors import UserError

OFF = {"top_p": 1.0, "min_p": 0.0}
NEVER = -math.inf


def logits_of(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def exact(logits: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The distribution, filter by filter, written the slow and obvious way in llama.cpp's order."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if top_k:
        order = order[:top_k]
    p = np.exp([float(logits[i]) for i in order])
    p /= p.sum()
    kept, total = [], 0.0
    for i, probability in zip(order, p, strict=True):
        if total >= top_p:
            break
        kept.append((i, probability))
        total += probability
    kept = [i for i, probability in kept if probability >= min_p * kept[0][1]]
    weights = np.array([math.exp(float(logits[i]) / temperature) for i in kept])
    result = np.zeros(len(logits))
    result[kept] = weights / weights.sum()
    return result


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.5},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 0.5, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 1.5, "top_p": 0.95, "min_p": 0.01},
    ],
    ids=str,
)
def test_draws_follow_the_exact_distribution(options):
    """Chi-square over 20,000 draws with a fixed seed: 45.1 is the 1e-4 quantile for 16 degrees of freedom, fewer only lower it."""
    logits = np.random.default_rng(5).normal(0, 1.5, 17).astype(np.float32)
    sampler = Sampler(**{**OFF, **options}, seed=11)
    n = 20_000
    counts = np.bincount([sampler.sample(logits) for _ in range(n)], minlength=17)
    expected = n * exact(logits, **options)
    assert counts[expected == 0].sum() == 0
    possible = expected > 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() <= 45.1


@pytest.mark.parametrize(
    "options", [{"top_k": 40}, {"top_p": 0.9}, {"min_p": 0.3}, {"top_k": 500, "top_p": 0.99, "min_p": 1e-3}], ids=str
)
def test_the_kept_set_is_right_for_a_large_vocabulary(options):
    logits = np.random.default_rng(1).normal(0, 2, 20_000).astype(np.float32)
    kept = Sampler(**{**OFF, **options})._candidates(logits, float(logits.max()))
    assert set(kept.tolist()) == set(np.flatnonzero(exact(logits, **options)).tolist())


def test_greedy_takes_the_lowest_id_among_equals_and_ignores_the_seed():
    logits = logits_of(1, 5, 5, -2)
    assert {Sampler(temperature=0, seed=seed).sample(logits) for seed in range(20)} == {1}


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9, "min_p": 0.0}, {"temperature": 1e-300}, {"temperature": 5e-324}]
)
def test_options_that_leave_one_token_are_greedy(options):
    logits = logits_of(0.1, 0.3, 0.2)
    assert {Sampler(**options, seed=seed).sample(logits) for seed in range(20)} == {1}


def test_top_k_keeps_the_lower_ids_among_equals():
    sampler = Sampler(**OFF, top_k=2, seed=0)
    assert {sampler.sample(logits_of(7, 7, 7, 7)) for _ in range(50)} == {0, 1}


def test_a_min_p_of_one_keeps_only_the_likeliest():
    sampler = Sampler(top_p=1.0, min_p=1.0, seed=0)
    assert {sampler.sample(logits_of(3, 4, 4, 2)) for _ in range(50)} == {1, 2}


def test_a_huge_temperature_is_uniform_over_what_the_filters_left():
    sampler = Sampler(temperature=1e9, top_p=1.0, min_p=0.5, seed=3)
    counts = np.bincount([sampler.sample(logits_of(0, -0.5, -9, NEVER)) for _ in range(4000)], minlength=4)
    assert counts[2:].tolist() == [0, 0]
    assert abs(counts[0] - 2000) <= 130  # four standard deviations


def test_impossible_tokens_are_never_drawn():
    sampler = Sampler(temperature=1e30, **OFF, seed=0)
    assert {sampler.sample(logits_of(NEVER, 1, NEVER, 2, NEVER)) for _ in range(200)} == {1, 3}


def test_the_whole_vocabulary_is_kept_when_rounding_keeps_the_sum_below_top_p():
    logits = np.zeros(3000, dtype=np.float32)
    kept = Sampler(top_p=math.nextafter(1.0, 0.0), min_p=0.0)._candidates(logits, 0.0)
    assert len(kept) >= 2999


def test_the_same_seed_gives_the_same_ids():
    logits = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    runs = [[s.sample(logits) for _ in range(30)] for s in (Sampler(seed=42), Sampler(seed=42), Sampler(seed=43))]
    assert runs[0] == runs[1] != runs[2]


def test_forbidden_ids_are_never_drawn():
    logits = logits_of(9, 1, 8, 0)
    assert Sampler(temperature=0, forbidden=np.array([0, 2])).sample(logits) == 1
    assert logits.tolist() == [9, 1, 8, 0]
    with pytest.raises(UserError, match="no token is left"):
        Sampler(forbidden=np.arange(4)).sample(logits)


@pytest.mark.parametrize(
    ("history", "last_n", "expected"),
    [([], 64, 0), ([0], 64, 1), ([0, 3], 1, 0), ([0, 0, 0], 64, 1), ([0], 0, 0), ([0, 1], 64, 0)],
)
def test_repeat_penalty_looks_at_the_last_tokens_once_each(history, last_n, expected):
    assert Sampler(temperature=0, repeat_penalty=1.5, repeat_last_n=last_n).sample(logits_of(3.0, 2.5, -1, -2), history) == expected


def test_repeat_penalty_pushes_negative_logits_down_too():
    assert Sampler(temperature=0, repeat_penalty=2.0).sample(logits_of(-1.0, -1.5), [0]) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_stop_the_generation(bad, temperature):
    for logits in (logits_of(1, bad, 2), logits_of(bad, bad, bad), logits_of(NEVER, bad, 0)):
        with pytest.raises(UserError, match="not finite"):
            Sampler(temperature=temperature).sample(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_possible_is_an_error_not_token_zero(temperature):
    with pytest.raises(UserError, match="no token is left"):
        Sampler(temperature=temperature).sample(logits_of(NEVER, NEVER))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 2.0),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", 1.5),
        ("min_p", -1),
        ("min_p", None),
        ("repeat_penalty", 0.0),
        ("repeat_penalty", -1.0),
        ("repeat_penalty", math.inf),
        ("repeat_last_n", -1),
        ("seed", -1),
        ("seed", 1.5),
    ],
)
def test_an_option_out_of_range_is_named(name, value):
    with pytest.raises(UserError, match=f"^{name} is ") as error:
        Sampler(**{name: value})
    assert error.value.kind == "usage"
    assert "\n" not in str(error.value)
