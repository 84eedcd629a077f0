"""Hyper-parameters from GGUF metadata: ours and other converters', and files that contradict themselves."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from support.tiny_model import ODD, ODDER

import glmrun
from glmrun.gguf import architecture
from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.file import GGUFFile
from glmrun.gguf.open import open_gguf
from quant.errors import UserError


@pytest.fixture(scope="module")
def file(tiny_gguf: Callable) -> GGUFFile:
    return open_gguf(tiny_gguf("F32", ODDER).path)


def changed(file: GGUFFile, **metadata: object) -> GGUFFile:
    """The file with metadata keys set, or taken out where the value is None; a double underscore stands for a dot."""
    keys = {name.replace("__", "."): value for name, value in metadata.items()}
    keys = {name if name.startswith(("general.", "split.")) else f"deepseek2.{name}": v for name, v in keys.items()}
    return replace(file, metadata={name: value for name, value in {**file.metadata, **keys}.items() if value is not None})


def test_every_field_is_read(file: GGUFFile) -> None:
    found = config_from_gguf(file)
    assert found == replace(ODDER, rms_norm_eps=found.rms_norm_eps, routed_scaling_factor=found.routed_scaling_factor)
    assert abs(found.rms_norm_eps / ODDER.rms_norm_eps - 1) <= 1e-6 and abs(found.routed_scaling_factor / 1.8 - 1) <= 1e-6


def test_what_published_files_leave_out(file: GGUFFile) -> None:
    assert config_from_gguf(changed(file, expert_gating_func=None)).scoring_func == "sigmoid"
    assert config_from_gguf(changed(file, vocab_size=None)).vocab_size == ODD.vocab_size


def test_a_trunk_that_still_counts_its_prediction_layer(file: GGUFFile) -> None:
    last = f"blk.{ODDER.num_hidden_layers}."
    trunk = replace(file, tensors={name: t for name, t in file.tensors.items() if not name.startswith(last)})
    for blocks in (ODDER.num_hidden_layers, ODDER.num_hidden_layers + 1):
        config = config_from_gguf(changed(trunk, block_count=blocks))
        assert (config.num_hidden_layers, config.num_nextn_predict_layers) == (ODDER.num_hidden_layers, 0)


@pytest.mark.parametrize("said", [None, 0])
def test_a_prediction_layer_that_no_key_names(file: GGUFFile, said: int | None) -> None:
    """It ran as the trunk's last layer, and every logit was wrong."""
    assert config_from_gguf(changed(file, nextn_predict_layers=said)) == config_from_gguf(file)


@pytest.mark.parametrize(
    "metadata, said",
    [
        ({"general__architecture": "llama"}, "llama"),
        ({"general__architecture": None}, "None"),
        ({"embedding_length": None}, "embedding_length is missing"),
        ({"embedding_length": "512"}, "expects int"),
        ({"embedding_length": True}, "expects int"),
        ({"embedding_length": 0}, "hidden_size"),
        ({"embedding_length": 513}, "shape"),
        ({"block_count": 0}, "num_hidden_layers"),
        ({"block_count": 1000}, "num_hidden_layers"),
        ({"block_count": 9, "nextn_predict_layers": 0}, "missing"),
        ({"expert_used_count": 13}, "num_experts_per_tok"),
        ({"expert_count": 2048}, "n_routed_experts"),
        ({"rope__dimension_count": 31}, "even"),
        ({"attention__key_length_mla": 8}, "qk_nope_head_dim"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
        ({"rope__freq_base": -1.0}, "rope_theta"),
        ({"expert_gating_func": 7}, "expert_gating_func"),
        ({"expert_group_count": 4}, "within groups"),
        ({"attention__head_count": 7}, "shape"),
        ({"leading_dense_block_count": 99}, "first_k_dense_replace"),
    ],
)
def test_contradictions_are_one_line(file: GGUFFile, metadata: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        config_from_gguf(changed(file, **metadata))
    assert "\n" not in str(caught.value) and str(file.path) in str(caught.value)


def test_a_missing_tensor_is_named(file: GGUFFile) -> None:
    tensors = dict(file.tensors)
    del tensors["blk.1.attn_k_b.weight"]
    with pytest.raises(UserError, match=r"blk\.1\.attn_k_b\.weight is missing"):
        config_from_gguf(replace(file, tensors=tensors))


def test_tied_embeddings(file: GGUFFile) -> None:
    tensors = {name: tensor for name, tensor in file.tensors.items() if name != "output.weight"}
    assert config_from_gguf(replace(file, tensors=tensors)).tie_word_embeddings


def test_a_file_is_proven_once(tiny_gguf: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = architecture.open_model_file(tiny_gguf("F32", ODDER).path)
    monkeypatch.delattr(architecture, "config_from_gguf")
    with glmrun.load(opened, n_ctx=8) as model:
        assert model.config is opened.config
