"""A GGUF file as a source gives what its checkpoint gives; llama-quantize's options; checksums."""

import random
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from support.checkpoint_folder import write_folder
from test_cli import glmrun
from typer import BadParameter

from glmrun.cli.convert import _choice, _override, _parse_bytes
from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from glmrun.gguf.source import GGUFSource
from glmrun.gguf.verify import verify
from glmrun.repl.flags import in_words
from quant.checkpoint import Checkpoint
from quant.convert import convert, plan
from quant.errors import UserError
from quant.recipes import Choice


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with Small-GLM, the checkpoint, and its files in several formats."""
    home = tmp_path_factory.mktemp("files")
    folder = write_folder(home / "Small-GLM")
    for quantization in ("F32", "BF16", "F16", "Q8_0"):
        run(Checkpoint.open(folder), home / f"Small-GLM-{quantization}.gguf", quantization)
    run(Checkpoint.open(folder), home / "split.gguf", "BF16", split_bytes=1_500_000)
    return home


def run(source: Any, output: Path, quantization: str, **options: Any) -> Path:
    list(convert(plan(source, quantization, **options), output))
    return output


@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_the_same_file_as_from_the_checkpoint(files: Path, tmp_path: Path, stored: str) -> None:
    source = GGUFSource.open(files / f"Small-GLM-{stored}.gguf")
    assert source.name == "Small-GLM"
    assert run(source, tmp_path / "a.gguf", "Q8_0").read_bytes() == (files / "Small-GLM-Q8_0.gguf").read_bytes()
    without: dict[str, Any] = {"mtp": False, "overrides": {"general.size_label": "small"}}
    want = run(Checkpoint.open(files / "Small-GLM"), tmp_path / "b.gguf", "Q8_0", **without).read_bytes()
    assert run(source, tmp_path / "c.gguf", "Q8_0", **without).read_bytes() == want


def test_a_split_source(files: Path, tmp_path: Path) -> None:
    first = next(files.glob("split-00001-of-*.gguf"))
    source = GGUFSource.open(first)
    assert source.name == "split" and len(source.files) > 2
    assert run(source, tmp_path / "a.gguf", "Q8_0").read_bytes() == (files / "Small-GLM-Q8_0.gguf").read_bytes()


def test_weights_that_lost_precision_need_permission(files: Path, tmp_path: Path) -> None:
    source = GGUFSource.open(files / "Small-GLM-Q8_0.gguf")
    with pytest.raises(UserError, match=r"token_embd.weight is stored as Q8_0 already.*or allow it") as error:
        plan(source, "Q6_K")
    assert in_words(error.value).endswith("allow it (--allow-requantize)")
    assert run(source, tmp_path / "same.gguf", "Q8_0").read_bytes() == (files / "Small-GLM-Q8_0.gguf").read_bytes()
    made = open_gguf(run(source, tmp_path / "f32.gguf", "F32", requantize=True))
    for name, tensor in open_gguf(files / "Small-GLM-Q8_0.gguf").tensors.items():
        assert np.array_equal(made.tensors[name].floats(), tensor.floats())


def test_f16_source(files: Path, tmp_path: Path) -> None:
    made = open_gguf(run(GGUFSource.open(files / "Small-GLM-F16.gguf"), tmp_path / "x.gguf", "F32"))
    for name, tensor in open_gguf(files / "Small-GLM-F16.gguf").tensors.items():
        assert np.array_equal(made.tensors[name].floats(), tensor.floats())


@pytest.mark.parametrize("name", ["missing.gguf", "Small-GLM/config.json", "Small-GLM/model-00001-of-00003.safetensors"])
def test_a_source_that_is_no_model(files: Path, name: str) -> None:
    with pytest.raises(UserError):
        GGUFSource.open(files / name)


def test_split_files(files: Path) -> None:
    parts = sorted(files.glob("split-*.gguf"))
    assert parts[0].name == f"split-00001-of-{len(parts):05}.gguf" and len(parts) > 2
    counts = 0
    for i, part in enumerate(parts):
        fields = {key: field.contents() for key, field in gguf.GGUFReader(part).fields.items()}
        counts += len(gguf.GGUFReader(part).tensors)
        assert (fields["split.no"], fields["split.count"]) == (i, len(parts))
        assert ("general.architecture" in fields) == (i == 0)
    whole, split = open_gguf(files / "Small-GLM-BF16.gguf"), open_gguf(parts[0])
    assert fields["split.tensors.count"] == counts == len(whole.tensors)
    assert config_from_gguf(split) == config_from_gguf(whole)
    assert all(np.array_equal(split.tensors[name].rows, tensor.rows) for name, tensor in whole.tensors.items())
    assert all(step.intact for step in verify(parts[-1]))


def test_one_file_is_enough(files: Path, tmp_path: Path) -> None:
    run(Checkpoint.open(files / "Small-GLM"), tmp_path / "x.gguf", "BF16", split_bytes=10**12)
    assert (tmp_path / "x.gguf").read_bytes() == (files / "Small-GLM-BF16.gguf").read_bytes()


def test_every_damaged_byte_is_found(files: Path, tmp_path: Path) -> None:
    good = (files / "Small-GLM-Q8_0.gguf").read_bytes()
    start = min(tensor.offset for tensor in open_gguf(files / "Small-GLM-Q8_0.gguf").tensors.values())
    rng, seen = random.Random(0), 0
    for at in [rng.randrange(len(good)) for _ in range(40)] + [rng.randrange(start) for _ in range(40)]:
        data = bytearray(good)
        data[at] ^= 1 << rng.randrange(8)
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        try:
            damaged = [step.name for step in verify(path) if not step.intact]
        except UserError:  # the structure itself is broken
            seen += 1
            continue
        assert 1 <= len(damaged) <= 2, (at, damaged)  # two if a tensor's checksum is hit
    assert seen < 60
    path.write_bytes(good + bytes(32))
    assert not all(step.intact for step in verify(path))


def test_choices_are_llama_quantizes(files: Path) -> None:
    def formats(*types: str, quantization: str = "Q4_K_M", **named: Any) -> dict[str, str]:
        choice = _choice(list(types), named.get("output"), named.get("embedding"), named.get("pure", False))
        rows = plan(Checkpoint.open(files / "Small-GLM"), quantization, choice=choice).rows
        return {row.name: row.format for row in rows}

    up, k_b, out, embd = "blk.1.ffn_up_exps.weight", "blk.1.attn_k_b.weight", "output.weight", "token_embd.weight"
    assert formats("ffn_up=q8_0", "ffn_up_exps=q6_k")[up] == "Q8_0"  # the first match decides
    with pytest.raises(UserError, match=r"^no tensor's name matches 'FFN_UP', so none becomes Q8_0; names are like output.weight$"):
        formats("ffn_up=q8_0", "FFN_UP=q8_0")
    assert formats("attn_k_b=q6_k")[k_b] == "Q8_0"  # rows of 96 are not whole blocks
    assert formats("norm=q8_0", "gate_inp=q8_0")["blk.1.attn_norm.weight"] == "F32"
    found = formats("output=q8_0", output="q4_k", embedding="q6_k")
    assert (found[out], found[embd]) == ("Q4_K", "Q6_K")
    found = formats(pure=True)
    assert found[out] == "Q4_K" and {found[name] for name in found if "ffn_down" in name} == {"Q4_K"}
    assert formats("ffn_up=q8_0", pure=True)[up] == "Q8_0"
    assert _choice([], None, None, False) == Choice()


@pytest.mark.parametrize("text", ["ffn_up", "(=q8_0", "ffn_up="])
def test_tensor_types_that_make_no_sense(text: str) -> None:
    with pytest.raises((BadParameter, UserError)):
        _choice([text], None, None, False)


def test_metadata(files: Path, tmp_path: Path) -> None:
    given = [
        "general.author=str:Me: and you",
        "general.name=Other",
        "x.count=int:7",
        "x.low=int:-7",
        "x.on=bool:true",
        "x.ratio=float:0.5",
    ]
    source = Checkpoint.open(files / "Small-GLM")
    found = open_gguf(run(source, tmp_path / "x.gguf", "BF16", overrides=dict(map(_override, given)))).metadata
    assert found["general.author"] == "Me: and you" and found["general.name"] == "Other"
    assert (found["x.count"], found["x.low"], found["x.on"], found["x.ratio"]) == (7, -7, True, 0.5)
    for text in ("a", "A.b=1", "x.y=int:one", "x.y=int:99999999999", "x.y=bool:1", "split.no=int:1", "general.alignment=int:8"):
        with pytest.raises(BadParameter, match=re.escape("--metadata")):
            _override(text)


@pytest.mark.parametrize("text", ["deepseek2.context_length=8192", "deepseek2.rope.freq_base=int:10000", "general.name=int:4",
                                  "tokenizer.ggml.tokens=str:x", "deepseek2.expert_weights_norm=int:1"])  # fmt: skip
def test_metadata_of_another_type_than_readers_take(files: Path, text: str) -> None:
    """A text for a number made a file that nothing opens, after all of it was written."""
    with pytest.raises(UserError, match=r"in a GGUF file, and a .* was given") as caught:
        plan(Checkpoint.open(files / "Small-GLM"), "BF16", overrides=dict([_override(text)]))
    assert caught.value.kind == "usage"


@pytest.mark.parametrize("more", [(), ("--split-max-size", "1M")])
def test_metadata_that_would_make_a_file_nobody_can_use(files: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    """More layers than there are made a file that nothing opens, after all of it was written."""
    out = tmp_path / "x.gguf"
    for text, words in (
        ("deepseek2.block_count=int:77", "missing"),
        ("deepseek2.attention.head_count=int:7", "shape"),
        ("tokenizer.ggml.pre=unknown", "tokenizer.ggml.pre"),
    ):
        done = glmrun("convert", str(files / "Small-GLM"), "-q", "bf16", "-o", str(out), "--metadata", text, *more)
        said = done.stderr.decode()
        assert done.returncode == 2 and words in said and "--metadata" in said and said.count("\n") == 1, done
        assert not list(tmp_path.glob("*"))
    allowed = ("--metadata", "deepseek2.context_length=int:512", "--metadata", "deepseek2.expert_used_count=int:1")
    assert glmrun("convert", str(files / "Small-GLM"), "-q", "bf16", "-o", str(out), *allowed, *more).returncode == 0


def test_sizes_of_parts() -> None:
    assert (_parse_bytes("500M"), _parse_bytes("4G")) == (500_000_000, 4_000_000_000)
    for text in ("4", "4GB", "0M", "-1G", "1.5G"):
        with pytest.raises(BadParameter):
            _parse_bytes(text)
