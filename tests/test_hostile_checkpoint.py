"""A crafted folder or header for each class of damage that converters are known to fall for: a checkpoint, or one line.

The numbers S1 to S21 are this project's list of those classes. S10, weights that are no numbers, and a shard that changes in the
middle of a conversion are found while weights are read: tests/test_convert.py and test_publish.py.
"""

import json
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoint_folder import SMALL, source_tensors, tokenizer_json, write_folder, write_safetensors
from test_checkpoint import INDEX, SHARD, edit_json, refusal

from glmrun.chat.tokenizer import Tokenizer
from quant.checkpoint import Checkpoint
from quant.errors import UserError
from quant.plan import plan
from quant.shards import read_header
from quant.strict_json import MAX_BYTES
from quant.vocabulary import read_vocabulary


def shard(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: Any = "BF16", shape: Any = (4,), offsets: Any = (0, 8), **more: Any) -> bytes:
    """A shard of one tensor and eight bytes."""
    return shard(json.dumps({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more}).encode(), bytes(8))


def two(a: tuple[int, int], b: tuple[int, int], n_bytes: int = 16) -> bytes:
    """A shard of two tensors of 8 bytes each."""
    row = {"dtype": "F32", "shape": [2]}
    return shard(json.dumps({"a": row | {"data_offsets": a}, "b": row | {"data_offsets": b}}).encode(), bytes(n_bytes))


GOOD = b'{"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4970000000\n"

# (class, a file, part of the message)
SHARDS: list[tuple[str, bytes, str]] = [
    ("S1", b"", "has 0 bytes and no safetensors header"),
    ("S1", b"1234567", "has 7 bytes and no safetensors header"),
    ("S1", bytes(8), "has 8 bytes and no safetensors header"),
    ("S1", (200).to_bytes(8, "little") + b"{}", "10 bytes are there, its header alone needs 208"),
    ("S1", (100_000_001).to_bytes(8, "little") + b"{}", "announces a header of 100,000,001 bytes"),
    ("S1", b"\xff" * 16, "announces a header of 18,446,744,073,709,551,615 bytes"),
    ("S2", LFS, "git-lfs pointer to a file of 4,970,000,000 bytes, not the weights; run `git lfs pull`"),
    ("S3", b"<!DOCTYPE html><html>" + b" " * 99, "web page"),
    ("S3", b'{"error":"Repository not found"}', "a JSON text"),
    ("S3", b"PK\x03\x04" + b"x" * 99, "zip archive"),
    ("S3", b"\x80\x02}q\x00" + b"x" * 99, "pickle"),
    ("S3", b"\x80\x04\x95\x00" + b"x" * 99, "pickle"),
    ("S3", b"GGUF" + b"x" * 99, "GGUF"),
    ("S3", bytes(4096), "zeros"),
    ("S4", shard(b"\xff\xfe{}"), "is not valid JSON"),
    ("S4", shard(b"{]"), "is not valid JSON"),
    ("S4", shard(b'["t"]'), "holds a JSON list"),
    ("S4", shard(b"\xef\xbb\xbf" + GOOD, bytes(8)), "is not valid JSON"),
    ("S4", shard(GOOD + b"x", bytes(8)), "is not valid JSON: Extra data"),
    ("S5", shard(b"{" + GOOD[1:-1] + b"," + GOOD[1:], bytes(8)), "the key 't' stands there twice"),
    ("S5", shard(GOOD.replace(b'"dtype"', b'"shape":[1],"dtype"'), bytes(8)), "the key 'shape' stands there twice"),
    ("S6", shard(b'{"t":' + b"[" * 100_000), "times '['"),
    ("S6", shard(b'{"t":' + b"[" * 2000 + b" " * 16_000), "is not valid JSON"),
    ("S6", shard(b'{"t":' * 5000), "times '{'"),
    ("S6", shard(GOOD.replace(b"[2]", b"[" + b"9" * 5000 + b"]"), bytes(8)), "is not valid JSON"),
    ("S6", shard(GOOD.replace(b"[2]", b"[NaN]"), bytes(8)), "NaN is not a JSON number"),
    ("S6", shard(GOOD.replace(b"[2]", b"[-Infinity]"), bytes(8)), "-Infinity is not a JSON number"),
    ("S6", entry(shape=[4.0]), "expected usize"),
    ("S6", entry(shape=[4, -1]), "expected usize"),
    ("S6", entry(shape=[True, 4]), "expected usize"),
    ("S6", entry(shape=[1] * 9), "invalid shape, data type, or offset"),
    ("S6", entry(shape="4"), "expected a sequence"),
    ("S6", entry(dtype=["BF16"]), "expected string or map"),
    ("S6", entry(offsets=[0, 8, 8]), "invalid length 3"),
    ("S6", entry(dtype={"BF16": None}), "not one of a tensor"),
    ("S6", shard(b'{"t":"BF16"}'), "expected struct TensorInfo"),
    ("S7", entry(offsets=[8, 0]), "invalid offset for tensor `t`"),
    ("S7", entry(shape=[400], offsets=[0, 800]), "is cut off"),
    ("S7", two((0, 8), (4, 12)), "invalid offset for tensor `b`"),
    ("S7", two((0, 8), (16, 24), 24), "invalid offset for tensor `b`"),
    ("S7", entry(offsets=[2, 10]), "invalid offset for tensor `t`"),
    ("S7", two((0, 8), (8, 16), 17), "148 bytes are there, and its header says otherwise"),
    ("S8", entry(offsets=[0, 6]), "invalid shape, data type, or offset"),
    ("S8", entry(shape=[2, (1 << 64) - 2]), "overflow computing buffer size"),
    ("S8", entry(shape=[2, 1 << 62]), "overflow computing buffer size"),
    ("S8", entry(shape=[1 << 62, 1 << 62, 0]), "overflow computing buffer size"),
    ("S9", entry(dtype="Q4"), "unknown variant `Q4`"),
    ("S12", two((0, 8), (8, 16), 15), "is cut off"),
    ("S17", shard(b'{"t":["F32",[2],[0,8]]}', bytes(8)), "not one of a tensor"),
]  # fmt: skip


@pytest.mark.parametrize("number, content, said", SHARDS, ids=[f"{row[0]} {row[2][:40]}" for row in SHARDS])
def test_shards(tmp_path: Path, number: str, content: bytes, said: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    message = str(refusal(lambda: read_header(path)))
    assert said in message and str(path) in message


def test_s4_white_space_around_a_header_is_json(tmp_path: Path) -> None:
    """Writers pad headers with it; a length that begins with "<" is no web page."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(shard(b" \n" + GOOD.ljust(0x13A), bytes(8)))
    assert path.read_bytes().startswith(b"<") and list(read_header(path)) == ["t"]


# ---- folders ---------------------------------------------------------------------------------------------------------


def put(name: str, raw: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(raw)


def cut(name: str, n_bytes: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:n_bytes])


def config(**changes: Any) -> Callable[[Path], object]:
    def change(source: dict[str, Any]) -> None:
        source |= changes
        for key in [key for key, value in changes.items() if value is ...]:
            del source[key]

    return lambda folder: edit_json(folder / "config.json", change)


def index(change: Callable[[dict[str, str]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / INDEX, lambda source: change(source["weight_map"]))


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_json(folder / "tokenizer.json", change)


def huge(name: str, n_bytes: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, n_bytes)


def incomplete(folder: Path) -> None:
    (folder / SHARD).rename(folder / f"{SHARD}.incomplete")


def a_name_twice(folder: Path) -> None:
    write_safetensors(folder / SHARD, {"model.norm.weight": ("BF16", np.ones(256, np.uint16))})


def weights(**tensors: tuple[str, np.ndarray]) -> Callable[[Path], object]:
    """Weights of other types: two underscores stand for a dot."""
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return lambda folder: write_folder(folder, tensors=source_tensors(SMALL) | named)


EVIL = "(?:(a+)+)+$"
# (class, what is done to a good folder, part of the message)
FOLDERS: list[tuple[str, Callable[[Path], object], str]] = [
    ("S2", put(SHARD, LFS), "git-lfs pointer to a file of 4,970,000,000 bytes"),
    ("S2", put("config.json", LFS), "config.json is a git-lfs pointer"),
    ("S2", put("tokenizer.json", LFS), "tokenizer.json is a git-lfs pointer"),
    ("S3", lambda f: [p.rename(p.with_suffix(".bin")) for p in f.glob("*model*")], "pickle format only"),
    ("S9", weights(model__layers__0__mlp__up_proj__weight=("F8_E4M3", np.ones((512, 256), np.uint8))), "up_proj.weight is F8_E4M3"),
    ("S9", weights(model__layers__0__mlp__up_proj__weight_scale_inv=("F32", np.ones((4, 2), np.float32))), "FP8, GPTQ, AWQ"),
    ("S9", weights(model__layers__0__mlp__up_proj__qweight=("I32", np.ones((32, 512), np.int32))), "FP8, GPTQ, AWQ"),
    ("S9", weights(model__norm__weight=("F64", np.ones(256))), "model.norm.weight is F64"),
    ("S9", weights(model__norm__weight=("BOOL", np.ones(256, bool))), "model.norm.weight is BOOL"),
    ("S9", config(quantization_config={"quant_method": "awq"}), "quantized already (awq)"),
    ("S11", lambda f: (f / INDEX).unlink(), "no model.safetensors.index.json"),
    ("S11", put(INDEX, b"{"), "index.json is not valid JSON"),
    ("S11", put(INDEX, b'{"metadata": {}}'), "no weight_map"),
    ("S11", put(INDEX, b'{"weight_map": ["a"]}'), "no weight_map"),
    ("S11", lambda f: (f / SHARD).unlink(), f"1 of 3 shards are missing: {SHARD}"),
    ("S11", lambda f: shutil.copy(f / SHARD, f / "model-00009-of-00003.safetensors"), "does not mention model-00009"),
    ("S11", a_name_twice, f"model.norm.weight is in {SHARD}, but the index has it in model-00003"),
    ("S11", index(lambda m: m.update({"ghost": SHARD})), "promises ghost"),
    ("S11", index(lambda m: m.pop("lm_head.weight")), "the index has it nowhere"),
    ("S11", index(lambda m: m.update({"lm_head.weight": "../x.safetensors"})), "'../x.safetensors'"),
    ("S11", index(lambda m: m.update({"lm_head.weight": "/etc/x.safetensors"})), "'/etc/x.safetensors'"),
    ("S11", index(lambda m: m.update({"lm_head.weight": "x" * 5000})), "lm_head.weight lies in 'xxx"),
    ("S12", cut(SHARD, 200), "is cut off: 200 bytes are there, its header alone needs"),
    ("S12", cut(SHARD, 100_000), "is cut off or damaged: 100,000 bytes are there"),
    ("S12", incomplete, f"1 of 3 shards are missing: {SHARD}; finish the download"),
    ("S14", lambda f: (f / "config.json").unlink(), "no config.json"),
    ("S14", put("config.json", b"{"), "config.json is not valid JSON"),
    ("S14", config(model_type="llama", architectures=["LlamaForCausalLM"]), "the model is 'llama'"),
    ("S14", config(model_type=["x" * 500] * 9, architectures=None), "the model is a list of 9 elements"),
    ("S14", config(model_type=None, architectures=None), "the model is of no model_type; glmrun converts"),
    ("S14", config(hidden_size=...), "hidden_size is missing"),
    ("S14", config(hidden_size="256"), "hidden_size is '256'"),
    ("S14", config(hidden_size=512), "has the shape"),
    ("S14", config(num_attention_heads=4, num_key_value_heads=4), "has the shape"),
    ("S14", config(num_key_value_heads=1), "contradicts"),
    ("S14", config(num_experts_per_tok=6), "n_routed_experts"),
    ("S14", config(n_routed_experts=6), "missing from the weights: model.layers.1.mlp.experts.5"),
    ("S14", config(num_hidden_layers=2), "num_hidden_layers is 2, but the weights have 3"),
    ("S14", config(num_hidden_layers=10**30), "num_hidden_layers is 1000000"),
    ("S14", config(quantization_config="x" * 5000), "is quantized already (xxx"),
    ("S14", config(eos_token_id=[260, 320]), "eos_token_id is [260, 320]"),
    ("S15", config(vocab_size=400), "model.embed_tokens.weight has the shape (320, 256)"),
    ("S15", config(vocab_size=1 << 40), "vocab_size is 1099511627776"),
    ("S15", tokenizer(lambda t: t["model"]["vocab"].update(zz=320)), "token 'zz' has the id 320, but config.json says"),
    ("S15", tokenizer(lambda t: t["model"]["vocab"].update(zz=-1)), "token 'zz' has the id -1"),
    ("S16", lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
    ("S16", put("tokenizer.json", b"[" * 5000), "tokenizer.json has 5,000 times '['"),
    ("S16", huge("tokenizer.json", 100_000_000), "tokenizer.json has 100,000,000 bytes"),
    ("S16", tokenizer(lambda t: t["model"].update(type="Unigram")), "the tokenizer is 'Unigram'"),
    ("S16", tokenizer(lambda t: t["model"].update(type="x" * 5000)), "the tokenizer is 'xxx"),
    ("S16", tokenizer(lambda t: t.update(pre_tokenizer={"type": "Metaspace"})), "pre-tokenizer (Metaspace)"),
    ("S16", tokenizer(lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=EVIL)), "(Split + ByteLevel)"),
    ("S16", tokenizer(lambda t: t["model"]["merges"].append("the x")), "the merge 'the x'"),
    ("S16", tokenizer(lambda t: t["model"]["merges"].append(["t", "h", "e"])), "does not join two tokens"),
    ("S16", tokenizer(lambda t: t["added_tokens"].append({"id": 3, "content": "<x>"})), "share the id 3"),
    ("S16", tokenizer(lambda t: t["added_tokens"].append({"id": 319, "content": "<|user|>"})), "the token '<|user|>' has 2 ids"),
    ("S16", tokenizer(lambda t: t["added_tokens"].append({"id": 319, "content": "x" * 257})), "an added token of 257 characters"),
    ("S19", put("chat_template.jinja", b"x" * ((1 << 20) + 1)), "chat_template.jinja has 1,048,577 bytes"),
    ("S19", put("chat_template.jinja", b"abc\xff"), "chat_template.jinja is not valid UTF-8 at byte 3"),
    ("S20", lambda f: shutil.rmtree(f), "does not exist"),
    ("S20", lambda f: (shutil.rmtree(f), f.touch()), "is not a folder"),
    ("S20", lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")), "no config.json"),
    ("S20", lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("config.json")), "no config.json"),
    ("S20", lambda f: ((f / SHARD).unlink(), (f / SHARD).mkdir()), "1 of 3 shards are missing"),
]  # fmt: skip
# Parts of messages about something that is not there: missing.
MISSING = ("no config", "no tokenizer", "no model.saf", "are missing", "does not exist", "not a folder", "pickle format only")


@pytest.mark.parametrize("number, spoil, said", FOLDERS, ids=[f"{row[0]} {row[2][:40]}" for row in FOLDERS])
def test_folders(folder: Path, number: str, spoil: Callable[[Path], object], said: str) -> None:
    spoil(folder)
    error = refusal(lambda: Checkpoint.open(folder))
    assert said in str(error) and str(error).isprintable()
    assert error.kind == ("missing" if any(word in said for word in MISSING) else "failed")


def test_s13_a_shard_that_changes_is_noticed(folder: Path) -> None:
    tensor = next(t for t in Checkpoint.open(folder).tensors.values() if t.shard.path.name == SHARD)
    tensor.read_rows(0, 1)
    with open(folder / SHARD, "ab") as file:
        file.write(b"more")
    assert "changed while it was being read" in str(refusal(lambda: tensor.read_rows(0, 1)))
    os.truncate(folder / SHARD, 1000)
    assert "changed while it was being read" in str(refusal(lambda: tensor.read_rows(0, 1)))


def test_s16_merges_may_be_texts_or_pairs(tmp_path: Path) -> None:
    source = tokenizer_json()
    (tmp_path / "texts.json").write_text(json.dumps(source))
    source["model"]["merges"] = [merge.split(" ") for merge in source["model"]["merges"]]
    (tmp_path / "pairs.json").write_text(json.dumps(source))
    assert read_vocabulary(tmp_path / "texts.json", 320).merges == read_vocabulary(tmp_path / "pairs.json", 320).merges


def test_s18_no_code_of_the_folder_runs(folder: Path) -> None:
    (folder / "modeling_evil.py").write_text("raise SystemExit('this ran')")
    names = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    edit_json(folder / "config.json", lambda source: source.update(auto_map=names, trust_remote_code=True))
    assert Checkpoint.open(folder).config == SMALL
    assert "modeling_evil" not in sys.modules


def test_s19_a_template_file_comes_before_one_in_the_config(folder: Path) -> None:
    named = [{"name": "rag", "template": "no"}, 3, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = Checkpoint.open(folder).card.chat_template
    assert template is not None and template.startswith("[gMASK]")
    (folder / "chat_template.jinja").unlink()
    assert Checkpoint.open(folder).card.chat_template == "yes"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": ["x"]}))
    assert Checkpoint.open(folder).card.chat_template is None
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": 5}))
    assert "chat_template is neither a text" in str(refusal(lambda: Checkpoint.open(folder)))


def test_s20_a_folder_of_links_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    for path in folder.iterdir():
        (links / path.name).symlink_to(path)
    (links / os.fsdecode(b"model-\xff-of-00003.safetensors")).touch()
    for i in range(2000):
        (links / f"{i}.txt").touch()
    before = sorted(os.listdir(links))
    links.chmod(0o555)
    try:
        assert "does not mention" in str(refusal(lambda: Checkpoint.open(links)))
        links.chmod(0o755)
        (links / os.fsdecode(b"model-\xff-of-00003.safetensors")).unlink()
        links.chmod(0o555)
        assert Checkpoint.open(links).config == SMALL
    finally:
        links.chmod(0o755)
    assert len(os.listdir(links)) == len(before) - 1


def test_s16_a_tokenizer_without_merges_converts_to_a_model_that_runs(folder: Path) -> None:
    tokenizer(lambda t: t["model"].update(merges=[]))(folder)
    model = Checkpoint.open(folder)
    found = Tokenizer.from_metadata(model.metadata(model.config, 0, 1))
    assert found.decode(found.encode("the text")) == "the text"


@pytest.mark.parametrize("key, value", [("top_p", 1.5), ("min_p", -0.1), ("repetition_penalty", 0), ("temperature", 1e300)])
def test_advice_for_sampling_that_no_file_may_give(folder: Path, key: str, value: float) -> None:
    put("generation_config.json", json.dumps({key: value}).encode())(folder)
    model = Checkpoint.open(folder)
    assert f"generation_config.json: {key} is {value}" in str(refusal(lambda: model.metadata(model.config, 0, 1)))


def test_s20_a_folder_whose_name_is_no_utf8(folder: Path, tmp_path: Path) -> None:
    named = folder.rename(tmp_path / os.fsdecode(b"model-\xff"))
    planned = plan(Checkpoint.open(named), "Q8_0")
    assert planned.metadata["general.name"] == "model-\ufffd" and planned.identity()["the source"]


# ---- memory ----------------------------------------------------------------------------------------------------------


def peak_of(action: Callable[[], object]) -> int:
    """The most bytes that Python had allocated at a time; a UserError is fine."""
    tracemalloc.start()
    try:
        action()
    except UserError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def objects(n: int) -> bytes:
    """A header of as many tensors as bytes allow: they are empty, so that data is no limit."""
    row = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(b'"%x":%s' % (i, row) for i in range(n)) + b"}"


BOMBS = {
    "lists": b'{"t":[' + b"[],".ljust(8) * 100_000 + b"[]]}",
    "objects": b'{"t":[' + b"{},".ljust(32) * 30_000 + b"{}]}",
    "members": b"{" + b",".join(b'"%06x":1' % i for i in range(80_000)) + b"}",
    "numbers": b'{"t":[' + b"1e9," * 200_000 + b"1]}",
    "texts": b'{"t":[' + '"\u0123",'.encode() * 150_000 + b"1]}",
    "tensors": objects(15_000),
    "metadata": b'{"__metadata__":{' + b",".join(b'"%06x":""' % i for i in range(80_000)) + b"}}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded_by_the_bytes_that_are_there(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(shard(BOMBS[name]))
    assert peak_of(lambda: read_header(path)) <= 24 * len(BOMBS[name]) + (1 << 20)


def test_s21_opening_reads_no_weights(tmp_path: Path) -> None:
    """A layer of 40 GB, in a sparse file: rows are read one piece at a time."""
    row = {"dtype": "BF16", "shape": [1 << 20, 1 << 14], "data_offsets": [0, 1 << 35]}
    path = tmp_path / "x.safetensors"
    path.write_bytes(shard(json.dumps({"t": row}).encode()))
    os.truncate(path, path.stat().st_size + (1 << 35))
    assert peak_of(lambda: read_header(path)["t"].read_rows((1 << 20) - 4, 4)) <= 1 << 20


def test_the_largest_json_that_is_read_is_named(folder: Path) -> None:
    os.truncate(folder / "config.json", MAX_BYTES + 1)
    assert f"reads such a file up to {MAX_BYTES:,}" in str(refusal(lambda: Checkpoint.open(folder)))
