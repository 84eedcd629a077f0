"""A GGUF file is the checkpoint's numbers under other names, and it is there whole or not at all."""

import itertools
import json
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from make_synthetic import FLASH
from support.checkpoint_folder import SMALL, bf16, floats, fuse_experts, source_tensors, write_folder
from support.conversion import refused, run
from synthetic_checkpoint import config_json, source_shapes, write_checkpoint, write_sparse_shards

import quant.convert
from glmrun.chat.tokenizer import Tokenizer
from glmrun.gguf.open import open_gguf
from quant.checkpoint import Checkpoint
from quant.config import tensor_shapes
from quant.convert import Progress, convert, plan
from quant.errors import UserError
from quant.formats import FORMATS
from quant.recipes import RECIPES

LAYER, HEADS = "model.layers.1.", SMALL.num_attention_heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("source") / "Small-GLM")


class File(NamedTuple):
    metadata: dict[str, Any]
    tensors: dict[str, gguf.ReaderTensor]

    def values(self, name: str) -> np.ndarray:
        """The tensor decoded by gguf-py: float32, row-major."""
        tensor = self.tensors[name]
        return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1].tolist())


def read(path: Path) -> File:
    """A GGUF file through gguf-py's eyes."""
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    return File(fields, {tensor.name: tensor for tensor in reader.tensors})


# --- the plan ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """The real model's names and shapes; the shards are holes."""
    folder = tmp_path_factory.mktemp("full") / "GLM-4.7-Flash"
    write_checkpoint(folder, FLASH)
    checkpoint = Checkpoint.open(folder)
    yield checkpoint
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("quantization", "mtp", "n_bytes", "counts"),
    [
        ("Q4_K_M", False, 18_123_246_080, {"F32": 281, "Q4_K": 470, "Q6_K": 46, "Q5_0": 47}),
        ("Q4_K_M", True, 18_895_625_984, {"F32": 290, "Q4_K": 482, "Q6_K": 48, "Q5_0": 48}),
        ("Q6_K", False, 24_605_310_464, {"F32": 281, "Q6_K": 516, "Q8_0": 47}),
        ("Q6_K", True, 25_654_677_248, {"F32": 290, "Q6_K": 530, "Q8_0": 48}),
        ("Q8_0", False, 31_833_324_032, {"F32": 281, "Q8_0": 563}),
        ("Q8_0", True, 33_191_718_656, {"F32": 290, "Q8_0": 578}),
        ("BF16", False, 59_899_361_792, {"F32": 281, "BF16": 563}),
        ("BF16", True, 62_455_836_416, {"F32": 290, "BF16": 578}),
    ],
)
def test_plan_of_the_full_model(full_size: Checkpoint, quantization: str, mtp: bool, n_bytes: int, counts: dict[str, int]) -> None:
    planned = plan(full_size, quantization, mtp)
    assert planned.tensor_bytes == n_bytes
    assert Counter(row.format for row in planned.rows) == counts
    assert planned.config.n_blocks == planned.metadata["deepseek2.block_count"] == 47 + mtp
    assert planned.metadata["general.size_label"] == "64x2.6B" or mtp


def test_plan_says_what_becomes_what(full_size: Checkpoint) -> None:
    rows = {row.name: row for row in plan(full_size, "q4_k_m").rows}
    row = rows["blk.1.ffn_down_exps.weight"]
    assert (row.shape, row.source, row.format, row.n_bytes) == ((64, 2048, 1536), "BF16", "Q6_K", 64 * 2048 * 1536 // 256 * 210)
    assert (rows["blk.47.attn_k_b.weight"].shape, rows["blk.47.attn_k_b.weight"].format) == ((20, 512, 192), "Q5_0")
    assert (rows["blk.3.exp_probs_b.bias"].source, rows["blk.3.exp_probs_b.bias"].format) == ("F32", "F32")


def test_unknown_quantization(folder: Path) -> None:
    with pytest.raises(UserError, match=r"'Q3_X'.*Q4_K_M.*BF16") as caught:
        plan(Checkpoint.open(folder), "Q3_X")
    assert caught.value.kind == "usage"


# --- what is in the file -----------------------------------------------------------------------------------------------


def test_metadata(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "x.gguf", "Q8_0")
    found = read(tmp_path / "x.gguf").metadata
    tokens, types, merges = (found.pop(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges"))
    assert (len(tokens), len(types), merges) == (320, 320, ["t h", "th e", "Ġ a", "Ġa n"])
    assert (tokens[264:267], types[264:267]) == (["<|observation|>", "<think>", "[PAD266]"], [3, 4, 5])
    assert found.pop("tokenizer.chat_template").startswith("[gMASK]<sop>")
    for key in ("algorithm", "tensors", "header"):
        assert found.pop(f"glmrun.checksum.{key}")
    rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in found.items()}
    assert rounded == {
        "general.architecture": "deepseek2",
        "general.type": "model",
        "general.name": "Small-GLM",
        "general.basename": "Small-GLM",
        "general.size_label": "5x3.7M",
        "general.quantized_by": "glmrun",
        "general.quantization_version": 2,
        "general.file_type": 7,
        "general.license": "mit",
        "general.sampling.temp": 1.0,
        "general.sampling.top_k": 40,
        "general.sampling.top_p": 0.95,
        "deepseek2.block_count": 4,
        "deepseek2.nextn_predict_layers": 1,
        "deepseek2.context_length": 1024,
        "deepseek2.embedding_length": 256,
        "deepseek2.feed_forward_length": 512,
        "deepseek2.leading_dense_block_count": 1,
        "deepseek2.vocab_size": 320,
        "deepseek2.attention.head_count": 3,
        "deepseek2.attention.head_count_kv": 1,
        "deepseek2.attention.layer_norm_rms_epsilon": 1e-5,
        "deepseek2.attention.q_lora_rank": 256,
        "deepseek2.attention.kv_lora_rank": 256,
        "deepseek2.attention.key_length": 288,
        "deepseek2.attention.value_length": 256,
        "deepseek2.attention.key_length_mla": 128,
        "deepseek2.attention.value_length_mla": 64,
        "deepseek2.rope.dimension_count": 32,
        "deepseek2.rope.freq_base": 1e6,
        "deepseek2.expert_feed_forward_length": 256,
        "deepseek2.expert_count": 5,
        "deepseek2.expert_used_count": 2,
        "deepseek2.expert_shared_count": 1,
        "deepseek2.expert_group_count": 1,
        "deepseek2.expert_group_used_count": 1,
        "deepseek2.expert_weights_scale": 1.8,
        "deepseek2.expert_weights_norm": True,
        "deepseek2.expert_gating_func": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "glm4",
        "tokenizer.ggml.bos_token_id": 261,
        "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.ggml.eot_token_id": 263,
        "tokenizer.ggml.eom_token_id": 264,
        "tokenizer.ggml.unknown_token_id": 260,
        "tokenizer.ggml.padding_token_id": 260,
        "tokenizer.ggml.add_bos_token": False,
    }


def test_tensors_stand_in_the_order_and_shape_of_the_table(folder: Path, tmp_path: Path) -> None:
    for mtp in (True, False):
        config = SMALL if mtp else replace(SMALL, num_nextn_predict_layers=0)
        run(folder, tmp_path / "x.gguf", "Q8_0", mtp, force=True)
        found = read(tmp_path / "x.gguf")
        assert {name: tuple(t.shape[::-1].tolist()) for name, t in found.tensors.items()} == tensor_shapes(config)
        assert list(found.tensors) == list(tensor_shapes(config))
        assert all(t.data_offset % 32 == 0 for t in found.tensors.values())
        assert ("deepseek2.nextn_predict_layers" in found.metadata) == mtp
        assert found.metadata["deepseek2.block_count"] == 3 + mtp


def test_bf16_file_holds_the_checkpoint_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    """Renaming, stacking and splitting, held against the source arrays."""
    run(folder, tmp_path / "x.gguf", "BF16")
    found, source = read(tmp_path / "x.gguf"), {name: values for name, (_, values) in source_tensors(SMALL).items()}

    def bits(name: str) -> np.ndarray:
        tensor = found.tensors[name]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.BF16
        return tensor.data.view(np.uint16).reshape(tensor.shape[::-1].tolist())

    assert np.array_equal(bits("token_embd.weight"), source["model.embed_tokens.weight"])
    assert np.array_equal(bits("output.weight"), source["lm_head.weight"])
    assert np.array_equal(bits("blk.0.ffn_down.weight"), source["model.layers.0.mlp.down_proj.weight"])
    assert np.array_equal(bits("blk.1.ffn_up_shexp.weight"), source[LAYER + "mlp.shared_experts.up_proj.weight"])
    assert np.array_equal(bits("blk.3.nextn.eh_proj.weight"), source["model.layers.3.eh_proj.weight"])
    assert np.array_equal(bits("blk.3.nextn.shared_head_head.weight"), source["model.layers.3.shared_head.head.weight"])
    for part in ("gate", "up", "down"):
        stacked = np.stack([source[f"{LAYER}mlp.experts.{e}.{part}_proj.weight"] for e in range(SMALL.n_routed_experts)])
        assert np.array_equal(bits(f"blk.1.ffn_{part}_exps.weight"), stacked)
    both = source[LAYER + "self_attn.kv_b_proj.weight"].reshape(HEADS, 96 + 64, 256)  # (heads, nope + v, latent)
    assert np.array_equal(bits("blk.1.attn_k_b.weight"), both[:, :96].transpose(0, 2, 1))
    assert np.array_equal(bits("blk.1.attn_v_b.weight"), both[:, 96:])
    assert np.array_equal(found.values("blk.1.attn_norm.weight"), floats(source[LAYER + "input_layernorm.weight"]))
    assert np.array_equal(found.values("blk.1.ffn_gate_inp.weight"), floats(source[LAYER + "mlp.gate.weight"]))
    assert np.array_equal(found.values("blk.1.exp_probs_b.bias"), source[LAYER + "mlp.gate.e_score_correction_bias"])


@pytest.mark.parametrize("quantization", list(RECIPES))
def test_every_recipe_encodes_each_row_as_its_format_does(folder: Path, tmp_path: Path, quantization: str) -> None:
    run(folder, tmp_path / "x.gguf", quantization)
    found, planned = read(tmp_path / "x.gguf"), plan(Checkpoint.open(folder), quantization)
    assert found.metadata["general.file_type"] == RECIPES[quantization].file_type
    source = {name: floats(v) if dtype == "BF16" else v for name, (dtype, v) in source_tensors(SMALL).items()}
    both = source[LAYER + "self_attn.kv_b_proj.weight"].reshape(HEADS, 96 + 64, 256)
    experts = [source[f"{LAYER}mlp.experts.{e}.down_proj.weight"] for e in range(SMALL.n_routed_experts)]
    want = {
        "blk.1.attn_k_b.weight": both[:, :96].transpose(0, 2, 1).reshape(-1, 96),
        "blk.1.ffn_down_exps.weight": np.concatenate(experts),
        "output.weight": source["lm_head.weight"],
    }
    for row in planned.rows:
        assert found.tensors[row.name].tensor_type == FORMATS[row.format].ggml_type
        if row.name in want:
            assert found.tensors[row.name].data.tobytes() == FORMATS[row.format].encode(want[row.name]).tobytes()


def test_fused_experts_make_the_same_file(folder: Path, tmp_path: Path) -> None:
    fused = write_folder(tmp_path / "Small-GLM", tensors=fuse_experts(SMALL, source_tensors(SMALL)))
    run(folder, tmp_path / "a.gguf", "Q8_0")
    run(fused, tmp_path / "b.gguf", "Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_other_source_types(tmp_path: Path) -> None:
    """F16 and F32 checkpoints; F32 to F32 and F16 to F16 are copies."""
    values = {n: floats(v) if dtype == "BF16" else v for n, (dtype, v) in source_tensors(SMALL).items()}
    for kind, dtype in (("F32", np.float32), ("F16", np.float16)):
        tensors = {name: (kind, v.astype(dtype)) for name, v in values.items()}
        run(write_folder(tmp_path / kind, tensors=tensors), tmp_path / f"{kind}.gguf", kind)
        written = read(tmp_path / f"{kind}.gguf").tensors["output.weight"]
        assert np.array_equal(written.data.view(dtype).reshape(320, 256), values["lm_head.weight"].astype(dtype))


def test_tied_embeddings_have_no_output_tensor(tmp_path: Path) -> None:
    tied, weights = replace(SMALL, tie_word_embeddings=True), source_tensors(SMALL)
    del weights["lm_head.weight"]
    run(write_folder(tmp_path / "a", tied, weights), tmp_path / "x.gguf")
    assert "output.weight" not in read(tmp_path / "x.gguf").tensors


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_prediction_layer_leaves_out_is_the_trunks(tmp_path: Path, tied: bool) -> None:
    config, weights = replace(SMALL, tie_word_embeddings=tied), source_tensors(SMALL)
    if tied:
        del weights["lm_head.weight"]
    pairs = {"embed_tokens": "model.embed_tokens", "shared_head.norm": "model.norm"}
    pairs["shared_head.head"] = "model.embed_tokens" if tied else "lm_head"
    twice, left_out = dict(weights), dict(weights)
    for own, trunk in pairs.items():
        twice[f"model.layers.3.{own}.weight"] = weights[f"{trunk}.weight"]
        del left_out[f"model.layers.3.{own}.weight"]
    for name, tensors in (("twice", twice), ("left_out", left_out)):
        run(write_folder(tmp_path / name / "Small-GLM", config, tensors), tmp_path / f"{name}.gguf", "Q8_0")
    assert (tmp_path / "left_out.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


@pytest.mark.parametrize(
    ("eos", "want"),
    [
        ([260, 263, 264], (260, 263, 264)),
        (260, (260, 263, 264)),  # GLM's other end tokens are found by name
        ([262, 260], (262, 263, 264)),
        (None, (260, 263, 264)),
    ],
)
def test_end_tokens(tmp_path: Path, eos: object, want: tuple[int, ...]) -> None:
    found = plan(Checkpoint.open(write_folder(tmp_path / "a", eos_token_id=eos)), "BF16").metadata
    assert tuple(found[f"tokenizer.ggml.{key}_token_id"] for key in ("eos", "eot", "eom")) == want
    assert "tokenizer.ggml.eos_token_ids" not in found


def test_flags_of_added_tokens_that_gguf_cannot_say(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    assert not Checkpoint.open(folder).notes
    path = folder / "tokenizer.json"
    source = json.loads(path.read_text())
    source["added_tokens"][3] |= {"rstrip": True, "normalized": True}
    path.write_text(json.dumps(source))
    [said] = Checkpoint.open(folder).notes
    assert "'<|user|>', which GGUF cannot say" in said


@pytest.mark.parametrize("eos", [[260, 263, 264, 262], [262, 265, 260]])
def test_more_end_tokens_than_keys(tmp_path: Path, eos: list[int]) -> None:
    run(write_folder(tmp_path / "a", eos_token_id=eos), tmp_path / "x.gguf")
    assert Tokenizer.from_metadata(open_gguf(tmp_path / "x.gguf").metadata).eog_ids == {*eos, 263, 264}


@pytest.mark.parametrize("eos", [[260, 263, 264], None])
def test_end_tokens_that_config_json_does_not_name(tmp_path: Path, eos: object) -> None:
    """generation_config.json's are what transformers ends with, and a tuned tokenizer has its own: answers went on behind both."""
    folder = write_folder(tmp_path / "a", eos_token_id=eos)
    (folder / "generation_config.json").write_text('{"eos_token_id": [261, 260]}')
    for own, more in (("the", {257}), ({"content": "<sop>"}, {262}), ("absent", set()), (None, set())):
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": own}))
        run(folder, tmp_path / "x.gguf", force=True)
        assert Tokenizer.from_metadata(open_gguf(tmp_path / "x.gguf").metadata).eog_ids == {260, 261, 263, 264} | more
    (folder / "generation_config.json").write_text('{"eos_token_id": [261, 999]}')
    assert "generation_config.json: eos_token_id is [261, 999]" in str(refused(folder, tmp_path / "y.gguf"))


def test_numbers_beyond_float32_and_texts_beyond_unicode(tmp_path: Path) -> None:
    large = plan(Checkpoint.open(write_folder(tmp_path / "a", rope_theta=1e300)), "BF16")
    with pytest.raises(UserError, match=r"rope\.freq_base is 1e\+300"):
        _ = large.file_bytes
    folder = write_folder(tmp_path / "b")
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text('{"chat_template": "abc\\ud800"}')
    assert "half a surrogate pair at character 3" in str(refused(folder, tmp_path / "x.gguf"))


# --- how it is written -------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_threads_or_chunks(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, tmp_path / "a.gguf", "Q4_K_M", n_threads=1)
    run(folder, tmp_path / "b.gguf", "Q4_K_M", n_threads=5)
    monkeypatch.setattr(quant.convert, "_CHUNK_WEIGHTS", 1000)  # three rows
    run(folder, tmp_path / "c.gguf", "Q4_K_M", n_threads=3)
    a, b, c = ((tmp_path / f"{name}.gguf").read_bytes() for name in "abc")
    assert a == b == c


def test_progress(folder: Path, tmp_path: Path) -> None:
    planned = plan(Checkpoint.open(folder), "Q8_0")
    steps = list(convert(planned, tmp_path / "x.gguf"))
    size = (tmp_path / "x.gguf").stat().st_size
    n = len(planned.rows)
    assert steps[-1] == Progress("output.weight", n, n, size, size, steps[-1].done) and size == planned.file_bytes
    assert [step.tensor for step in steps if step.done] == [row.name for row in planned.rows]
    assert all(a.bytes_done < b.bytes_done and a.tensors_done <= b.tensors_done for a, b in itertools.pairwise(steps))


def test_memory_is_bounded_by_chunks_not_by_the_model(tmp_path: Path) -> None:
    """A sparse checkpoint of 150 MB; its largest tensor has 50 MB."""
    big = replace(SMALL, hidden_size=1024, vocab_size=25_000, n_routed_experts=4)
    folder = write_folder(tmp_path / "big")
    (folder / "config.json").write_text(json.dumps(config_json(big, [260])))
    write_sparse_shards(folder, source_shapes(big), 3)  # in the place of the small ones
    planned = plan(Checkpoint.open(folder), "BF16")
    assert planned.tensor_bytes > 200 << 20
    tracemalloc.start()
    try:
        for _ in convert(planned, tmp_path / "x.gguf", n_threads=2):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "x.gguf").stat().st_size == planned.file_bytes
    assert peak <= 48 << 20


# --- what must not happen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".", "..", "/"])
@pytest.mark.parametrize("split_bytes", [None, 1 << 20])
def test_a_folder_is_no_name_of_a_file(folder: Path, name: str, split_bytes: int | None) -> None:
    with pytest.raises(UserError, match=r" is a folder; give the name of a file$"):
        list(convert(plan(Checkpoint.open(folder), "BF16", split_bytes=split_bytes), name))


@pytest.mark.parametrize(("value", "n"), [(np.nan, 1), (np.inf, 3), (-np.inf, 2)])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float, n: int) -> None:
    """Class S10: found while they are read."""
    tensors = source_tensors(SMALL)
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    tensors[name][1].reshape(-1)[: n * 700 : 700] = bf16(np.float32(value))
    folder = write_folder(tmp_path / "a", tensors=tensors)
    error = refused(folder, tmp_path / "x.gguf", "Q8_0")
    assert f"blk.2.ffn_up_exps.weight: {n} of 327,680 weights are not finite" in str(error) and error.kind == "failed"
    refused(folder, tmp_path / "x.gguf", "BF16")  # also where bytes are only copied


def test_weights_too_large_for_16_bit_scales(tmp_path: Path) -> None:
    tensors = source_tensors(SMALL)
    tensors["lm_head.weight"][1][7, 7:8] = bf16(np.float32(2**20))
    folder = write_folder(tmp_path / "a", tensors=tensors)
    for quantization in ("F16", "Q8_0"):
        assert "output.weight has a weight of 1.05e+06" in str(refused(folder, tmp_path / "x.gguf", quantization))
    run(folder, tmp_path / "x.gguf", "BF16")
