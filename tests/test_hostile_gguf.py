"""A crafted file for each class of damage that GGUF readers are known to fall for: each is refused in one line that says where.

The numbers G1 to G48 are this project's list of those classes. Where a class is a matter of another module, its test there names
it: G27, G45 and G46 test_watch.py; G36 to G39 (chat templates) test_template.py; G40 and G42 test_finite.py; G41 test_kernels.py;
G43 and G44 test_dialects.py.
"""

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.foreign_file import Parts
from support.gguf_bytes import ARRAY, BOOL, DATA, F32, KEYS, STRING, TENSORS, U8, U32, U64, build, key, tensor, text
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.gguf.open import open_gguf
from quant.errors import UserError
from quant.formats import ggml_type_name

HUGE = 2**64 - 1


def with_key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return build(keys=[*KEYS, key(name, kind, value)])


def with_tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 160) -> bytes:
    return build(tensors=[*TENSORS, tensor(name, shape, kind, offset)])


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


# (class, file, part of the message)
CONTAINER: list[tuple[str, bytes, str]] = [
    ("G1", b"", "not a GGUF file: it has 0 bytes"),
    ("G1", b"GGUF", "not a GGUF file: it has 4 bytes"),
    ("G1", b"GGUF" + bytes(19), "it has 23 bytes"),
    ("G2", bytes(4096), "zeros, as an interrupted conversion leaves"),
    ("G2", b"PK\x03\x04" + bytes(60), "zip archive"),
    ("G2", b"<!DOCTYPE html><html><body>404 not found</body></html>", "a web page"),
    ("G2", b'{"error": "Repository not found", "code": 404}', "a JSON text"),
    ("G2", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 18123246080\n", "git-lfs pointer"),
    ("G2", struct.pack("<Q", 60) + b'{"__metadata__": {}}' + bytes(60), "a safetensors file"),
    ("G2", build(magic=b"gguf"), "begins with b'gguf'"),
    ("G2", b"\x93NUMPY" + bytes(60), "begins with"),
    ("G3", build(version=0), "version 0"),
    ("G3", build(version=1), "version 1; glmrun reads versions 2 and 3 (convert the model again)"),
    ("G3", build(version=4), "version 4"),
    ("G3", build(version=HUGE & 0xFFFFFFFF), "version 4294967295"),
    ("G4", build(version=3 << 24), "a big-endian file"),
    ("G5", build(n_tensors=HUGE), "18,446,744,073,709,551,615 tensors"),
    ("G5", build(n_tensors=1000), "can't hold them"),
    ("G6", build(n_keys=HUGE), "18,446,744,073,709,551,615 metadata keys"),
    ("G6", build(n_keys=1 << 31), "can't hold them"),
    ("G8", build(keys=[struct.pack("<Q", HUGE) + b"x"]), "metadata key 0 at byte"),
    ("G8", build(keys=[struct.pack("<Q", 65_536) + b"x" * 65_536 + struct.pack("<IB", U8, 0)]), "at most 65,535"),
    ("G8", build(keys=[struct.pack("<Q", 60_000) + b"x"]), "60,000 bytes were expected"),
    ("G9", with_key("", U8, b"\0"), "an empty name"),
    ("G10", build(keys=[*KEYS, KEYS[1]]), "stands in the file twice"),
    ("G11", with_key("k", 13, b""), "value type 13"),
    ("G11", with_key("k", 0xFFFFFFFF, b""), "value type 4294967295"),
    ("G12", with_key("k", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0"))), "type 9 can't be an element"),
    ("G12", with_key("k", ARRAY, array(ARRAY, 1) * 1000), "type 9 can't be an element"),
    ("G13", with_key("k", ARRAY, array(U8, 1 << 30)), "at most 16,777,216"),
    ("G13", with_key("k", ARRAY, array(U64, HUGE)), "18,446,744,073,709,551,615 elements"),
    ("G13", with_key("k", ARRAY, array(U64, 1 << 20)), "8,388,608 bytes were expected"),
    ("G13", with_key("k", ARRAY, array(STRING, 1 << 24)), "134,217,728 bytes were expected"),
    ("G13", with_key("k", ARRAY, array(13, 1)), "type 13 can't be an element"),
    ("G14", with_key("k", STRING, struct.pack("<Q", HUGE)), "at most 16,777,216"),
    ("G14", with_key("k", STRING, struct.pack("<Q", 1 << 20)), "1,048,576 bytes were expected"),
    ("G14", with_key("k", STRING, text(b"caf\xe9")), "not valid UTF-8 (unexpected end of data at byte 3"),
    ("G14", with_key("k", ARRAY, array(STRING, 2, text("ok") + text(b"\xff"))), "k[1]"),
    ("G14", with_key("k", ARRAY, array(STRING, 1, struct.pack("<Q", HUGE))), "k[0]"),
    ("G14", with_key(b"\xff", U8, b"\0"), "not valid UTF-8"),
    ("G14", with_key("k", BOOL, b"\x02"), "a boolean is 0 or 1"),
    ("G14", with_key("k", ARRAY, array(BOOL, 2, b"\x01\x05")), "a boolean is 0 or 1"),
    *[
        ("G15", with_key("general.alignment", kind, value), "general.alignment is")
        for kind, value in (
            (U32, struct.pack("<I", 0)), (U32, struct.pack("<I", 1)), (U32, struct.pack("<I", 13)),
            (U32, struct.pack("<I", 1 << 31)), (STRING, text("32")), (F32, struct.pack("<f", 32)), (BOOL, b"\x01"),
            (ARRAY, array(U32, 2, bytes(8))),
        )
    ],
    ("G16", with_key("general.alignment", U32, struct.pack("<I", 64)), "offset of second.weight at byte"),
    ("G17", with_tensor("first.weight", (4, 2)), "stands in the file twice"),
    ("G17", with_tensor("", (4,)), "can't be a name"),
    ("G17", with_tensor("n" * 64, (4,)), "at most 63"),
    ("G17", with_tensor(b"\xff\xfe", (4,)), "not valid UTF-8"),
    ("G17", with_tensor("esc\x1b[31m", (4,)), "can't be a name"),
    ("G17", with_tensor("nul\0", (4,)), "can't be a name"),
    ("G18", with_tensor("t", (1, 1, 1, 1, 1)), "dimensions of t at byte"),
    ("G18", with_tensor("t", ()), "dimensions of t at byte"),
    ("G18", build(tensors=[text("t") + struct.pack("<I", 0xFFFFFFFF) + bytes(64)]), "4294967295; GGUF allows 1 to 4"),
    ("G19", with_tensor("t", (HUGE,)), "shape of t"),
    ("G19", with_tensor("t", (1 << 63,)), "shape of t"),
    ("G19", with_tensor("t", (0, 4)), "shape of t"),
    ("G20", with_tensor("t", (1 << 32, 1 << 32)), "shape of t"),
    ("G20", with_tensor("t", (1 << 21, 1 << 21, 1 << 21, 2)), "shape of t"),
    ("G21", with_tensor("t", ((1 << 40) - 32, 255), 8), "an incomplete download"),
    ("G22", build(tensors=[tensor("a", (1 << 39, 255), 0, 0), tensor("b", (1 << 39, 255), 0, 1020 << 39)]), "an incomplete"),
    *[("G23", with_tensor("t", (256,), kind), "not a GGML type") for kind in (4, 31, 36, 99)],  # three are retired
    ("G23", with_tensor("t", (256,), 0xFFFFFFFF), "not a GGML type"),
    *[
        ("G23", with_tensor("t", (256,), kind), f"stored as {ggml_type_name(kind)}, which glmrun does not run")
        for kind in (9, 15, 16, 17, 18, 19, 21, 22, 24, 28, 29, 40)
    ],
    ("G23", with_tensor("t", (256,), 140), "t is stored as type 140 of ik_llama.cpp, which glmrun does not run"),
    ("G24", with_tensor("t", (33,), 8), "not a whole number of Q8_0 blocks of 32"),
    ("G24", with_tensor("t", (128,), 12), "not a whole number of Q4_K blocks of 256"),
    ("G25", with_tensor("t", (4,), 0, HUGE), "offset of t at byte"),
    ("G25", with_tensor("t", (4,), 0, 161), "offset of t"),
    ("G25", with_tensor("t", (4,), 0, 128), "offset of t"),
    ("G25", with_tensor("t", (4,), 0, 192), "offset of t"),
    ("G25", build(tensors=TENSORS[::-1]), "offset of second.weight"),
    ("G26", build()[:-1], "an incomplete download"),
    ("G26", build(data=DATA[:40]), "bytes are there ("),
]  # fmt: skip


def refusal(path: Path) -> str:
    """The line with which a file is refused, the whole way to a model."""
    with pytest.raises(UserError) as caught:
        glmrun.load(path, n_ctx=16, n_threads=1)
    message = str(caught.value)
    assert "\n" not in message and message.isprintable() and len(message) < 600
    return message


@pytest.mark.parametrize("number, content, said", CONTAINER, ids=[f"{row[0]} {row[2][:40]}" for row in CONTAINER])
def test_containers(tmp_path: Path, number: str, content: bytes, said: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    message = refusal(path)
    assert said in message and str(path) in message


def test_g7_every_truncation_says_where(tmp_path: Path) -> None:
    whole = build()
    for length in range(24, len(whole) - len(DATA) - 8):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        message = refusal(tmp_path / "cut.gguf")
        assert "at byte" in message or "can't hold them" in message


# (class, what is changed in the metadata of a good model; None takes a key out, part of the message)
D, T = "deepseek2.", "tokenizer.ggml."
METADATA: list[tuple[str, dict[str, Any], str]] = [
    ("G28", {"general.architecture": None}, "architecture None"),
    ("G28", {"general.architecture": "llama"}, "architecture 'llama'"),
    ("G28", {"general.architecture": 3}, "architecture 3"),
    ("G28", {"general.architecture": ["deepseek2", "x"]}, "architecture ["),
    ("G28", {D + "block_count": None}, "block_count is missing"),
    ("G28", {D + "block_count": "3"}, "block_count is '3'; glmrun expects int"),
    ("G28", {D + "block_count": [3, 3]}, "glmrun expects int"),
    ("G28", {D + "embedding_length": 512.0}, "glmrun expects int"),
    ("G28", {D + "expert_weights_norm": 1}, "glmrun expects bool"),
    ("G28", {D + "attention.key_length_mla": None, D + "attention.key_length": None}, "key_length_mla is missing"),
    ("G29", {D + "attention.head_count": 0}, "num_attention_heads is 0"),
    ("G29", {D + "block_count": 0}, "num_hidden_layers is 0"),
    ("G29", {D + "block_count": 513}, "num_hidden_layers is 513"),
    ("G29", {D + "expert_used_count": 13}, "num_experts_per_tok is 13"),
    ("G29", {D + "expert_count": 0}, "without experts"),
    ("G29", {D + "rope.dimension_count": 31}, "must be even"),
    ("G29", {D + "rope.dimension_count": 256}, "qk_nope_head_dim is"),
    ("G29", {D + "context_length": 0}, "max_position_embeddings is 0"),
    ("G29", {D + "attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps is nan"),
    ("G29", {D + "rope.freq_base": 0.0}, "rope_theta is 0.0"),
    ("G29", {D + "rope.freq_base": -1e6}, "rope_theta is -1000000.0"),
    ("G29", {D + "expert_weights_scale": float("nan")}, "routed_scaling_factor is nan"),
    ("G29", {D + "expert_gating_func": 9}, "expert_gating_func is 9"),
    ("G30", {D + "block_count": 4}, "is missing; its metadata promises"),
    ("G30", {D + "embedding_length": 256}, "has the shape"),
    ("G30", {D + "attention.kv_lora_rank": 128}, "has the shape"),
    ("G30", {D + "expert_count": 11}, "has the shape"),
    ("G31", {T + "tokens": None}, "tokenizer.ggml.tokens is missing"),
    ("G31", {T + "tokens": "abc"}, "tokenizer.ggml.tokens is missing or no list"),
    ("G31", {T + "tokens": [1, 2, 3]}, "tokenizer.ggml.tokens[0] is 1"),
    ("G31", {T + "tokens": ["a", "a"]}, "must be a list of 2 whole numbers"),
    ("G31", {T + "token_type": [1, 1]}, "must be a list of 1016 whole numbers"),
    ("G31", {T + "token_type": None}, "must be a list of 1016 whole numbers"),
    ("G31", {T + "token_type": [9] * 1016}, "token_type[0] is 9"),
    ("G31", {T + "token_type": [5] * 1016}, "marks no token as an ordinary one"),
    ("G31", {T + "tokens": ["a", *"bcdefgha"], T + "token_type": [1] * 9}, "tokenizer.ggml.tokens has 'a' twice"),
    ("G31", {T + "tokens": [str(i) for i in range(2000)], T + "token_type": [1] * 2000}, "vocabulary has 2,000 tokens"),
    ("G32", {T + "eos_token_id": 1016}, "eos_token_id is 1016"),
    ("G32", {T + "eot_token_id": "x"}, "eot_token_id is 'x'"),
    ("G32", {T + "eos_token_ids": [0, 99999]}, "eos_token_ids is 99999"),
    ("G33", {T + "merges": "a b"}, "tokenizer.ggml.merges is missing or no list"),
    ("G33", {T + "merges": [1, 2]}, "tokenizer.ggml.merges[0] is 1"),
    ("G35", {T + "pre": None}, "tokenizer.ggml.pre is None"),
    ("G35", {T + "pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2'"),
    ("G35", {T + "pre": "x" * 100_000}, "tokenizer.ggml.pre is 'xxx"),
    ("G35", {T + "model": "llama"}, "tokenizer.ggml.model is 'llama'"),
    ("G48", {"general.type": "adapter"}, "general.type is 'adapter', not a model"),
    ("G48", {"general.type": "mmproj", "general.architecture": "clip"}, "general.type is 'mmproj', not a model"),
    ("G48", {"general.type": [1, 2]}, "not a model"),
]  # fmt: skip


@pytest.fixture(scope="module")
def model_parts(tiny_gguf: Callable[..., Tiny]) -> Parts:
    return Parts.read(tiny_gguf("Q4_K_M").path)


@pytest.mark.parametrize("number, changes, said", METADATA, ids=[f"{row[0]} {row[2][:40]}" for row in METADATA])
def test_metadata(tmp_path: Path, model_parts: Parts, number: str, changes: dict[str, Any], said: str) -> None:
    found = {name: value for name, value in (model_parts.metadata | changes).items() if value is not None}
    message = refusal(model_parts.write(tmp_path / "model.gguf", metadata=found))
    assert said in message


@pytest.mark.parametrize("line", ["ab", "a  b", " ab", "ab ", "", "zz9 q", "a b c"])
def test_g33_merges_are_checked_when_text_is_first_encoded(tmp_path: Path, model_parts: Parts, line: str) -> None:
    merges = [*model_parts.metadata[T + "merges"][:5], line]
    path = model_parts.write(tmp_path / "model.gguf", metadata=model_parts.metadata | {T + "merges": merges})
    with pytest.raises(UserError, match=r"tokenizer\.ggml\.merges\[5\] is"):
        glmrun.load(path, n_ctx=16).tokenizer.encode("a text")


def test_g30_missing_and_misshapen_tensors(tmp_path: Path, model_parts: Parts) -> None:
    names = list(model_parts.blocks)
    for missing in ("token_embd.weight", "blk.1.attn_k_b.weight", "blk.2.exp_probs_b.bias", "output_norm.weight"):
        path = model_parts.write(tmp_path / "model.gguf", [name for name in names if name != missing])
        assert missing in refusal(path)
    parts = Parts(model_parts.metadata, dict(model_parts.blocks), dict(model_parts.formats), dict(model_parts.shapes))
    experts, rows, columns = parts.shapes["blk.1.ffn_up_exps.weight"]
    for shape in ((experts * rows, columns), (rows, experts, columns), (experts, rows * 2, columns // 2)):
        parts.shapes["blk.1.ffn_up_exps.weight"] = shape
        message = refusal(parts.write(tmp_path / "model.gguf"))
        assert "blk.1.ffn_up_exps.weight has the shape" in message or "no whole number" in message


def test_g34_byte_tokens_are_only_text(tmp_path: Path, model_parts: Parts) -> None:
    tokens = list(model_parts.metadata[T + "tokens"])
    tokens[-4:] = ["<0x-1>", "<0xZZ>", "<0x1FF>", "y" * 65_000]
    types = [*model_parts.metadata[T + "token_type"][:-4], 6, 6, 6, 1]
    path = model_parts.write(tmp_path / "m.gguf", metadata=model_parts.metadata | {T + "tokens": tokens, T + "token_type": types})
    tokenizer = glmrun.load(path, n_ctx=16).tokenizer
    assert [len(tokenizer.bytes_of(ODD.vocab_size - 4 + i)) for i in range(4)] == [6, 6, 7, 65_000]


def test_g47_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    os.mkfifo(tmp_path / "pipe.gguf")
    os.symlink(tmp_path / "loop.gguf", tmp_path / "loop.gguf")
    sparse = tmp_path / "sparse.gguf"
    with open(sparse, "wb") as file:
        file.truncate(1 << 43)
    for path, said in [
        (tmp_path / "folder.gguf", "is a folder"),
        (tmp_path / "pipe.gguf", "not a regular file"),
        (tmp_path / "loop.gguf", "can't be opened"),
        (Path("/dev/zero"), "not a regular file"),
        (tmp_path / "absent.gguf", "no such file"),
        (tmp_path / ("n" * 300), "can't be opened"),
        (tmp_path / "zero\0byte", "can't be opened"),
        (sparse, "zeros"),
    ]:
        assert said in refusal_of_path(path)
    if Path("/proc/self/mem").exists():
        assert "0 bytes" in refusal_of_path(Path("/proc/self/mem"))


def refusal_of_path(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        open_gguf(path)
    return str(caught.value)


# Small files that make careless readers allocate, recurse or loop: (name, keys, tensors of one number).
BOMBS = [
    ("2^30 bytes in 59", [key("k", ARRAY, array(U8, 1 << 30))], 0),
    ("empty texts", [key("k", ARRAY, array(STRING, 1 << 18, bytes(2 << 20)))], 0),
    ("one-letter texts", [key("k", ARRAY, array(STRING, 1 << 16, text("é") * (1 << 16)))], 0),
    ("rare letters", [key("k", ARRAY, array(STRING, 1 << 16, text("ģ") * (1 << 16)))], 0),
    ("many keys", [key(f"{i:x}", U8, b"\0") for i in range(16_000)], 0),
    ("nested arrays", [key("k", ARRAY, array(ARRAY, 1) * 100_000)], 0),
    ("many lists", [key(f"{i:x}", ARRAY, array(U8, 0)) for i in range(16_000)], 0),
    ("many tensors", [], 6000),
]


@pytest.mark.parametrize("keys, n_tensors", [row[1:] for row in BOMBS], ids=[row[0] for row in BOMBS])
def test_memory_is_bounded_by_the_metadata_that_is_there(tmp_path: Path, keys: list[bytes], n_tensors: int) -> None:
    header = build(keys, [tensor(f"{i:x}", (1,), 0, 32 * i) for i in range(n_tensors)], b"")
    path = tmp_path / "bomb.gguf"
    path.write_bytes(header + bytes(32 * n_tensors))
    tracemalloc.start()
    try:
        open_gguf(path)
    except UserError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak <= 24 * len(header) + (1 << 20)


def test_more_texts_than_any_vocabulary(tmp_path: Path) -> None:
    lists = [key(f"k{i}", ARRAY, array(STRING, 1 << 20, bytes(8 << 20))) for i in range(3)]
    (tmp_path / "texts.gguf").write_bytes(build(keys=lists, tensors=[], data=b""))
    with pytest.raises(UserError, match=r"k2 at byte .* more than 2,097,152 texts"):
        open_gguf(tmp_path / "texts.gguf")


@pytest.mark.parametrize("name", ["blk.1.attn_q_a.bias", "blk.2.ffn_up_exps.scale", "blk.0.post_attention_norm.weight",
                                  "output.bias", "token_embd_norm.weight", "rope_freqs.weight"])  # fmt: skip
def test_tensors_of_a_model_that_computes_otherwise(tmp_path: Path, model_parts: Parts, name: str) -> None:
    """Left out without a word they would make every number wrong; the vision of another program's file would not."""
    parts = Parts(model_parts.metadata, dict(model_parts.blocks), dict(model_parts.formats), dict(model_parts.shapes))
    parts.put(name, np.full(ODD.hidden_size, 3, np.float32), "F32")
    assert f"holds {name!r}, which GLM-4.7-Flash does not have" in refusal(parts.write(tmp_path / "extra.gguf"))


def test_extra_tensors_with_strange_names_do_no_harm(tmp_path: Path, model_parts: Parts) -> None:
    parts = Parts(model_parts.metadata, dict(model_parts.blocks), dict(model_parts.formats), dict(model_parts.shapes))
    names = ("blk.x.weight", "blk.-1.ffn_up.weight", "blk.99999999999999999999.a", "../../etc/passwd", "blk.", "v.blk.0.ln1.bias")
    for name in names:
        parts.put(name, np.ones((1, 32), np.float32), "Q8_0")
    path = parts.write(tmp_path / "extra.gguf")
    model = glmrun.load(path, n_ctx=16)
    assert np.isfinite(model.logits([1])).all()

    from glmrun.measure.model_file import model_facts
    from glmrun.measure.plan import demand_of_file

    assert model_facts(model.file, model.config)["tensors"] == len(parts.blocks)
    assert demand_of_file(model.file, model.config).weights > 0
