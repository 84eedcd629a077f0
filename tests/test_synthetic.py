"""Synthetic files have the real model's shapes and vocabulary and weights that keep activations tame."""

import json
from dataclasses import replace
from pathlib import Path

import make_synthetic
import numpy as np
import pytest
from synthetic_vocabulary import make_vocabulary, tokenizer_json
from tokenizers import Tokenizer

from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from quant.config import tensor_shapes
from quant.formats import FORMATS
from quant.mapping import Card, metadata
from quant.recipes import RECIPES, choose_format
from quant.vocabulary import Vocabulary, read_vocabulary

NARROW = replace(make_synthetic.FLASH, hidden_size=512, intermediate_size=512, moe_intermediate_size=512, n_routed_experts=8)
NARROW = replace(NARROW, rms_norm_eps=2**-17, routed_scaling_factor=1.75)  # numbers that a file's float32 holds exactly


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary()


def test_vocabulary_has_the_published_sizes_and_ids(vocabulary: Vocabulary) -> None:
    v = vocabulary
    assert len(v.tokens) == len(set(v.tokens)) == len(v.types) == 154_880 and len(v.merges) == len(set(v.merges)) == 321_649
    assert [v.types.count(kind) for kind in (1, 3, 4, 5)] == [154_820, 25, 11, 24]
    ids = {"<|endoftext|>": 154820, "[gMASK]": 154822, "<sop>": 154824, "<|user|>": 154827, "<|observation|>": 154829}
    ids |= {"<|code_prefix|>": 154838, "<think>": 154841, "</think>": 154842, "<tool_call>": 154843, "/nothink": 154851, "Ċ": 198}
    assert {text: v.ids[text] for text in ids} == ids
    assert v.tokens[-1] == "[PAD154879]" and v.tokens[154_856] == "[PAD154856]"
    known = set(v.tokens[:154_820])
    assert all(set(merge.split(" ")) <= known and merge.replace(" ", "") in known for merge in v.merges)


def test_vocabulary_works_as_a_tokenizer(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json(vocabulary)))
    assert read_vocabulary(path, 154_880) == vocabulary
    tokenizer = Tokenizer.from_file(str(path))
    text = "The quick brown fox, 12345 déjà vu\n日本 🙂 <think>"
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text and ids[-1] == 154841
    assert tokenizer.encode(" cat").ids == [vocabulary.ids["Ġcat"]]


@pytest.mark.parametrize(("quantization", "mtp"), [("Q4_K_M", False), ("Q4_K_M", True), ("Q8_0", True), ("BF16", False)])
def test_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str, mtp: bool) -> None:
    """The real shapes but for widths of 512 and 8 experts, which keep the file small."""
    monkeypatch.setattr(make_synthetic, "FLASH", NARROW)
    output = tmp_path / "x.gguf"
    assert make_synthetic.write_gguf(output, 2, quantization, mtp) == output.stat().st_size
    file, config = open_gguf(output), replace(NARROW, num_hidden_layers=2, num_nextn_predict_layers=int(mtp))
    assert config_from_gguf(file) == config
    for name, shape in tensor_shapes(config).items():
        kind = choose_format(RECIPES[quantization], name, shape, config.n_blocks, config.n_routed_experts)
        assert (file.tensors[name].shape, file.tensors[name].format) == (shape, kind)
    for name in ("output.weight", "blk.1.attn_k_b.weight", "blk.1.ffn_down_exps.weight", "blk.0.attn_q_b.weight"):
        tensor = file.tensors[name]
        rows = FORMATS[tensor.format].decode(file.tensors[name].rows[:1000])  # (rows, columns)
        spread = rows.std() * np.sqrt(tensor.shape[-1])
        assert abs(spread - 1) <= 0.05 and abs(rows.mean()) <= 0.1 * rows.std()
        assert len(np.unique(rows, axis=0)) == len(rows)
    norm = FORMATS["F32"].decode(file.tensors["blk.1.attn_norm.weight"].rows)
    assert abs(norm.mean() - 1) <= 0.05 and np.ptp(norm) >= 0.01


def test_same_seed_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_synthetic, "FLASH", NARROW)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_synthetic.write_gguf(tmp_path / name, 1, "Q8_0", seed=seed)
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b and len(a) == len(c) and a != c


def test_routing_can_be_skewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_synthetic, "FLASH", NARROW)
    spread = []
    for name, skew in (("a", 0.02), ("b", 0.08)):
        make_synthetic.write_gguf(tmp_path / name, 3, "Q8_0", skew=skew)
        biases = [t for t in open_gguf(tmp_path / name).tensors.values() if t.name.endswith("exp_probs_b.bias")]
        assert len(biases) == 2
        spread.append(np.std([t.floats() for t in biases]))
    assert abs(spread[1] / spread[0] - 4) <= 1e-3 and 0.01 <= spread[0] <= 0.03


def test_metadata_is_the_published_models(vocabulary: Vocabulary) -> None:
    found = metadata(make_synthetic.FLASH, Card("x", vocabulary, eos_token_ids=[154820, 154827, 154829]), 15, 1)
    expected = {"bos": 154822, "eos": 154820, "eot": 154827, "eom": 154829, "unknown": 154820, "padding": 154820}
    assert {key: found[f"tokenizer.ggml.{key}_token_id"] for key in expected} == expected
    lengths = {"key_length": 576, "value_length": 512, "key_length_mla": 256, "value_length_mla": 256}
    assert {key: found[f"deepseek2.attention.{key}"] for key in lengths} == lengths
