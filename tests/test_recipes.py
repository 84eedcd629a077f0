"""Recipes against what llama-quantize makes of the full-size model: tensors per format, bytes, which blocks get more bits."""

from collections import Counter
from math import prod

import pytest

from quant.config import FLASH as FULL_SIZE
from quant.config import Config, read_per_token, tensor_shapes
from quant.errors import UserError
from quant.formats import FORMATS
from quant.recipes import RECIPES, choose_format, recipe, tensor_formats

FLASH = {
    "hidden_size": 2048,
    "num_hidden_layers": 47,
    "first_k_dense_replace": 1,
    "intermediate_size": 10240,
    "moe_intermediate_size": 1536,
    "n_routed_experts": 64,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "num_attention_heads": 20,
    "q_lora_rank": 768,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 192,
    "qk_rope_head_dim": 64,
    "v_head_dim": 256,
    "max_position_embeddings": 202752,
    "vocab_size": 154880,
}
# recipe: (tensors per format, bytes of tensor data), without and with the MTP layer
TRUNK = {
    "Q4_K_M": ({"F32": 281, "Q4_K": 470, "Q6_K": 46, "Q5_0": 47}, 18_123_246_080),
    "Q6_K": ({"F32": 281, "Q6_K": 516, "Q8_0": 47}, 24_605_310_464),
    "Q8_0": ({"F32": 281, "Q8_0": 563}, 31_833_324_032),
    "F16": ({"F32": 281, "F16": 563}, 59_899_361_792),
    "BF16": ({"F32": 281, "BF16": 563}, 59_899_361_792),
    "F32": ({"F32": 844}, 4 * 29_943_393_920),
}
WITH_MTP = {
    "Q4_K_M": ({"F32": 290, "Q4_K": 482, "Q6_K": 48, "Q5_0": 48}, 18_895_625_984),
    "Q6_K": ({"F32": 290, "Q6_K": 530, "Q8_0": 48}, 25_654_677_248),
    "Q8_0": ({"F32": 290, "Q8_0": 578}, 33_191_718_656),
    "BF16": ({"F32": 290, "BF16": 578}, 62_455_836_416),
}


@pytest.mark.parametrize(("mtp", "name"), [(0, name) for name in TRUNK] + [(1, name) for name in WITH_MTP])
def test_full_size_model(mtp: int, name: str) -> None:
    config = Config(**FLASH, num_nextn_predict_layers=mtp)
    counts: Counter[str] = Counter()
    total = n_weights = 0
    for tensor, shape in tensor_shapes(config).items():
        f = FORMATS[choose_format(RECIPES[name], tensor, shape, config.n_blocks, config.n_routed_experts)]
        counts[f.name] += 1
        total += prod(shape[:-1]) * f.row_bytes(shape[-1])
        n_weights += prod(shape)
    assert (dict(counts), total) == (WITH_MTP if mtp else TRUNK)[name]
    assert abs(8 * total / n_weights - RECIPES[name].bits_per_weight) <= 0.006


@pytest.mark.parametrize(
    ("n_blocks", "expected"),
    [
        (47, {*range(5), *range(7, 41, 3), *range(41, 47)}),
        (48, {*range(6), *range(8, 42, 3), *range(42, 48)}),  # the MTP layer moves the pattern of all the others
    ],
)
def test_blocks_with_more_bits(n_blocks: int, expected: set[int]) -> None:
    for part in ("ffn_down", "ffn_down_exps", "ffn_down_shexp"):
        more = {i for i in range(n_blocks) if choose(f"blk.{i}.{part}.weight", (2048, 1536), n_blocks) == "Q6_K"}
        assert more == expected
    assert {choose(f"blk.{i}.ffn_up.weight", (1536, 2048), n_blocks) for i in range(n_blocks)} == {"Q4_K"}


def choose(name: str, shape: tuple[int, ...], n_blocks: int = 47, n_experts: int = 64, of: str = "Q4_K_M", **tied: bool) -> str:
    return choose_format(RECIPES[of], name, shape, n_blocks, n_experts, **tied)


def test_embedding_and_output() -> None:
    shape = (154880, 2048)
    assert choose("output.weight", shape) == "Q6_K"
    assert choose("token_embd.weight", shape) == "Q4_K"
    assert choose("token_embd.weight", shape, tied=True) == "Q6_K"
    assert choose("blk.47.nextn.shared_head_head.weight", shape) == "Q4_K"
    assert choose("output.weight", shape, of="Q8_0") == "Q8_0"


@pytest.mark.parametrize(
    ("columns", "expected"), [(256, "Q4_K Q6_K Q8_0 F16"), (192, "Q5_0 Q8_0 Q8_0 F16"), (48, "F16 F16 F16 F16")]
)
def test_narrow_rows_fall_back(columns: int, expected: str) -> None:
    chosen = [choose("blk.5.attn_k_b.weight", (20, 512, columns), of=of) for of in ("Q4_K_M", "Q6_K", "Q8_0", "F16")]
    assert chosen == expected.split()
    assert choose("output.weight", (1016, 192)) == "Q8_0"


@pytest.mark.parametrize("of", RECIPES)
def test_what_stays_single_precision(of: str) -> None:
    assert choose("blk.1.ffn_gate_inp.weight", (64, 2048), of=of) == "F32"
    assert choose("blk.1.exp_probs_b.bias", (64,), of=of) == "F32"
    assert choose("blk.1.something.bias", (64, 256), of=of) == "F32"
    assert choose("blk.47.nextn.enorm.weight", (2048,), of=of) == "F32"
    assert choose("blk.1.attn_q_a_norm.weight", (2, 768), of=of) == "F32"
    assert choose("blk.1.ffn_gate_exps.weight", (1, 1, 256), of=of) == "F32"  # GGML sees one dimension


def test_eight_experts() -> None:
    """llama-quantize wants Q5_K for attn_output then, which glmrun does not write."""
    assert choose("blk.1.attn_output.weight", (2048, 5120), n_experts=8) == "Q6_K"
    assert choose("blk.1.attn_output.weight", (2048, 5120), n_experts=8, of="Q8_0") == "Q8_0"


def test_names_in_any_case() -> None:
    assert recipe("q4_k_m") is recipe("Q4_K_M") is RECIPES["Q4_K_M"]
    with pytest.raises(UserError, match="'q5_k'; choose one of Q4_K_M, Q6_K, Q8_0, F16, BF16, F32") as error:
        recipe("q5_k")
    assert error.value.kind == "usage"
    assert {r.name: r.file_type for r in RECIPES.values()} == {"Q4_K_M": 15, "Q6_K": 18, "Q8_0": 7, "F16": 1, "BF16": 32, "F32": 0}


def test_bytes_that_a_token_reads() -> None:
    """All but 60 of 64 experts in 46 layers, all rows of the embedding but one, and the prediction layer."""
    assert Config(**FLASH, num_nextn_predict_layers=1, routed_scaling_factor=1.8) == FULL_SIZE
    embedding, experts = 2048 * 34 // 32, 46 * 60 * 3 * 1536 * 2048 * 34 // 32
    for mtp in (0, 1):
        config = Config(**FLASH, num_nextn_predict_layers=mtp)
        sizes = {name: n_bytes for name, (_, _, n_bytes) in tensor_formats(RECIPES["Q8_0"], config).items()}
        assert read_per_token(config, sizes) == TRUNK["Q8_0"][1] - 154_879 * embedding - experts
    tied = Config(**FLASH, tie_word_embeddings=True)
    weights = {name: prod(shape) for name, shape in tensor_shapes(tied).items()}
    untied = weights | {"output.weight": 154_880 * 2048}
    assert read_per_token(tied, weights) == read_per_token(Config(**FLASH), untied) - 2048
