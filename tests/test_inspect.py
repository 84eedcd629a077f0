"""`glmrun inspect`: what it tells of good and bad files, hashes and differences."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.foreign_file import Parts
from support.tiny_model import Tiny
from test_cli import glmrun as run

from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from glmrun.measure.model_file import capabilities, difference, hashes, model_facts, warnings
from glmrun.store.nano import nano_path


@pytest.fixture
def tiny(tiny_gguf: Callable[..., Tiny]) -> Tiny:
    return tiny_gguf("Q8_0")


def test_nano_is_told_as_what_it_is() -> None:
    file = open_gguf(nano_path("Q4_K_M"))
    facts = model_facts(file, config_from_gguf(file))
    assert facts["capabilities"] == ["chat", "thinking", "tools", "next-token prediction"] and facts["warnings"] == []
    template = file.metadata["tokenizer.chat_template"]
    assert facts["chat_template_sha256"] == hashlib.sha256(template.encode()).hexdigest() and facts["chat_template_is_glmruns"]
    assert facts["parameters"] == 10_219_796 and facts["parameters_active"] < facts["parameters"]
    shown = run("inspect", "nano").stdout.decode()
    assert "glmrun's own" in shown and "chat, thinking, tools" in shown and "warning" not in shown


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deepseek2.expert_gating_func": None}, ["expert_gating_func is missing", "may take softmax"]),
        ({"deepseek2.expert_gating_func": None, "quantize.imatrix.file": "x"}, ["importance matrix was measured that way"]),
        ({"deepseek2.expert_gating_func": 1}, ["expert_gating_func is softmax", "fetch a newer file"]),
        ({"tokenizer.ggml.eot_token_id": None}, ["no end-of-turn id for <|user|>:"]),
        ({"tokenizer.ggml.eom_token_id": None, "tokenizer.ggml.eot_token_id": None}, ["<|user|> and <|observation|>"]),
    ],
)
def test_files_known_to_be_bad_are_warned_of(tiny: Tiny, tmp_path: Path, change: dict, words: list[str]) -> None:
    parts = Parts.read(tiny.path)
    assert warnings(open_gguf(tiny.path)) == []
    for key, value in change.items():
        if value is None:
            del parts.metadata[key]
        else:
            parts.metadata[key] = value
    path = parts.write(tmp_path / "bad.gguf")
    (line,) = warnings(open_gguf(path))
    assert all(word in line for word in words)
    shown = run("inspect", str(path)).stdout.decode().splitlines()
    assert shown[-1] == f"warning: {line}"


def test_end_ids_in_a_list_are_end_ids(tiny: Tiny, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    parts.metadata["tokenizer.ggml.eos_token_ids"] = [parts.metadata.pop(key) for key in keys[1:]]
    assert warnings(open_gguf(parts.write(tmp_path / "list.gguf"))) == []


def test_capabilities_follow_the_template(tiny: Tiny, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    parts.metadata["tokenizer.chat_template"] = "{{ messages }}"
    file = open_gguf(parts.write(tmp_path / "plain.gguf"))
    assert capabilities(file, config_from_gguf(file)) == ["chat"]


def test_hashes_are_of_the_weights_alone(tiny: Tiny, tmp_path: Path) -> None:
    file = open_gguf(tiny.path)
    found = {name: digest for name, digest, _ in hashes(file)}
    for tensor in file.tensors.values():
        assert found[tensor.name] == hashlib.sha256(tensor.data.tobytes()).hexdigest()
    parts = Parts.read(tiny.path)
    parts.metadata["general.name"] = "other"
    renamed = parts.write(tmp_path / "other.gguf", list(reversed(parts.blocks)))
    assert {name: digest for name, digest, _ in hashes(open_gguf(renamed))} == found
    shown = run("inspect", str(renamed), "--hash").stdout.decode().splitlines()
    assert shown[-1] == f"{found['']}  {renamed}" and len(shown) == len(found)
    as_json = json.loads(run("inspect", str(tiny.path), "--hash", "--json").stdout)
    assert as_json["sha256"] == found.pop("") and as_json["tensor_sha256"] == found
    some = json.loads(run("inspect", str(tiny.path), "--hash", "--match", "^output", "--json").stdout)
    assert some["sha256"] == as_json["sha256"] and set(some["tensor_sha256"]) == {"output_norm.weight", "output.weight"}


def test_a_difference_is_told_and_is_the_exit_code(tiny: Tiny, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    name = next(name for name in parts.blocks if "attn_q_a.weight" in name)
    parts.metadata |= {"general.name": "other", "tokenizer.ggml.token_type": parts.metadata["tokenizer.ggml.token_type"].copy()}
    same = run("inspect", str(tiny.path), "--diff", str(tiny.path), "--hash")
    assert same.returncode == 0 and same.stdout == b""
    changed = np.array(parts.blocks[name], copy=True)
    changed.reshape(-1).view(np.uint8)[7] ^= 1
    parts.blocks[name] = changed
    other = parts.write(tmp_path / "other.gguf")
    done = run("inspect", str(tiny.path), "--diff", str(other))
    assert done.returncode == 1 and done.stdout.decode().splitlines() == ['+ general.name = "other"']
    assert f"+ {name} = other data" in run("inspect", str(tiny.path), "--diff", str(other), "--hash").stdout.decode()
    assert b"general" not in run("inspect", str(tiny.path), "--diff", str(other), "--hash", "--tensors").stdout
    assert json.loads(run("inspect", str(tiny.path), "--diff", str(other), "--metadata", "--json").stdout).keys() == {"metadata"}
    found = json.loads(run("inspect", str(tiny.path), "--diff", str(other), "--hash", "--json").stdout)
    assert found == {"metadata": {"general.name": [None, "other"]}, "tensors": {name: ["same", "other data"]}}


def test_a_value_of_another_type_is_a_difference(tiny: Tiny) -> None:
    """Such a file is refused, and nothing was told."""
    file, key = open_gguf(tiny.path), "deepseek2.expert_weights_norm"
    other = replace(file, metadata=file.metadata | {key: int(file.metadata[key])})
    assert difference(file, other) == {"metadata": {key: [file.metadata[key], other.metadata[key]]}, "tensors": {}}


def test_other_formats_are_differences(tiny_gguf: Callable[..., Tiny]) -> None:
    a, b = open_gguf(tiny_gguf("Q8_0").path), open_gguf(tiny_gguf("Q4_K_M").path)
    found = difference(a, b)
    assert found["metadata"] == {}
    formats = {name: (t.format, b.tensors[name].format) for name, t in a.tensors.items()}
    assert set(found["tensors"]) == {name for name, (x, y) in formats.items() if x != y}
    assert all(x[0] == y[0] and x[1] != y[1] for x, y in found["tensors"].values())
