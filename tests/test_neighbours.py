"""Files of other models: said what they are and what runs them, shown by inspect; ours are known by their shapes."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoint_folder import SMALL, config_json
from support.comparison import errors
from support.foreign_file import Parts
from support.tiny_model import ODD, Tiny, write_tiny

import glmrun
from glmrun.gguf.architecture import config_from_gguf, open_model_file
from glmrun.gguf.neighbours import another_model
from glmrun.gguf.open import open_gguf
from quant.checkpoint import config_from_json
from quant.config import FLASH
from quant.errors import UserError


@pytest.fixture
def tiny(tiny_gguf: Callable[..., Tiny]) -> Tiny:
    return tiny_gguf("Q8_0")


def renamed(tiny: Tiny, path: Path, architecture: str, drop: str = "") -> Path:
    parts = Parts.read(tiny.path)
    old = parts.metadata["general.architecture"]
    parts.metadata = {key.replace(f"{old}.", f"{architecture}.", 1): value for key, value in parts.metadata.items() if key != drop}
    parts.metadata["general.architecture"] = architecture
    return parts.write(path)


@pytest.mark.parametrize(
    ("architecture", "what"),
    [("glm5next", "GLM-5.3-Flash"), ("glm-dsa", "GLM-5,"), ("glm4moe", "GLM-4.5"), ("chatglm", "ChatGLM"), ("llama", "'llama';")],
)
def test_a_neighbour_is_named_with_what_runs_it(tiny: Tiny, tmp_path: Path, architecture: str, what: str) -> None:
    path = renamed(tiny, tmp_path / "other.gguf", architecture)
    with pytest.raises(UserError) as why:
        open_model_file(path)
    line = str(why.value)
    assert what in line and "llama.cpp runs" in line and "\n" not in line
    done = subprocess.run([sys.executable, "-m", "glmrun", "inspect", str(path)], capture_output=True, timeout=60, text=True)
    assert done.returncode == 0 and architecture in done.stdout and f"warning: can't be run: {line}" in done.stdout
    shown = [sys.executable, "-m", "glmrun", "inspect", str(path), "--tensors", "--json"]
    facts = json.loads(subprocess.run(shown, capture_output=True, timeout=60).stdout)
    assert facts["tensors"] == len(facts["tensor_list"]) > 0 and "config" not in facts


@pytest.mark.parametrize(("key", "what"), [("attention.q_lora_rank", "DeepSeek-V2-Lite"), ("expert_count", "without experts")])
def test_relatives_under_our_name_are_named(tiny: Tiny, tmp_path: Path, key: str, what: str) -> None:
    path = renamed(tiny, tmp_path / "other.gguf", "deepseek2", f"deepseek2.{key}")
    with pytest.raises(UserError, match=what):
        open_model_file(path)


@pytest.mark.parametrize(
    ("keys", "dropped", "what"),
    [
        ({"attention.q_lora_rank": 0}, "", "DeepSeek-V2-Lite"),
        ({"expert_count": 0}, "", "without experts"),
        ({"expert_group_count": 8, "expert_group_used_count": 4}, "", r"within groups \(8\)"),
        ({"rope.scaling.type": "yarn", "rope.scaling.factor": 40.0}, "", r"stretched \(rope.scaling.factor 40\)"),
        ({"expert_gating_func": 1}, "exp_probs_b", "router has no bias"),
        ({"rope.scale_linear": 4.0}, "", r"computes otherwise \(rope.scale_linear 4.0\)"),
        ({"rope.scaling.attn_factor": 2.0}, "", r"computes otherwise \(rope.scaling.attn_factor 2.0\)"),
        ({"attention.temperature_scale": 0.1}, "", "computes otherwise"),
        ({"attention.causal": False}, "", "computes otherwise"),
    ],
)
def test_relatives_that_would_be_computed_wrong_are_named(
    tiny: Tiny, tmp_path: Path, keys: dict[str, Any], dropped: str, what: str
) -> None:
    """Each is what a file of DeepSeek's or Kimi's says or lacks; without these words it would run, or miss a tensor."""
    parts = Parts.read(tiny.path)
    parts.metadata |= {f"deepseek2.{key}": value for key, value in keys.items()}
    names = [name for name in parts.blocks if not dropped or dropped not in name]
    with pytest.raises(UserError, match=what):
        open_model_file(parts.write(tmp_path / "other.gguf", names))


@pytest.mark.parametrize("keys", [{"type": "none", "factor": 4.0}, {"type": "linear", "factor": 1.0}, {"factor": 0.0}])
def test_positions_that_are_not_stretched_are_ours(tiny: Tiny, tmp_path: Path, keys: dict[str, Any]) -> None:
    parts = Parts.read(tiny.path)
    parts.metadata |= {f"deepseek2.rope.scaling.{key}": value for key, value in keys.items()}
    assert open_model_file(parts.write(tmp_path / "same.gguf")).config == open_model_file(tiny.path).config


@pytest.mark.parametrize(
    ("kind", "words"), [("glm4_moe", ", GLM-4.5, 4.6 or 4.7;"), ("glm_moe_dsa", ", GLM-5;"), ("mamba", "'mamba'; glmrun converts")]
)
def test_a_folder_of_a_neighbour_is_named(kind: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        config_from_json(config_json(SMALL) | {"model_type": kind, "architectures": ["Other"]})


def test_a_folder_of_ours_is_known_by_its_shapes() -> None:
    pruned = replace(FLASH, n_routed_experts=40, num_hidden_layers=30)
    source = config_json(pruned) | {"model_type": "mine", "architectures": ["MineForCausalLM"]}
    assert config_from_json(source) == pruned
    with pytest.raises(UserError, match="the model is 'mine'"):
        config_from_json(source | {"kv_lora_rank": 256})


@pytest.mark.parametrize("n_experts", [40, 48])
def test_a_pruning_runs(tmp_path: Path, n_experts: int) -> None:
    """As many experts as the prunings have that people publish, four of them chosen: the logits are the naive model's."""
    config = replace(ODD, n_routed_experts=n_experts, num_experts_per_tok=4, num_hidden_layers=2)
    pruned = write_tiny(tmp_path / "pruned.gguf", config, "F32")
    tokens = list(range(100, 120))
    with glmrun.load(pruned.path, n_ctx=64, n_threads=2) as model:
        assert errors(model.logits(tokens), pruned.naive().logits(tokens)).max() <= 1e-10


def test_an_indexer_is_another_model_whatever_the_name(tiny: Tiny) -> None:
    file = open_gguf(tiny.path)
    tensor = next(iter(file.tensors.values()))
    other = replace(file, tensors=file.tensors | {"blk.0.indexer.proj.weight": tensor})
    assert another_model(file) is None and "has an indexer" in str(another_model(other))


def test_ours_is_known_by_its_shapes(tiny: Tiny) -> None:
    """Hyper-parameters of GLM-4.7-Flash, however many experts and layers a pruning left, under any name."""
    shapes: dict[str, Any] = {
        "embedding_length": 2048, "attention.q_lora_rank": 768, "attention.kv_lora_rank": 512, "attention.head_count": 20,
        "rope.dimension_count": 64, "expert_feed_forward_length": 1536, "expert_count": 40,
    }  # fmt: skip
    file = open_gguf(tiny.path)
    for name in ("glm4_moe_lite", "glm4moe", "mine"):
        metadata = {"general.architecture": name} | {f"{name}.{key}": value for key, value in shapes.items()}
        assert another_model(replace(file, metadata=metadata)) is None
        metadata[f"{name}.attention.kv_lora_rank"] = 256
        assert another_model(replace(file, metadata=metadata)) is not None
    assert config_from_gguf(file).hidden_size > 0
