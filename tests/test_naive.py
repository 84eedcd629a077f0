"""The slow twin itself: its two forms of attention agree. tests/live holds it against transformers."""

from dataclasses import replace

import numpy as np
import pytest
from naive import Naive, rms_norm, rope, round_activations, softmax
from support.comparison import nmse
from support.tiny_model import ODD, ODDER, random_weights

TOKENS = np.random.default_rng(7).integers(0, ODD.vocab_size, 24)


@pytest.mark.parametrize("config", [ODD, ODDER], ids=["odd", "odder"])
def test_absorbed_attention_equals_the_expanded_form(config):
    weights = random_weights(config, seed=1)
    expanded = Naive(weights, config).logits(TOKENS)
    absorbed = Naive(weights, config, absorbed=True).logits(TOKENS)
    assert nmse(absorbed, expanded) <= 1e-25  # the same sums in another order, in float64


def test_a_position_sees_nothing_that_comes_after_it():
    naive = Naive(random_weights(ODD, seed=1), ODD)
    assert nmse(naive.logits(TOKENS[:10]), naive.logits(TOKENS)[:10]) <= 1e-25


def test_the_bias_chooses_and_does_not_weigh():
    weights = random_weights(ODD, seed=1)
    x = np.random.default_rng(2).standard_normal((50, ODD.hidden_size))
    unbiased, plain = Naive(weights, ODD).route(1, x)
    weights["blk.1.exp_probs_b.bias"] = np.where(np.arange(12) == 5, 10.0, 0.0).astype(np.float32)
    chosen, scaled = Naive(weights, ODD).route(1, x)
    assert (chosen[:, 0] == 5).all() and not (unbiased[:, 0] == 5).all()
    assert np.allclose(scaled.sum(-1), ODD.routed_scaling_factor) and np.allclose(plain.sum(-1), ODD.routed_scaling_factor)
    assert scaled[:, 0].min() < 0.4  # a low score stays a low weight, however large the bias


def test_equal_scores_choose_the_lowest_experts():
    weights = random_weights(ODD, seed=1)
    weights["blk.1.ffn_gate_inp.weight"][:] = 0
    weights["blk.1.exp_probs_b.bias"][:] = 0
    chosen, _ = Naive(weights, ODD).route(1, np.ones((1, ODD.hidden_size)))
    assert chosen.tolist() == [[0, 1, 2]]


def test_softmax_routing_without_normalization_keeps_the_probabilities():
    config = replace(ODD, scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0)
    weights = random_weights(config, seed=1)
    weights["blk.1.exp_probs_b.bias"][:] = 0
    x = np.random.default_rng(2).standard_normal((5, config.hidden_size))
    expected = np.sort(softmax(x @ weights["blk.1.ffn_gate_inp.weight"].T.astype(float)), axis=-1)[:, ::-1][:, :3]
    assert np.allclose(Naive(weights, config).route(1, x)[1], expected, rtol=1e-12)


def test_rope_turns_neighbouring_pairs():
    turned = rope(np.array([[1.0, 0.0, 1.0, 0.0]]), np.array([3]), theta=100.0)
    assert np.allclose(turned, [[np.cos(3), np.sin(3), np.cos(0.3), np.sin(0.3)]], atol=1e-15)


def test_rms_norm_of_a_zero_vector_is_zero():
    assert (rms_norm(np.zeros((1, 4)), np.ones(4), 1e-5) == 0).all()


@pytest.mark.parametrize("format_name", ["Q4_K", "Q8_0", "F16"])
def test_rounded_activations_stay_within_half_a_step(format_name):
    x = np.random.default_rng(3).standard_normal((4, 512))
    x[0] = 0
    step = np.abs(x).max() / 127
    rounded = round_activations(x, format_name)
    assert (rounded[0] == 0).all()
    assert np.abs(rounded - x).max() <= (0.51 * step if format_name != "F16" else 0)
