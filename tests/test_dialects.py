"""Files as others publish them: other keys, other formats, matrices in one tensor, several parts. Each runs like ours."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from naive import Naive
from support.comparison import errors
from support.foreign_file import READ_ONLY, Parts, random_blocks
from support.tiny_model import ODD, ODDER, Tiny

import glmrun
from glmrun.cli import loading
from glmrun.gguf.open import open_gguf
from glmrun.gguf.source import GGUFSource
from quant.convert import convert, plan
from quant.errors import UserError

TOKENS = np.random.default_rng(5).integers(0, 950, 21).tolist()
SMALL = replace(ODD, num_hidden_layers=2, hidden_size=256, intermediate_size=512, n_routed_experts=4, num_experts_per_tok=2)


def logits(path: Path) -> np.ndarray:
    return glmrun.load(path, n_ctx=64, n_threads=2).logits(TOKENS)


@pytest.fixture(scope="module")
def tiny(tiny_gguf: Callable[..., Tiny]) -> Tiny:
    return tiny_gguf("Q8_0", SMALL)


@pytest.fixture(scope="module")
def ours(tiny: Tiny) -> np.ndarray:
    return logits(tiny.path)


def ollama(parts: Parts, split_kv_b: bool = True) -> None:
    """Metadata as Ollama's own converter wrote it: another prefix, head widths and row widths the other way round."""
    c = SMALL
    keys = {k.replace("deepseek2.", "glm4moelite."): v for k, v in parts.metadata.items()}
    keys["general.architecture"] = "glm4moelite"
    for key in ("eot_token_id", "eom_token_id", "eos_token_id"):
        keys.pop(f"tokenizer.ggml.{key}")
    keys["tokenizer.ggml.eos_token_ids"] = [parts.metadata[f"tokenizer.ggml.{k}_token_id"] for k in ("eos", "eot", "eom")]
    a = "glm4moelite.attention."
    keys |= {f"{a}head_count_kv": c.num_attention_heads, f"{a}key_length": c.qk_head_dim, f"{a}value_length": c.v_head_dim}
    if split_kv_b:
        keys |= {f"{a}key_length_mla": c.kv_lora_rank + c.qk_rope_head_dim, f"{a}value_length_mla": c.kv_lora_rank}
    else:
        del keys[f"{a}key_length_mla"], keys[f"{a}value_length_mla"]
    parts.metadata = keys


def test_ollamas_keys(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    ollama(parts)
    path = parts.write(tmp_path / "ollama.gguf")
    assert np.array_equal(logits(path), ours)
    model = glmrun.load(path, n_ctx=64)
    ends = {model.tokenizer.id_of(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    assert model.tokenizer.eog_ids == ends
    assert replace(model.config, rms_norm_eps=1e-5, routed_scaling_factor=1.8) == SMALL


@pytest.mark.parametrize("architecture", ["deepseek2", "glm4moelite"])
@pytest.mark.parametrize("name", ["F32", "BF16", "F16", "Q8_0", "Q4_K"])
def test_unsplit_attn_kv_b(tiny_gguf: Callable[..., Tiny], tmp_path: Path, architecture: str, name: str) -> None:
    """The other matrices are F32, so that float formats leave no noise to hide in."""
    parts = Parts.read(tiny_gguf("F32", SMALL).path)
    formats = dict(parts.formats)
    parts.fuse_keys(name)
    ollama(parts, split_kv_b=False)
    if architecture == "deepseek2":
        renamed = {k.replace("glm4moelite.", "deepseek2."): v for k, v in parts.metadata.items()}
        parts.metadata = renamed | {"general.architecture": "deepseek2"}
    model = glmrun.load(parts.write(tmp_path / "unsplit.gguf"), n_ctx=64)
    assert len(model.weights.notes) >= 1 and all("attn_kv_b" in line for line in model.weights.notes)

    weights = parts.weights()
    heads, nope = SMALL.num_attention_heads, SMALL.qk_nope_head_dim
    for i in range(SMALL.num_hidden_layers):
        both = weights.pop(f"blk.{i}.attn_kv_b.weight").reshape(heads, -1, SMALL.kv_lora_rank)
        weights[f"blk.{i}.attn_k_b.weight"] = k = np.ascontiguousarray(both[:, :nope].transpose(0, 2, 1))
        weights[f"blk.{i}.attn_v_b.weight"] = v = both[:, nope:]
        k_b, v_b = (model.weights.tensors[f"blk.{i}.attn_{part}_b.weight"] for part in "kv")
        assert np.array_equal(v_b.floats(), v)
        assert (np.abs(k_b.floats() - k) <= np.abs(k) * (2.0**-11 if name in ("Q8_0", "Q4_K") else 0) + 2.0**-25).all()
        formats |= {f"blk.{i}.attn_k_b.weight": k_b.format, f"blk.{i}.attn_v_b.weight": v_b.format}
    exact, rounded = (Naive(weights, SMALL, f, absorbed=True).logits(TOKENS) for f in (None, formats))
    noise = np.median(errors(rounded, exact))
    assert np.median(errors(model.logits(TOKENS), exact)) <= 3 * noise + 1e-10


def test_heads_listed_as_one_matrix(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    """As ik_llama.cpp's converter writes them, beside attn_kv_b; such a file was called one that contradicts itself."""
    parts = Parts.read(tiny.path)
    parts.fuse_keys("Q8_0")
    split = Parts.read(tiny.path)
    for name in [name for name in split.blocks if ".attn_k_b." in name or ".attn_v_b." in name]:
        heads, rows, columns = split.shapes[name]
        parts.blocks[name], parts.formats[name], parts.shapes[name] = split.blocks[name], "Q8_0", (heads * rows, columns)
    a = "deepseek2.attention."
    parts.metadata |= {f"{a}{part}_length": parts.metadata.pop(f"{a}{part}_length_mla") for part in ("key", "value")}
    path = parts.write(tmp_path / "flat.gguf")
    model = glmrun.load(path, n_ctx=64)
    assert np.array_equal(model.logits(TOKENS), ours) and model.weights.notes == []
    for _ in convert(plan(GGUFSource.open(path), "Q8_0"), tmp_path / "again.gguf"):
        pass
    assert open_gguf(tmp_path / "again.gguf").tensors["blk.0.attn_k_b.weight"].shape == split.shapes["blk.0.attn_k_b.weight"]
    assert np.array_equal(logits(tmp_path / "again.gguf"), ours)


@pytest.mark.parametrize("name", READ_ONLY)
def test_foreign_formats(tiny_gguf: Callable[..., Tiny], tmp_path: Path, name: str) -> None:
    """Every matrix whose rows fit in the format, held to the size of the rounding noise (tests/test_forward.py)."""
    parts = Parts.read(tiny_gguf("F32", SMALL).path)
    parts.put_random(name)
    model = glmrun.load(parts.write(tmp_path / "foreign.gguf"), n_ctx=64)
    assert model.weights.notes == []
    exact, rounded = (Naive(parts.weights(), SMALL, f, absorbed=True).logits(TOKENS) for f in (None, parts.formats))
    noise = np.median(errors(rounded, exact))
    assert np.median(errors(model.logits(TOKENS), exact)) <= 3 * noise
    assert noise <= 1e-3


def test_foreign_fused_and_unsplit(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    """Two at once, in formats that we do not write."""
    parts = Parts.read(tiny_gguf("F32", SMALL).path)
    name = "blk.1.ffn_gate_exps.weight"
    shape = (SMALL.n_routed_experts, 2 * SMALL.moe_intermediate_size, SMALL.hidden_size)
    parts.take(name), parts.take(name.replace("gate", "up"))
    fused = name.replace("gate", "gate_up")
    parts.shapes[fused], parts.formats[fused] = shape, "Q5_K"
    parts.blocks[fused] = random_blocks("Q5_K", shape[0] * shape[1], shape[2], 1 / 16)
    heads, nope, v = SMALL.num_attention_heads, SMALL.qk_nope_head_dim, SMALL.v_head_dim
    parts.take("blk.1.attn_k_b.weight"), parts.take("blk.1.attn_v_b.weight")
    both = "blk.1.attn_kv_b.weight"
    parts.shapes[both], parts.formats[both] = (heads * (nope + v), SMALL.kv_lora_rank), "Q4_0"
    parts.blocks[both] = random_blocks("Q4_0", heads * (nope + v), SMALL.kv_lora_rank, 1 / 16)
    values = parts.weights()
    tensors = glmrun.load(parts.write(tmp_path / "both.gguf"), n_ctx=64).weights.tensors
    halves = values[fused].reshape(shape[0], 2, -1, shape[2])
    for i, part in enumerate(("gate", "up")):
        got = tensors[name.replace("gate", part)].floats()
        assert np.array_equal(got, halves[:, i])
    kv = values[both].reshape(heads, nope + v, -1)
    assert np.array_equal(tensors["blk.1.attn_v_b.weight"].floats(), kv[:, nope:])
    assert np.abs(tensors["blk.1.attn_k_b.weight"].floats() - kv[:, :nope].transpose(0, 2, 1)).max() <= 2.0**-11
    assert {tensors[f"blk.1.attn_{part}_b.weight"].format for part in "kv"} == {"F16", "Q4_0"}


def test_a_conversion_that_does_not_fit_is_refused(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.read(tiny.path)
    parts.fuse_keys("Q8_0")
    path = parts.write(tmp_path / "large.gguf")
    monkeypatch.setattr("glmrun.tensors.split.available_memory", lambda: 1000)
    with pytest.raises(UserError, match=r"the keys in its attn_kv_b take .* GiB transposed, .* memory are free"):
        glmrun.load(path, n_ctx=64)
    assert glmrun.load(tiny.path, n_ctx=64).weights.notes == []


def test_what_is_converted_is_said_before_it_is(tmp_path: Path, tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    parts = Parts.read(tiny.path)
    parts.fuse_keys("Q8_0")
    path = parts.write(tmp_path / "unsplit.gguf")
    told: list[tuple[list[str], int, int]] = []
    model = glmrun.load(path, n_ctx=64, converting=lambda *what: told.append(what))
    lines, done, total = told[0]
    assert lines == model.weights.notes and len(lines) == 1 and done == 0
    copies = [t for name, t in model.weights.tensors.items() if "attn_k_b" in name]
    assert total == sum(t.n_bytes for t in copies) == told[-1][1]
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told) and len(told) == 1 + len(copies)
    loading.load_model(path, 64)
    said = capsys.readouterr().err.splitlines()
    assert said == [*lines, "converting unsplit.gguf ..."]


def test_a_file_that_changes_while_it_is_converted(tmp_path: Path, tiny: Tiny) -> None:
    parts = Parts.read(tiny.path)
    parts.fuse_keys("Q8_0")
    path = parts.write(tmp_path / "unsplit.gguf")
    with pytest.raises(UserError, match="changed by another program"):
        glmrun.load(path, n_ctx=64, converting=lambda lines, done, total: os.utime(path))


def test_what_is_no_model_is_refused_before_kernels_are_loaded(tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts.read(tiny.path)
    del parts.metadata["deepseek2.block_count"]
    monkeypatch.delattr(loading, "compile_kernels")
    with pytest.raises(UserError, match="block_count is missing"):
        loading.load_model(parts.write(tmp_path / "damaged.gguf"))


def test_a_foreign_embedding_is_read_row_by_row(tmp_path: Path, tiny: Tiny) -> None:
    parts = Parts.read(tiny.path)
    parts.blocks["token_embd.weight"] = random_blocks("Q5_K", SMALL.vocab_size, SMALL.hidden_size, 1.0)
    parts.formats["token_embd.weight"] = "Q5_K"
    model = glmrun.load(parts.write(tmp_path / "embedding.gguf"), n_ctx=64)
    assert model.weights.notes == []
    assert np.array_equal(model.weights.embed(np.array([7, 3])), parts.weights()["token_embd.weight"][[7, 3]])


def test_a_vocabulary_shorter_than_the_embedding(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    for key in ("tokens", "token_type"):
        parts.metadata[f"tokenizer.ggml.{key}"] = parts.metadata[f"tokenizer.ggml.{key}"][:-8]
    model = glmrun.load(parts.write(tmp_path / "short.gguf"), n_ctx=64)
    assert np.array_equal(model.logits(TOKENS), ours)
    assert set(range(SMALL.vocab_size - 8, SMALL.vocab_size)) <= set(model.tokenizer.undefined_ids.tolist())
    assert model.tokenizer.decode([SMALL.vocab_size - 1]) == ""


def test_what_early_files_leave_out(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    """No gating function, no end-of-turn ids, and a prediction layer that is counted but not there."""
    parts = Parts.read(tiny.path)
    for key in ("deepseek2.expert_gating_func", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"):
        del parts.metadata[key]
    parts.metadata |= {"deepseek2.nextn_predict_layers": 1, "deepseek2.block_count": SMALL.num_hidden_layers + 1}
    path = parts.write(tmp_path / "early.gguf")
    model = glmrun.load(path, n_ctx=64)
    assert np.array_equal(model.logits(TOKENS), ours)
    assert len(model.tokenizer.eog_ids) == 3


def test_what_published_files_say_besides(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    """Keys of ggml-org's, Unsloth's, LM Studio's and Ollama's files that change nothing, numbers wider than ours, other padding."""
    parts = Parts.read(tiny.path)
    wide = {k: np.uint64(v) if type(v) is int else np.float64(v) for k, v in parts.metadata.items() if type(v) in (int, float)}
    types = np.array(parts.metadata["tokenizer.ggml.token_type"], np.int32)
    types[types == 5] = 4  # Ollama's converter makes padding user-defined
    parts.metadata |= wide | {
        "general.alignment": 32, "general.tags": ["unsloth", "text-generation"], "general.languages": ["en", "zh"],
        "general.base_model.count": 1, "general.base_model.0.repo_url": "https://huggingface.co/zai-org/GLM-4.7-Flash",
        "general.parameter_count": np.uint64(29_943_393_920), "general.quantized_by": "Unsloth", "general.file_type": 15,
        "quantize.imatrix.file": "imatrix.gguf", "quantize.imatrix.entries_count": 607, "quantize.imatrix.chunks_count": 85,
        "deepseek2.rope.scaling.type": "none", "tokenizer.ggml.scores": np.zeros(SMALL.vocab_size, np.float32),
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.unknown_token_id": 7, "tokenizer.ggml.padding_token_id": 8,
    }  # fmt: skip
    model = glmrun.load(parts.write(tmp_path / "published.gguf"), n_ctx=64)
    assert np.array_equal(model.logits(TOKENS), ours)
    unused = np.flatnonzero(np.array(Parts.read(tiny.path).metadata["tokenizer.ggml.token_type"]) == 5)
    assert model.tokenizer.undefined_ids.tolist() == unused.tolist() and len(unused) > 8


def test_a_file_of_the_prediction_layer_alone(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> None:
    parts = Parts.read(tiny_gguf("F32", ODDER).path)
    names = [n for n in parts.blocks if not n.startswith(tuple(f"blk.{i}." for i in range(ODDER.num_hidden_layers)))]
    with pytest.raises(UserError, match="no whole model"):
        glmrun.load(parts.write(tmp_path / "mtp.gguf", names))


# ---- split files -----------------------------------------------------------------------------------------------------


def split(parts: Parts, folder: Path, count: int = 3, stem: str = "model") -> list[Path]:
    """The parts as llama-gguf-split writes them: the metadata in the first, the tensors in order."""
    names = list(parts.blocks)
    paths = []
    for i in range(count):
        own = {"split.no": i, "split.count": count, "split.tensors.count": len(names)}
        part = names[len(names) * i // count : len(names) * (i + 1) // count]
        path = folder / f"{stem}-{i + 1:05}-of-{count:05}.gguf"
        paths.append(parts.write(path, part, own | parts.metadata if i == 0 else own))
    return paths


def test_any_part_opens_all(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    paths = split(Parts.read(tiny.path), tmp_path)
    for path in paths:
        file = open_gguf(path)
        assert file.path == paths[0] and len(file.mappings) == 3
        assert file.size == sum(p.stat().st_size for p in paths)
    assert np.array_equal(logits(paths[1]), ours)


def test_a_first_part_without_tensors(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    """As llama-gguf-split --no-tensor-first-split writes it, with numbers of 16 bits."""
    parts, names = Parts.read(tiny.path), list(Parts.read(tiny.path).blocks)
    own = {"split.count": np.uint16(3), "split.tensors.count": np.int32(len(names))}
    for i, part in enumerate(([], names[:9], names[9:])):
        described = own | {"split.no": np.uint16(i)} | (parts.metadata if i == 0 else {})
        parts.write(tmp_path / f"model-{i + 1:05}-of-00003.gguf", part, described)
    assert np.array_equal(logits(tmp_path / "model-00003-of-00003.gguf"), ours)


def test_one_part_of_one_is_a_file(tiny: Tiny, ours: np.ndarray, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    parts.metadata |= {"split.no": 0, "split.count": 1}
    assert np.array_equal(logits(parts.write(tmp_path / "whole.gguf")), ours)


def test_missing_parts_are_named(tiny: Tiny, tmp_path: Path) -> None:
    paths = split(Parts.read(tiny.path), tmp_path, 4)
    paths[1].unlink()
    paths[3].unlink()
    with pytest.raises(
        UserError, match=r"2 of 4 parts are missing: model-00002-of-00004.gguf, model-00004-of-00004.gguf"
    ) as caught:
        open_gguf(paths[2])
    assert caught.value.kind == "missing"


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda parts, paths: paths[0].rename(paths[0].with_name("model.gguf")), "its name must be"),
        (lambda parts, paths: parts.write(paths[1], [], {"split.no": 2, "split.count": 3}), "part 3 of 3, by its name it is 2"),
        (lambda parts, paths: parts.write(paths[1], [], {"split.no": 1, "split.count": 4}), "part 2 of 4, by its name"),
        (lambda parts, paths: parts.write(paths[1], [], {"split.no": 1}), "part 2 of 1"),
        (lambda parts, paths: parts.write(paths[1], [], {"split.no": 1, "split.count": 3}), "tensors"),
        (
            lambda parts, paths: parts.write(paths[1], ["token_embd.weight"], {"split.no": 1, "split.count": 3}),
            "stands in two parts",
        ),
        (
            lambda parts, paths: parts.write(
                paths[2], None, {"split.no": 2, "split.count": 3, "general.architecture": "llama"}
            ),
            "different models",
        ),
        (lambda parts, paths: paths[2].write_bytes(paths[2].read_bytes()[:-1000]), "incomplete"),
        (lambda parts, paths: paths[1].write_bytes(b"GGUF"), "4 bytes"),
    ],
)  # fmt: skip
def test_parts_that_do_not_belong_together(tiny: Tiny, tmp_path: Path, spoil: Callable, said: str) -> None:
    """Class G43, with test_missing_parts_are_named() and test_split_count_is_checked()."""
    parts = Parts.read(tiny.path)
    paths = split(parts, tmp_path)
    spoil(parts, paths)
    opened = paths[0] if paths[0].exists() else tmp_path / "model.gguf"
    with pytest.raises(UserError, match=said):
        open_gguf(opened)


def test_g44_parts_are_looked_for_in_the_same_folder_only(tiny: Tiny, tmp_path: Path) -> None:
    """A name is all that leads to the other parts, and whatever it is, they are its neighbours."""
    parts = Parts.read(tiny.path)
    parts.metadata |= {"split.no": 0, "split.count": 2, "split.prefix": "../../etc"}
    for stem in ("..", "a\nb", "..\\x", "%s{0}"):
        path = parts.write(tmp_path / f"{stem}-00001-of-00002.gguf")
        with pytest.raises(UserError) as caught:
            open_gguf(path)
        assert f"1 of 2 parts are missing: {stem}-00002-of-00002.gguf" in str(caught.value)


def test_split_count_is_checked(tiny: Tiny, tmp_path: Path) -> None:
    parts = Parts.read(tiny.path)
    for value in ("3", -1, [1, 2], 1000, 2**32 - 1):
        parts.metadata["split.count"] = np.int32(value) if value == -1 else value
        with pytest.raises(UserError, match=r"split|model"):
            open_gguf(parts.write(tmp_path / "m-00001-of-01000.gguf"))
