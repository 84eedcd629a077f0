"""Every metadata key that glmrun reads, with values of every kind: run, inspect, plan, verify and convert go on or say a line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import fuzz
import numpy as np
import pytest
from support.gguf_bytes import pair, text
from test_hostile_gguf import refusal

import glmrun
from glmrun.chat.request import ChatRequest
from glmrun.measure.bench import model_type
from glmrun.measure.windows import bos_of
from quant.errors import UserError

VALUES: dict[str, Any] = {
    "absent": None,
    "0": 0,
    "1": 1,
    "-1": np.int32(-1),
    "the least": np.int64(-(1 << 63)),
    "the largest": np.uint64((1 << 64) - 1),
    "not a number": np.float32("nan"),
    "infinite": np.float64("inf"),
    "too large for float32": np.float64(1e308),
    "almost 0": np.float32(1e-45),
    "true": True,
    "no text": "",
    "control characters": "\x1b[31m\u202e\n{{ 1 }}",
    "a long text": "x" * (1 << 20),
    "an empty list": np.zeros(0, np.uint32),
    "two numbers": np.array([1, 2], np.uint32),
    "numbers that are none": np.array([np.nan] * 320, np.float32),
    "a list of true": np.array([True]),
    "a number for each token": np.full(320, -1, np.int8),
    "texts": ["a", "a"],
    "a text for each token": [f"\x1b{i}" for i in range(320)],
}
# Beyond those that stand in the file that is spoiled.
OTHERS = [
    *(f"general.{key}" for key in ("name", "type", "file_type", "license", "alignment", "quantization_version")),
    *(f"general.sampling.{key}" for key in ("temp", "top_k", "top_p", "min_p", "penalty_repeat")),
    *(f"split.{key}" for key in ("no", "count", "tensors.count")),
    *(f"deepseek2.{key}" for key in ("nextn_predict_layers", "expert_group_count", "expert_group_used_count")),
    *(f"tokenizer.ggml.{key}" for key in ("add_bos_token", "eos_token_ids", "unknown_token_id")),
    *("tokenizer.chat_template", "quantize.imatrix.file", "deepseek2.rope.scaling.type"),
]
# Without these, or with anything that is no whole number, there is no model.
NEEDED = {
    f"deepseek2.{key}" for key in ("block_count", "embedding_length", "attention.head_count", "expert_count", "context_length")
}


def name_of(pair: bytes) -> str:
    return pair[8 : 8 + int.from_bytes(pair[:8], "little")].decode()


def with_value(name: str, value: Any) -> bytes:
    """A good file with one key changed, or without it."""
    good = fuzz._small_model()
    keys = [one for one in good.keys if not one.startswith(text(name))]
    return replace(good, keys=keys + ([] if value is None else [pair(name, value)])).laid_out().join()


@pytest.mark.parametrize("kind", VALUES)
def test_any_value_of_any_key(tmp_path: Path, kind: str) -> None:
    for name in dict.fromkeys([*map(name_of, fuzz._small_model().keys), *OTHERS]):
        try:
            outcome = fuzz.try_gguf(with_value(name, VALUES[kind]), tmp_path, 0)
        except Exception as why:
            raise AssertionError(f"{name} = {kind}") from why
        if name in NEEDED and not isinstance(VALUES[kind], (int, np.integer)):
            assert outcome == "refused", name


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("temp", np.float32("nan"), "general.sampling.temp is nan; expected a number of at least 0"),
        ("temp", "1", "general.sampling.temp is '1'"),
        ("top_p", np.float32(1.5), "general.sampling.top_p is 1.5; expected a number from 0 to 1"),
        ("top_k", np.uint64((1 << 64) - 1), "general.sampling.top_k is 18446744073709551615"),
        ("top_k", np.float32(0.5), "general.sampling.top_k is 0.5; expected a whole number"),
        ("penalty_repeat", 0, "general.sampling.penalty_repeat is 0"),
        ("min_p", np.array([1, 2], np.uint32), "general.sampling.min_p is [1, 2]"),
    ],
)
def test_advice_for_sampling_that_cannot_be_followed(tmp_path: Path, key: str, value: Any, said: str) -> None:
    (tmp_path / "model.gguf").write_bytes(with_value(f"general.sampling.{key}", value))
    assert said in refusal(tmp_path / "model.gguf")


@pytest.mark.parametrize("off", [np.int32(-1), 0, np.float32(0)])
def test_ways_to_say_that_top_k_is_off(tmp_path: Path, off: Any) -> None:
    (tmp_path / "model.gguf").write_bytes(with_value("general.sampling.top_k", off))
    assert glmrun.load(tmp_path / "model.gguf", n_ctx=8).sampler(temperature=0.5).top_k == 0


def test_a_blank_chat_template_is_none(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(with_value("tokenizer.chat_template", " \n"))
    model = glmrun.load(tmp_path / "model.gguf", n_ctx=8)
    assert model.chat_format.render(ChatRequest([{"role": "user", "content": "x"}])).startswith("[gMASK]<sop>")


def test_what_only_measuring_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    assert model_type(47, np.array([1, 2])).endswith("unknown")  # type: ignore[arg-type]
    good = fuzz._small_model()
    pairs = [pair("tokenizer.ggml.add_bos_token", True), pair("tokenizer.ggml.bos_token_id", ["a"])]
    keys = [one for one in good.keys if name_of(one) not in ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id")]
    path.write_bytes(replace(good, keys=keys + pairs).laid_out().join())
    with pytest.raises(UserError, match=r"bos_token_id is \['a'\]; expected a token id"):
        bos_of(glmrun.load(path, n_ctx=8))
