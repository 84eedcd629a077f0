"""A model folder is opened only if everything in it fits together; everything else is one line and an exit code."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors import safe_open
from support.checkpoint_folder import (
    ADDED,
    GLM_SPLIT,
    SMALL,
    bf16,
    fuse_experts,
    source_tensors,
    tokenizer_json,
    write_folder,
    write_safetensors,
)

from glmrun.chat.tokenizer import Tokenizer
from quant.checkpoint import Checkpoint, config_from_json
from quant.errors import UserError
from quant.shards import read_header
from quant.vocabulary import read_vocabulary

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def refusal(action: Callable[[], object]) -> UserError:
    """The one line that the user sees."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return caught.value


def test_good_folder(original: Path) -> None:
    checkpoint = Checkpoint.open(original)
    assert checkpoint.config == SMALL
    assert (checkpoint.name, checkpoint.card.license, checkpoint.notes) == ("Small-GLM", "mit", [])
    assert checkpoint.card.eos_token_ids == [260, 263, 264] and checkpoint.card.pad_token_id == 260
    assert checkpoint.card.chat_template is not None and checkpoint.card.chat_template.startswith("[gMASK]<sop>")
    assert sorted(checkpoint.files) == sorted(original.iterdir())


def test_rows_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    """F32 and F16 can be compared directly; BF16 as bits, through the same bytes declared as 16-bit integers."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((7, 3, 5), np.float32)
    tensors = {
        "a": ("F32", values),
        "b": ("F16", values.astype(np.float16)),
        "c": ("BF16", bf16(values)),
        "d": ("U16", bf16(values)),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    ours = read_header(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "np") as theirs:
        for name, same in (("a", "a"), ("b", "b"), ("c", "d")):
            want = theirs.get_tensor(same).reshape(21, 5)  # (rows, columns)
            assert np.array_equal(ours[name].read_rows(0, 21), want.view(np.uint8))
            assert np.array_equal(ours[name].read_rows(4, 9), want[4:13].view(np.uint8))


def test_single_file_without_index(tmp_path: Path) -> None:
    assert Checkpoint.open(write_folder(tmp_path / "one", n_shards=1)).config == SMALL


def test_a_mark_in_front_of_a_file_is_an_editors(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    wanted = Checkpoint.open(folder)
    for path in [*folder.glob("*.json"), folder / "chat_template.jinja"]:
        path.write_bytes("\ufeff".encode() + path.read_bytes())
    found = Checkpoint.open(folder)
    assert found.config == wanted.config and found.card == wanted.card
    (folder / "config.json").write_text((folder / "config.json").read_text(encoding="utf-8-sig"), encoding="utf-16")
    with pytest.raises(UserError, match=r"config\.json is UTF-16 text"):
        Checkpoint.open(folder)


def test_a_whole_file_counts_beside_a_stale_index(tmp_path: Path) -> None:
    """As transformers chooses; the shards that the index names may be missing, or hold the base model's weights."""
    folder = write_folder(tmp_path / "one", n_shards=1)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": SHARD}}))
    checkpoint = Checkpoint.open(folder)
    assert {tensor.shard.path.name for tensor in checkpoint.tensors.values()} == {"model.safetensors"}
    assert len(checkpoint.notes) == 1 and INDEX in checkpoint.notes[0]
    write_folder(tmp_path / "base", n_shards=3)
    for shard in (tmp_path / "base").glob("*.safetensors*"):
        shutil.copy(shard, folder)
    assert {tensor.shard.path.name for tensor in Checkpoint.open(folder).tensors.values()} == {"model.safetensors"}


@pytest.mark.parametrize("n_shards", [1, 3])
def test_names_without_model(tmp_path: Path, n_shards: int) -> None:
    folder = write_folder(tmp_path / "a", n_shards=n_shards)
    wanted = {name: tensor.shape for name, tensor in Checkpoint.open(folder).tensors.items()}
    for path in folder.glob("*.safetensors"):
        raw = path.read_bytes()
        end = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:end])
        rename(header)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])
    if n_shards > 1:
        edit_json(folder / INDEX, lambda source: rename(source["weight_map"]))
    assert {name: tensor.shape for name, tensor in Checkpoint.open(folder).tensors.items()} == wanted


def rename(places: dict[str, Any]) -> None:
    for name in list(places):
        places[name.removeprefix("model.")] = places.pop(name)


def test_an_adapter_alone_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", n_shards=1)
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    error = refusal(lambda: Checkpoint.open(folder))
    assert "adapter" in str(error) and "merge" in str(error) and error.kind == "missing"


# --- config.json -------------------------------------------------------------------------------------------------------


def as_transformers_5(source: dict[str, Any]) -> None:
    for key in ("rope_theta", "rope_scaling", "partial_rotary_factor", "first_k_dense_replace", "torch_dtype"):
        source.pop(key, None)
    source["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default"}
    source["mlp_layer_types"] = ["dense", "sparse", "sparse"]
    source |= {"dtype": "bfloat16", "qk_head_dim": 128, "eos_token_id": 260, "use_cache": True}


def test_config_of_transformers_4_and_5(folder: Path) -> None:
    edit_json(folder / "config.json", as_transformers_5)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config == SMALL and checkpoint.card.eos_token_ids == [260]


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 5e5},
        {"norm_topk_prob": False, "routed_scaling_factor": 2.5},
        {"scoring_func": "softmax"},
        {"tie_word_embeddings": True},
    ],
)
def test_config_values_are_taken(original: Path, change: dict[str, Any]) -> None:
    source = json.loads((original / "config.json").read_text()) | change
    assert config_from_json(source) == replace(SMALL, **change)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model_type", "llama", "llama"),
        ("hidden_act", "gelu", "gelu"),
        ("attention_bias", True, "attention_bias"),
        ("rope_interleave", False, "rope_interleave"),
        ("partial_rotary_factor", 0.5, "partial_rotary_factor"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4}, "yarn"),
        ("rope_scaling", {"type": "linear"}, "linear"),
        ("rope_parameters", {"rope_theta": 10000.0}, "differently"),
        ("rope_theta", None, "rope_theta is missing"),
        ("rope_theta", "big", "rope_theta"),
        ("hidden_size", None, "hidden_size is missing"),
        ("hidden_size", "256", "hidden_size"),
        ("hidden_size", True, "hidden_size"),
        ("first_k_dense_replace", None, "first_k_dense_replace is missing"),
        ("first_k_dense_replace", 9, "first_k_dense_replace"),
        ("mlp_layer_types", ["dense", "sparse", "dense"], "mlp_layer_types"),
        ("mlp_layer_types", ["dense", "sparse"], "2 layers"),
        ("mlp_layer_types", ["sparse"] * 3, "begins with 0"),
        ("num_experts_per_tok", 6, "n_routed_experts"),
        ("num_key_value_heads", 1, "contradicts"),
        ("qk_head_dim", 999, "contradicts"),
        ("q_lora_rank", None, "q_lora_rank is missing or null"),
        ("topk_method", "greedy", "topk_method"),
        ("scoring_func", "tanh", "tanh"),
        ("n_group", 8, "n_group is 8; glmrun expects 1: it runs no other"),
        ("norm_topk_prob", 1, "norm_topk_prob"),
        ("quantization_config", {"quant_method": "fp8"}, "fp8"),
    ],
)
def test_config_that_is_not_implemented(original: Path, key: str, value: object, said: str) -> None:
    source = json.loads((original / "config.json").read_text()) | {key: value}
    if key == "model_type":
        source["architectures"] = ["LlamaForCausalLM"]
    if value is None:
        del source[key]
    error = refusal(lambda: config_from_json(source))
    assert said in str(error) and error.kind == "failed"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vocab_size": 400}, "model.embed_tokens.weight has the shape (320, 256)"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, but the weights have 3"),
        ({"num_hidden_layers": 5}, "num_hidden_layers is 5, but the weights have 3"),
        ({"n_routed_experts": 6}, "missing from the weights: model.layers.1.mlp.experts.5"),
        ({"n_routed_experts": 4}, "not of this model: model.layers.1.mlp.experts.4"),
        ({"intermediate_size": 256}, "gate_proj.weight has the shape (512, 256)"),
        ({"eos_token_id": [260, 320]}, "eos_token_id"),
        ({"pad_token_id": "pad"}, "pad_token_id"),
    ],
)
def test_config_that_contradicts_the_weights(folder: Path, change: dict[str, Any], said: str) -> None:
    edit_json(folder / "config.json", lambda source: source.update(change))
    error = refusal(lambda: Checkpoint.open(folder))
    assert said in str(error) and error.kind == "failed"


# --- weights -----------------------------------------------------------------------------------------------------------


def test_unknown_and_missing_tensors_are_named(tmp_path: Path) -> None:
    tensors = source_tensors(SMALL)
    extra = {f"model.layers.0.self_attn.extra{i}": ("F32", np.ones(2, np.float32)) for i in range(5)}
    error = str(refusal(lambda: Checkpoint.open(write_folder(tmp_path / "a", tensors=tensors | extra))))
    assert "extra0, model.layers.0.self_attn.extra1, model.layers.0.self_attn.extra2 and 2 more" in error
    del tensors["model.layers.2.self_attn.o_proj.weight"]
    error = str(refusal(lambda: Checkpoint.open(write_folder(tmp_path / "b", tensors=tensors))))
    assert "1 of 108 tensors are missing from the weights: model.layers.2.self_attn.o_proj.weight" in error


def test_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", np.ones(16, np.float32))}
    assert Checkpoint.open(write_folder(tmp_path / "a", tensors=source_tensors(SMALL) | extra)).config == SMALL


def test_prediction_layer_is_there_when_its_weights_are(tmp_path: Path) -> None:
    trunk = replace(SMALL, num_nextn_predict_layers=0)
    promised = Checkpoint.open(write_folder(tmp_path / "a", SMALL, source_tensors(trunk)))
    assert promised.config == trunk and "next-token-prediction" in promised.notes[0]
    unsaid = Checkpoint.open(write_folder(tmp_path / "b", SMALL, num_nextn_predict_layers=None))
    assert unsaid.config == SMALL and not unsaid.notes


def test_tied_embeddings_need_no_head(tmp_path: Path) -> None:
    tensors = source_tensors(SMALL)
    head = tensors.pop("lm_head.weight")
    assert "lm_head.weight" in str(refusal(lambda: Checkpoint.open(write_folder(tmp_path / "a", tensors=tensors))))
    tied = replace(SMALL, tie_word_embeddings=True)
    for name, weights in (("b", tensors), ("c", tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})):
        assert "lm_head.weight" not in Checkpoint.open(write_folder(tmp_path / name, tied, weights)).tensors
    kept = Checkpoint.open(write_folder(tmp_path / "d", tied, tensors | {"lm_head.weight": head}))  # as transformers 5 keeps it
    assert "lm_head.weight" in kept.tensors and kept.config == SMALL and "the weights have both" in kept.notes[0]
    dtype, embedding = tensors["model.embed_tokens.weight"]
    one_row = embedding.copy()
    one_row[7] = head[1][7]
    assert Checkpoint.open(write_folder(tmp_path / "e", tied, tensors | {"lm_head.weight": (dtype, one_row)})).config == SMALL


def test_fused_experts(tmp_path: Path) -> None:
    fused = Checkpoint.open(write_folder(tmp_path / "a", tensors=fuse_experts(SMALL, source_tensors(SMALL))))
    assert fused.tensors["model.layers.1.mlp.experts.gate_up_proj"].shape == (5, 512, 256)


# --- tokenizer ---------------------------------------------------------------------------------------------------------


def test_vocabulary(original: Path) -> None:
    v = Checkpoint.open(original).card.vocabulary
    assert len(v.tokens) == len(v.types) == 320 and v.pre == "glm4"
    assert v.merges == ["t h", "th e", "Ġ a", "Ġa n"]
    assert v.tokens[198] == "Ċ" and v.tokens[257] == "the"
    assert v.tokens[260:266] == list(ADDED) and v.types[260:266] == [3, 3, 3, 3, 3, 4]
    assert v.tokens[266:] == [f"[PAD{i}]" for i in range(266, 320)] and set(v.types[266:]) == {5}
    assert set(v.types[:260]) == {1}


def pre_tokenizer(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": list(steps)}}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
WRITTEN_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])" + GLM_SPLIT[len("(?i:'s|'t|'re|'ve|'m|'ll|'d)") :]


def split(regex: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}


@pytest.mark.parametrize(
    ("change", "pre"),
    [
        (pre_tokenizer(split(WRITTEN_OUT), BYTES), "glm4"),
        (pre_tokenizer(split(GLM_SPLIT, "Removed", True), BYTES), "glm4"),
        (pre_tokenizer(pre_tokenizer(split(GLM_SPLIT))["pre_tokenizer"], BYTES), "glm4"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}}, "gpt-2"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}, "gpt-2"),
        ({"normalizer": {"type": "Sequence", "normalizers": []}}, "glm4"),
    ],
)
def test_tokenizers_that_mean_the_same(tmp_path: Path, change: dict[str, Any], pre: str) -> None:
    path = tmp_path / "tokenizer.json"
    source = tokenizer_json() | change
    source["model"]["merges"] = [merge.split(" ") for merge in source["model"]["merges"]]  # pairs, as newer versions write them
    path.write_text(json.dumps(source))
    found = read_vocabulary(path, 320)
    assert found.pre == pre and found.merges == ["t h", "th e", "Ġ a", "Ġa n"]


@pytest.mark.parametrize(("ignore_merges", "pre"), [(True, "glm4"), (False, "chatglm-bpe")])
def test_words_that_no_merge_makes(tmp_path: Path, ignore_merges: bool, pre: str) -> None:
    """Text gives such a word, or the letters of it, as tokenizer.json says; GGUF says so in the pre-tokenizer's name."""
    source = tokenizer_json()
    source["model"] |= {"vocab": source["model"]["vocab"] | {"hello": 266}, "ignore_merges": ignore_merges}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(source))
    v = read_vocabulary(path, 320)
    keys = {"model": "gpt2", "pre": v.pre, "tokens": v.tokens, "token_type": np.array(v.types), "merges": v.merges}
    ours = Tokenizer.from_metadata({f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert v.pre == pre
    assert ours.encode("hello the") == tokenizers.Tokenizer.from_str(json.dumps(source)).encode("hello the").ids
    source |= {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    path.write_text(json.dumps(source))
    if ignore_merges:
        assert "GGUF has no name" in str(refusal(lambda: read_vocabulary(path, 320)))
    else:
        assert read_vocabulary(path, 320).pre == "gpt-2"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "byte-level BPE"),
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "WordPiece"),
        ({"model": None}, "no model"),
        ({"model": {**tokenizer_json()["model"], "byte_fallback": True}}, "byte_fallback"),
        ({"model": {**tokenizer_json()["model"], "merges": ["t h", "the x"]}}, "the x"),
        ({"model": {**tokenizer_json()["model"], "merges": [["t", "h", "e"]]}}, "merge"),
        ({"model": {**tokenizer_json()["model"], "vocab": {"a": 0, "b": 0}, "merges": []}}, "share the id 0"),
        ({"model": {**tokenizer_json()["model"], "vocab": {"a": 320}, "merges": []}}, "vocab_size is 320"),
        ({"model": {**tokenizer_json()["model"], "vocab": {"a": "0"}, "merges": []}}, "id '0'"),
        ({"normalizer": {"type": "NFC"}}, "NFC"),
        ({"pre_tokenizer": None}, "none"),
        ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "ByteLevel"),
        (pre_tokenizer(split(GLM_SPLIT.replace("{1,3}", "")), BYTES), "Split + ByteLevel"),
        (pre_tokenizer(split(GLM_SPLIT, "Removed"), BYTES), "Split + ByteLevel"),
        (pre_tokenizer({"type": "Digits"}, BYTES), "Digits"),
        ({"added_tokens": [{"id": 3, "content": "<x>", "special": True}]}, "share the id 3"),
        ({"added_tokens": [{"content": "<x>"}]}, "without text and id"),
    ],
)
def test_tokenizers_that_would_cut_text_differently(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json() | change))
    error = refusal(lambda: read_vocabulary(path, 320))
    assert said in str(error) and error.kind == "failed"


def mutations(source: dict[str, Any], path: tuple[Any, ...] = ()) -> Iterator[dict[str, Any]]:
    """source with each of its values, at any depth, replaced by values of every JSON type; the 260 words only now and then."""
    here = reduce(getitem, path, source)
    items = here.items() if isinstance(here, dict) else enumerate(here) if isinstance(here, list) else ()
    for key, old in list(items)[:30]:
        for new in (None, True, -1, 1e300, "x", [], {}, [[1]], {"type": "Sequence", "pretokenizers": 3}):
            here[key] = new
            yield source
        here[key] = old
        yield from mutations(source, (*path, key))


def test_no_value_of_any_type_does_worse_than_an_error_line(original: Path, tmp_path: Path) -> None:
    config = json.loads((original / "config.json").read_text())
    for source in mutations(
        config | {"mlp_layer_types": ["dense", "sparse", "sparse"], "rope_parameters": {"rope_type": "default"}}
    ):
        with suppress(UserError):
            config_from_json(source)
    path, n_good = tmp_path / "tokenizer.json", 0
    for source in mutations(tokenizer_json()):
        path.write_text(json.dumps(source))
        with suppress(UserError):
            n_good += len(read_vocabulary(path, 320).tokens) == 320
    assert n_good > 100  # of the values most do not matter
