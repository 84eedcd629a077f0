"""The committed nano: what is in its folder, without torch."""

import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import glmrun
from glmrun.store.nano import is_temporary, nano_path

FOLDER = Path(glmrun.__file__).parent / "nano"
ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
# Accuracy on held-out questions when the checkpoint was committed, less a margin; a worse checkpoint must not slip in.
FLOORS = {
    "JSON on request": 0.95,
    "answer from a tool": 0.97,
    "arithmetic, thinking": 0.95,
    "capitals": 0.95,
    "chat": 0.9,
    "code": 0.95,
    "copies and edits": 0.93,
    "counting": 0.88,
    "follows the system prompt": 0.88,
    "knows when not to call": 0.92,
    "remembers across turns": 0.95,
    "says what it cannot do": 0.95,
    "tool call": 0.95,
}


def _json(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def headers() -> dict[str, dict[str, dict]]:
    """{shard: {tensor: its safetensors entry}}."""
    found = {}
    for path in sorted(FOLDER.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            found[path.name] = {name: entry for name, entry in json.loads(file.read(length)).items() if name != "__metadata__"}
            assert path.stat().st_size == 8 + length + max(entry["data_offsets"][1] for entry in found[path.name].values())
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def _expected_tensors() -> dict[str, tuple[int, ...]]:
    """{the hub's tensor name: shape}, spelt out from config.json."""
    c = _json("config.json")
    hidden, heads, vocabulary = c["hidden_size"], c["num_attention_heads"], (c["vocab_size"], c["hidden_size"])
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,)}
    shapes["model.embed_tokens.weight"] = shapes["lm_head.weight"] = vocabulary

    def feed_forward(stem: str, width: int) -> None:
        shapes[f"{stem}.gate_proj.weight"] = shapes[f"{stem}.up_proj.weight"] = (width, hidden)
        shapes[f"{stem}.down_proj.weight"] = (hidden, width)

    for i in range(c["num_hidden_layers"] + 1):
        layer, width = f"model.layers.{i}", c["moe_intermediate_size"]
        attention = f"{layer}.self_attn"
        shapes[f"{layer}.input_layernorm.weight"] = shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{attention}.q_a_proj.weight"] = (c["q_lora_rank"], hidden)
        shapes[f"{attention}.q_a_layernorm.weight"] = (c["q_lora_rank"],)
        shapes[f"{attention}.q_b_proj.weight"] = (heads * (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]), c["q_lora_rank"])
        shapes[f"{attention}.kv_a_proj_with_mqa.weight"] = (c["kv_lora_rank"] + c["qk_rope_head_dim"], hidden)
        shapes[f"{attention}.kv_a_layernorm.weight"] = (c["kv_lora_rank"],)
        shapes[f"{attention}.kv_b_proj.weight"] = (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"])
        shapes[f"{attention}.o_proj.weight"] = (hidden, heads * c["v_head_dim"])
        if i < c["first_k_dense_replace"]:
            feed_forward(f"{layer}.mlp", c["intermediate_size"])
        else:
            shapes[f"{layer}.mlp.gate.weight"] = (c["n_routed_experts"], hidden)
            shapes[f"{layer}.mlp.gate.e_score_correction_bias"] = (c["n_routed_experts"],)
            feed_forward(f"{layer}.mlp.shared_experts", width * c["n_shared_experts"])
            for e in range(c["n_routed_experts"]):
                feed_forward(f"{layer}.mlp.experts.{e}", width)
    extra = f"model.layers.{c['num_hidden_layers']}"
    shapes[f"{extra}.eh_proj.weight"] = (hidden, 2 * hidden)
    shapes[f"{extra}.enorm.weight"] = shapes[f"{extra}.hnorm.weight"] = shapes[f"{extra}.shared_head.norm.weight"] = (hidden,)
    return shapes  # no copies of embedding and head, which the next-token layer shares with the trunk


def test_tensors_have_the_hubs_names_shapes_and_types(headers: dict) -> None:
    found = {name: entry for shard in headers.values() for name, entry in shard.items()}
    assert {name: tuple(entry["shape"]) for name, entry in found.items()} == _expected_tensors()
    for name, entry in found.items():
        assert entry["dtype"] == ("F32" if name.endswith("e_score_correction_bias") else "BF16"), name


def test_the_index_names_every_shard(headers: dict) -> None:
    index = _json("model.safetensors.index.json")
    assert len(headers) >= 3
    assert index["weight_map"] == {name: shard for shard, entries in headers.items() for name in entries}
    ends = [entry["data_offsets"] for entries in headers.values() for entry in entries.values()]
    assert index["metadata"]["total_size"] == sum(end - begin for begin, end in ends)


def test_it_is_small(headers: dict) -> None:
    parameters = sum(math.prod(entry["shape"]) for entries in headers.values() for entry in entries.values())
    assert 8_000_000 <= parameters <= 12_000_000
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 25_000_000


def test_the_selection_biases_have_been_trained(headers: dict) -> None:
    biases = []
    for shard, entries in headers.items():
        data = (FOLDER / shard).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        for name, entry in entries.items():
            if name.endswith("e_score_correction_bias"):
                begin, end = entry["data_offsets"]
                biases.append(np.frombuffer(data[8 + length + begin : 8 + length + end], "<f4"))
    assert len(biases) == 4
    for bias in biases:
        assert np.all(np.isfinite(bias))
        assert np.ptp(bias) > 0.01


def test_rows_are_as_long_as_the_real_models_blocks_want() -> None:
    c = _json("config.json")
    for name in ("hidden_size", "q_lora_rank", "kv_lora_rank", "intermediate_size", "moe_intermediate_size"):
        assert c[name] % 256 == 0, name
    assert c["num_attention_heads"] * c["v_head_dim"] % 256 == 0
    assert c["qk_nope_head_dim"] % 256 != 0  # the rows of attn_k_b
    assert c["qk_nope_head_dim"] % 32 == 0
    assert c["n_routed_experts"] != 8  # llama-quantize has rules of its own for eight


def test_config(tokenizer: Tokenizer) -> None:
    c = _json("config.json")
    assert c["architectures"] == ["Glm4MoeLiteForCausalLM"]
    assert c["model_type"] == "glm4_moe_lite"
    assert c["dtype"] == "bfloat16"
    assert c["eos_token_id"] == [tokenizer.token_to_id(token) for token in ENDS]
    assert c["pad_token_id"] == c["eos_token_id"][0]
    for name in ("num_nextn_predict_layers", "first_k_dense_replace", "n_group", "topk_group", "n_shared_experts"):
        assert c[name] == 1, name
    assert c["mlp_layer_types"] == ["dense"] + ["sparse"] * (c["num_hidden_layers"] - 1)
    assert c["routed_scaling_factor"] == 1.8
    assert c["norm_topk_prob"] is True
    assert c["rope_interleave"] is True
    assert c["tie_word_embeddings"] is False
    assert c["rms_norm_eps"] == 1e-5
    assert c["rope_parameters"] == {"partial_rotary_factor": 1.0, "rope_theta": 1e6, "rope_type": "default"}
    assert c["vocab_size"] > tokenizer.get_vocab_size()  # some ids mean nothing, as in the real model


def test_generation_config(tokenizer: Tokenizer) -> None:
    g = _json("generation_config.json")
    assert g["eos_token_id"] == [tokenizer.token_to_id(token) for token in ENDS]
    assert (g["temperature"], g["top_p"]) == (1.0, 0.95)


@pytest.mark.parametrize(
    "text", ["Hello, world!", "Zürich, São Paulo: 21 °C", "x = 12345 * 678\n\n\tif x:", "你好 🙂", " leading and trailing "]
)
def test_the_tokenizer_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_numbers_are_spelt_digit_by_digit(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2024", add_special_tokens=False).tokens == ["2", "0", "2", "4"]


def test_special_and_visible_tokens(tokenizer: Tokenizer) -> None:
    added = {entry["content"]: entry for entry in _json("tokenizer.json")["added_tokens"]}
    tags = ("think", "tool_call", "tool_response", "arg_key", "arg_value")
    visible = {"/nothink"} | {f"<{slash}{tag}>" for tag in tags for slash in ("", "/")}
    assert len(added) == 36
    assert {content for content, entry in added.items() if not entry["special"]} == visible
    size = tokenizer.get_vocab_size()
    assert sorted(entry["id"] for entry in added.values()) == list(range(size - 36, size))
    in_config = _json("tokenizer_config.json")["added_tokens_decoder"]
    decoder = {entry["content"]: (int(i), entry["special"]) for i, entry in in_config.items()}
    assert decoder == {content: (entry["id"], entry["special"]) for content, entry in added.items()}
    for token in added:
        assert tokenizer.encode(f"a{token}b", add_special_tokens=False).tokens == ["a", token, "b"]


def test_its_pre_tokenizer_is_glms() -> None:
    steps = _json("tokenizer.json")["pre_tokenizer"]["pretokenizers"]
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    assert steps[0] == {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    assert (steps[1]["type"], steps[1]["add_prefix_space"], steps[1]["use_regex"]) == ("ByteLevel", False, False)
    assert _json("tokenizer.json")["model"]["ignore_merges"] is True


def test_its_template_is_glmruns() -> None:
    assert (FOLDER / "chat_template.jinja").read_bytes() == (FOLDER.parent / "chat" / "chat_template.jinja").read_bytes()


def test_it_was_measured() -> None:
    evaluation = _json("evaluation.json")
    for skill, floor in FLOORS.items():
        row = evaluation["skills"][skill]
        assert row["of"] >= 30, skill
        assert row["accuracy"] == pytest.approx(row["right"] / row["of"], abs=1e-4)
        assert row["accuracy"] >= floor, skill
    assert evaluation["held_out"]["loss"] <= 0.1
    assert evaluation["held_out"]["mtp_acceptance"] >= 0.9
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for skill, row in evaluation["skills"].items():
        assert f"| {skill} | {row['of']} | {100 * row['accuracy']:.1f} % |" in card


def test_held_out_text_is_there() -> None:
    text = (FOLDER / "heldout.txt").read_text(encoding="utf-8")
    assert 10_000 <= len(text.encode()) <= 60_000
    assert text.startswith("[gMASK]<sop>")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nano is a temporary file then, one for the whole process; a folder in it that can be read counts."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLMRUN_CACHE_DIR", str(tmp_path / "file" / "below"))
    path = nano_path("Q8_0")
    assert path.is_file() and is_temporary(path) and nano_path("Q8_0") == path
    monkeypatch.setenv("GLMRUN_CACHE_DIR", str(tmp_path / "new"))
    kept = nano_path("Q8_0")
    assert not is_temporary(kept) and kept.read_bytes() == path.read_bytes()
    monkeypatch.setattr("os.access", lambda *_: False)
    assert nano_path("Q8_0") == kept and is_temporary(nano_path("Q6_K"))


def test_a_home_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = {name: value for name, value in os.environ.items() if name not in ("GLMRUN_CACHE_DIR", "XDG_CACHE_HOME")}
    environment["HOME"] = str(tmp_path / "file")
    command = [sys.executable, "-m", "glmrun", "inspect", "nano"]
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("GLMRUN_CACHE_DIR") == 1 and "temporary" in done.stderr
