"""The forward pass against its slow twin, tests/naive.py, on the very weights that stand in the file.

Where activations stay float32 the two differ by float32 rounding only. Where they are rounded to 8 bits, a difference of 1e-7 moves
a value across a rounding border now and then, and each crossing disturbs the next vector a little more: after a few matrices two
correct programs share the size of their rounding noise and no longer its values. So each kind of matrix is first quantized alone,
the others F32, and held tightly; whole quantized models are then held to the size of the noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from naive import Naive
from support.comparison import errors, nmse
from support.tiny_model import ODD, ODDER, Tiny, random_weights, write_tiny

import glmrun
from glmrun.measure.steps import Steps

RNG = np.random.default_rng(11)
TOKENS = RNG.integers(0, 950, 33).tolist()
SMALL = replace(ODD, num_hidden_layers=2, hidden_size=256, intermediate_size=512, v_head_dim=128)
LEAST = replace(SMALL, intermediate_size=256, n_routed_experts=4, num_experts_per_tok=2, num_attention_heads=4)

# (part of the tensors' names, formats that its rows can have): every matrix of the model, one kind at a time.
PARTS = [
    "attn_q_a",
    "attn_q_b",
    "attn_kv_a_mqa",
    "attn_output",
    "ffn_gate.",
    "ffn_up.",
    "ffn_down.",
    "_exps",
    "_shexp",
    "output.weight",
]
ALONE = [f"{f} in {part}" for part in PARTS for f in ("Q4_K", "Q6_K", "Q8_0")]
ALONE += [f"{f} in {part}" for part in ("attn_k_b", "attn_v_b") for f in ("Q5_0", "Q8_0")]
ALONE += [
    "Q5_0 in _exps",
    "Q5_0 in attn_output",
    "Q4_K in token_embd",
    "Q6_K in token_embd",
    "Q8_0 in token_embd",
    "Q4_K in attn_v_b",
]


FLOAT32 = 1e-10  # where nothing is rounded but float32 sums; the naive model in float32 differs from itself in float64 by 1e-12


def assert_rounded_as_naive(tiny: Tiny, got: np.ndarray) -> None:
    """got is near the naive model that rounds as the kernels do, compared with what that rounding changes.

    Another way of rounding, or rounding in one place more or fewer, puts the two about twice the noise apart.
    """
    rounded, exact = tiny.naive().logits(TOKENS), tiny.naive(as_kernels=False).logits(TOKENS)
    assert np.median(errors(got, rounded)) <= 0.5 * np.median(errors(rounded, exact))


@contextmanager
def loaded(tiny: Tiny, n_ctx: int = 128, n_threads: int = 2) -> Iterator["glmrun.Model"]:
    yield glmrun.load(tiny.path, n_ctx=n_ctx, n_threads=n_threads)


@pytest.mark.parametrize("config", [ODD, ODDER], ids=["odd", "odder"])
@pytest.mark.parametrize("choice", ["F32", "F16", "BF16"])
def test_float_weights_give_the_naive_logits(tiny_gguf, choice, config):
    tiny = tiny_gguf(choice, config)
    with loaded(tiny) as model:
        got = model.logits(TOKENS)
    assert got.dtype == np.float32 and got.shape == (len(TOKENS), config.vocab_size)
    assert errors(got, tiny.naive().logits(TOKENS)).max() <= FLOAT32


@pytest.mark.parametrize("choice", ALONE)
def test_each_matrix_quantized_alone_gives_the_naive_logits(tiny_gguf, choice):
    tiny = tiny_gguf(choice, LEAST)
    format_name, _, part = choice.partition(" in ")
    assert format_name in {f for name, f in tiny.formats.items() if part in name}
    with loaded(tiny) as model:
        assert_rounded_as_naive(tiny, model.logits(TOKENS))


@pytest.mark.parametrize("config", [ODD, ODDER], ids=["odd", "odder"])
@pytest.mark.parametrize("choice", ["Q8_0", "Q6_K", "Q4_K_M", "everything"])
def test_quantized_models_stay_within_the_rounding_noise(tiny_gguf, choice, config):
    tiny = tiny_gguf(choice, config)
    exact = tiny.naive(as_kernels=False).logits(TOKENS)
    noise = np.median(errors(tiny.naive().logits(TOKENS), exact))
    with loaded(tiny) as model:
        got = errors(model.logits(TOKENS), exact)
    # Where a router near a tie falls the other way, later positions see it and are worse: 3.2 was seen for the median, 1.0 is the
    # rule. An error of the kernels would spare no position.
    assert np.quantile(got, 0.1) <= 1.2 * noise and np.median(got) <= 6 * noise
    assert noise <= 2e-3  # 1.3e-3 was seen where the naive model itself met a tie


@pytest.mark.parametrize("choice", ["F32", "BF16", "everything", "Q4_K_M"])
def test_one_thread_equals_two_threads_bit_for_bit(tiny_gguf, choice):
    tiny = tiny_gguf(choice, ODDER)
    for n_tokens in (1, 2, 3, 5, 7, 9, 31, 33):
        with loaded(tiny, n_threads=1) as one, loaded(tiny, n_threads=2) as two:
            np.testing.assert_array_equal(one.logits(TOKENS[:n_tokens]), two.logits(TOKENS[:n_tokens]))


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 5, 7, 9, 31, 33])
def test_odd_numbers_of_tokens(tiny_gguf, n_tokens):
    tiny = tiny_gguf("BF16", SMALL)
    with loaded(tiny) as model:
        got = model.logits(TOKENS[:n_tokens])
    assert errors(got, tiny.naive().logits(TOKENS[:n_tokens])).max() <= FLOAT32


def test_a_second_pass_starts_from_an_empty_cache(tiny_gguf):
    with loaded(tiny_gguf("Q4_K_M")) as model:
        first = model.logits(TOKENS)
        model.logits(TOKENS[::-1])
        np.testing.assert_array_equal(model.logits(TOKENS), first)


def test_long_sequences(tiny_gguf):
    tiny = tiny_gguf("F32", SMALL)
    tokens = RNG.integers(0, 950, 500).tolist()
    with loaded(tiny, n_ctx=512) as model:
        error = errors(model.logits(tokens), tiny.naive().logits(tokens))
    assert error.max() <= FLOAT32


def test_all_tokens_to_the_same_experts_and_none_to_the_others(tmp_path):
    weights = random_weights(SMALL, seed=3)
    weights["blk.1.exp_probs_b.bias"] = np.where(np.isin(np.arange(12), (0, 4, 11)), 5, 0).astype(np.float32)
    tiny = write_tiny(tmp_path / "same.gguf", SMALL, "F32", weights=weights)
    assert set(tiny.naive().route(1, RNG.standard_normal((9, 256)))[0].ravel()) == {0, 4, 11}
    with loaded(tiny) as model:
        got = model.logits(TOKENS)
    assert errors(got, tiny.naive().logits(TOKENS)).max() <= FLOAT32


def test_equal_router_scores_take_the_lowest_experts(tmp_path):
    weights = random_weights(SMALL, seed=3)
    weights["blk.1.ffn_gate_inp.weight"][:] = 0
    weights["blk.1.exp_probs_b.bias"][:] = 0
    tiny = write_tiny(tmp_path / "ties.gguf", SMALL, "F32", weights=weights)
    with loaded(tiny) as model:
        got = model.logits(TOKENS)
    assert errors(got, tiny.naive().logits(TOKENS)).max() <= FLOAT32


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, scoring_func="softmax"),
        replace(SMALL, norm_topk_prob=False),
        replace(SMALL, tie_word_embeddings=True),
        replace(SMALL, num_experts_per_tok=1, routed_scaling_factor=2.5),
        replace(SMALL, num_experts_per_tok=12),
        replace(SMALL, first_k_dense_replace=0),
        replace(SMALL, num_attention_heads=1, qk_rope_head_dim=2, qk_nope_head_dim=64),
        replace(SMALL, num_attention_heads=5, rope_theta=1e4, rms_norm_eps=1e-2),
        replace(SMALL, num_nextn_predict_layers=1),
    ],
    ids=[
        "softmax",
        "unnormalized",
        "tied",
        "top 1",
        "all experts",
        "no dense layer",
        "one head",
        "other constants",
        "prediction layer",
    ],
)
def test_every_hyper_parameter_is_obeyed(tmp_path, config):
    tiny = write_tiny(tmp_path / "variant.gguf", config, "F32", seed=4)
    with loaded(tiny) as model:
        stored = {
            name: float(np.float32(getattr(config, name))) for name in ("rms_norm_eps", "routed_scaling_factor", "rope_theta")
        }
        assert model.config == replace(config, **stored)  # a GGUF file keeps them as float32
        got = model.logits(TOKENS)
    assert errors(got, Naive(tiny.weights, config).logits(TOKENS)).max() <= FLOAT32


@pytest.mark.parametrize("choice,limit", [("F32", FLOAT32), ("Q4_K_M", 3e-3)])  # rounding alone: 5e-4
def test_the_last_layer_computes_only_what_is_asked_for(tiny_gguf, choice, limit):
    """Most of a prompt's tokens pass the last layer only as far as its cache wants them; what comes out is the same."""
    tiny = tiny_gguf(choice, ODD)
    tokens = np.random.default_rng(6).integers(0, 256, 41).tolist()
    whole, part = (glmrun.load(tiny.path, n_ctx=64, n_threads=2) for _ in range(2))
    expected = whole.logits(tokens)[-1]
    steps = Steps(part)
    steps.prefill(tokens[:30], n_ubatch=15)  # a step without logits, one with its last token's
    steps.prefill(tokens[30:])
    assert part.latest.tokens == whole.latest.tokens == tokens
    assert errors(part.latest.logits[0], expected) <= limit
    kind = np.float32 if choice == "F32" else np.float16
    rows, wanted = (model.latest.rows[:, :41].copy().view(kind) for model in (part, whole))
    assert nmse(rows[-1], wanted[-1]) <= limit and nmse(rows, wanted) <= limit
