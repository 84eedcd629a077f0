"""A Hugging Face model folder of the GLM-4.7-Flash family, as transformers 4 and 5 save it: checked whole, read lazily."""

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from quant.config import FLASH, Config
from quant.errors import UserError, brief
from quant.gguf_header import MetadataValue
from quant.mapping import Card, Piece, metadata, pieces
from quant.shards import INDEX, SINGLE, WEIGHT_DTYPES, SourceTensor, open_shards, some
from quant.strict_json import read_json_object
from quant.text import without_mark
from quant.vocabulary import Vocabulary, read_vocabulary

_MODEL_TYPE, _CLASS = "glm4_moe_lite", "Glm4MoeLiteForCausalLM"
SMALL_FILES = (  # what a model needs beside its weights, in the order in which it is fetched
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
)
_MAX_TEMPLATE = 1 << 20
_COMPARED = 4096  # rows of two matrices that are in memory at once

# What is GLM-4.7-Flash whatever config.json calls it; prunings have fewer experts and layers.
_SHAPES = ("hidden_size", "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "moe_intermediate_size")
_NEIGHBOURS = {
    "glm_moe_dsa": "GLM-5",
    "glm4_moe": "GLM-4.5, 4.6 or 4.7",
    "glm4": "GLM-4",
    "deepseek_v3": "DeepSeek-V3, R1 or Kimi-K2",
    "deepseek_v2": "DeepSeek-V2",
}
# config.json keys that glmrun implements for one value only; absent or null means that value.
_FIXED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_interleave": True,
    "partial_rotary_factor": 1.0,
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}
_QUANTIZED = (
    ".qweight",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".absmax",
    ".quant_map",
    ".SCB",
)  # tensor names' ends
_OPTIONAL = {"norm_topk_prob", "scoring_func", "n_group", "topk_group", "tie_word_embeddings", "num_nextn_predict_layers"}


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder: nothing is missing, nothing contradicts, no weight has been read."""

    folder: Path
    config: Config  # num_nextn_predict_layers is what the weights hold
    tensors: dict[str, SourceTensor]  # by Hugging Face name, only those that are needed
    card: Card
    notes: list[str]  # lines the user should see

    @property
    def name(self) -> str:
        """The model's name."""
        return self.card.name

    @property
    def files(self) -> list[Path]:
        """Every file that the conversion reads."""
        others = (self.folder / name for name in (INDEX, *SMALL_FILES))
        return sorted({tensor.shard.path for tensor in self.tensors.values()}) + [path for path in others if path.is_file()]

    def pieces(self, config: Config) -> dict[str, list[Piece]]:
        """{GGUF tensor: the source rows it is made of}."""
        return pieces(config, self.tensors)

    def metadata(self, config: Config, file_type: int, n_weights: int) -> dict[str, MetadataValue]:
        """Every key of the file."""
        return metadata(config, self.card, file_type, n_weights)

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """Open a folder; raises UserError: missing for what is not there, failed for what is wrong."""
        folder = Path(folder)
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise UserError(
                f"{folder} {what}; glmrun converts a Hugging Face model folder with config.json and safetensors", "missing"
            )
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} has no config.json; glmrun converts a Hugging Face model folder", "missing")
        source = read_json_object(folder / "config.json")
        try:
            config = config_from_json(source)
        except UserError as why:
            raise UserError(f"{folder / 'config.json'}: {why}", why.kind) from None
        tensors = open_shards(folder)
        config, notes = _settle_prediction_layer(config, tensors)
        if config.tie_word_embeddings and _has_own_head(tensors):
            config = replace(config, tie_word_embeddings=False)
            notes.append(
                "config.json ties the output to the embedding, but the weights have both, and different: both are converted"
            )
        if (folder / SINGLE).is_file() and (folder / INDEX).is_file():
            notes.append(f"{SINGLE} holds the whole model: {INDEX} and the shards that it names are left out")
        tensors = _needed_tensors(folder, config, tensors)
        vocabulary = read_vocabulary(folder / "tokenizer.json", config.vocab_size)
        notes += vocabulary.notes
        pad = _token_ids(folder / "config.json", source, "pad_token_id", config)
        generation = _json_of(folder / "generation_config.json")
        ends = [
            *_token_ids(folder / "config.json", source, "eos_token_id", config),
            *_token_ids(folder / "generation_config.json", generation, "eos_token_id", config),
            *_end_of_tokenizer(folder, vocabulary),
        ]
        card = Card(
            name=_name(folder.resolve()),
            vocabulary=vocabulary,
            chat_template=_chat_template(folder),
            generation_config=generation,
            eos_token_ids=list(dict.fromkeys(ends)),
            pad_token_id=pad[0] if pad else None,
            license=_license(folder / "README.md"),
        )
        return cls(folder, config, tensors, card, notes)


def _name(folder: Path) -> str:
    """The folder's name; in a hub's cache (models--USER--NAME/snapshots/COMMIT) the repository's."""
    name = folder.parent.parent.name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name
    return os.fsencode(name).decode(errors="replace")  # a folder's name may be any bytes


def config_from_json(source: dict[str, Any]) -> Config:
    """The Config in a config.json of transformers 4 or 5; UserError for another model or for anything glmrun does not implement."""
    kind, ours = source.get("model_type"), all(source.get(key) == getattr(FLASH, key) for key in _SHAPES)
    if not ours and kind != _MODEL_TYPE and source.get("architectures") != [_CLASS]:
        said = kind or source.get("architectures")
        found = brief(said) if said else "of no model_type"
        known = f", {_NEIGHBOURS[kind]}" if isinstance(kind, str) and kind in _NEIGHBOURS else ""
        raise UserError(
            f"the model is {found}{known}; glmrun converts {_MODEL_TYPE!r} (GLM-4.7-Flash), transformers and llama.cpp run others"
        )
    if quantized := source.get("quantization_config"):
        method = str(quantized.get("quant_method") if isinstance(quantized, dict) else quantized)[:40]
        raise UserError(f"the checkpoint is quantized already ({method}); download the original: glmrun converts BF16, F16 or F32")
    for key, implemented in _FIXED.items():
        if source.get(key) is not None and source[key] != implemented:
            raise UserError(f"{key} is {brief(source[key])}; glmrun implements {implemented!r} only")
    values: dict[str, Any] = {}
    for name in (field.name for field in fields(Config)):
        if source.get(name) is not None:
            values[name] = source[name]
        elif name not in _OPTIONAL and name not in ("rope_theta", "first_k_dense_replace"):
            raise UserError(f"{name} is missing or null")
    values["rope_theta"] = _rope_theta(source)
    values["first_k_dense_replace"] = _first_dense(source)
    for name in ("norm_topk_prob", "tie_word_embeddings"):
        if not isinstance(values.get(name, False), bool):
            raise UserError(f"{name} is {brief(values[name])}; glmrun expects true or false")
    config = Config(**values)
    for name, expected in (("num_key_value_heads", config.num_attention_heads), ("qk_head_dim", config.qk_head_dim)):
        if source.get(name) not in (None, expected):
            raise UserError(f"{name} is {brief(source[name])}, which contradicts the other numbers: {expected} expected")
    return config


def _rope_theta(source: dict[str, Any]) -> Any:
    """The base of the rotary angles; scaled variants of it are not implemented."""
    thetas = [source.get("rope_theta")]
    for key in ("rope_scaling", "rope_parameters"):
        rope = source.get(key) or {}
        if not isinstance(rope, dict):
            raise UserError(f"{key} is {brief(rope)}; glmrun expects an object or null")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise UserError(f"{key} is {str(rope)[:120]}; glmrun implements rope_type 'default' without partial rotation only")
        thetas.append(rope.get("rope_theta"))
    given = [theta for theta in thetas if theta is not None]
    if not given:
        raise UserError("rope_theta is missing")
    if any(theta != given[0] for theta in given):
        raise UserError(f"rope_theta is given twice and differently: {given}")
    return given[0]


def _first_dense(source: dict[str, Any]) -> Any:
    """The number of dense layers before the first layer with experts; transformers 5 may list the layers' types instead."""
    first, kinds = source.get("first_k_dense_replace"), source.get("mlp_layer_types")
    if kinds is None:
        if first is None:
            raise UserError("first_k_dense_replace is missing")
        return first
    counted = kinds.count("dense") if isinstance(kinds, list) else 0
    n = source["num_hidden_layers"]
    if not isinstance(kinds, list) or kinds != ["dense"] * counted + ["sparse"] * (len(kinds) - counted):
        raise UserError(
            "mlp_layer_types must be a list of 'dense' layers followed by 'sparse' ones; glmrun implements that order only"
        )
    if len(kinds) != n:
        raise UserError(f"mlp_layer_types lists {len(kinds)} layers, num_hidden_layers is {brief(n)}")
    if first not in (None, counted):
        raise UserError(f"first_k_dense_replace is {brief(first)}, but mlp_layer_types begins with {counted} dense layers")
    return counted


def _settle_prediction_layer(config: Config, tensors: dict[str, SourceTensor]) -> tuple[Config, list[str]]:
    """The Config with the next-token-prediction layer that the weights hold, whatever config.json says of it."""
    layers = {int(match[1]) for name in tensors if (match := re.match(r"model\.layers\.(\d{1,6})\.", name))}
    prediction = {i for i in layers if f"model.layers.{i}.eh_proj.weight" in tensors}
    n = config.num_hidden_layers
    if layers - prediction != set(range(n)):
        raise UserError(f"config.json says num_hidden_layers is {n}, but the weights have {len(layers - prediction)} layers")
    if prediction - {n}:
        raise UserError(f"the weights have next-token-prediction layers at {sorted(prediction)}; glmrun converts one, layer {n}")
    notes = []
    if config.num_nextn_predict_layers and not prediction:
        notes.append("config.json promises a next-token-prediction layer, the weights have none: converting the model without it")
    return replace(config, num_nextn_predict_layers=len(prediction)), notes


def _has_own_head(tensors: dict[str, SourceTensor]) -> bool:
    """Whether there is an output matrix beside the embedding that is another one: transformers 5 then does not tie them.

    All of them is compared: fine-tuning may have changed the rows of a few tokens.
    """
    head, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if head is None or embedding is None or not {head.dtype, embedding.dtype} <= WEIGHT_DTYPES:
        return False
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return True
    if len(head.shape) != 2:
        return False  # and is refused for its shape
    parts = [(first, min(_COMPARED, head.shape[0] - first)) for first in range(0, head.shape[0], _COMPARED)]
    return any(not np.array_equal(head.read_rows(*part), embedding.read_rows(*part)) for part in parts)


def _needed_tensors(folder: Path, config: Config, tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    """The tensors that the model consists of; each is there, in its shape and in a type that can be read, and no other is."""
    needed = {piece.source: piece.shape for parts in pieces(config, tensors).values() for piece in parts}
    unknown = [name for name in tensors if name not in needed and not _is_ignored(name, config)]
    if any(name.endswith(_QUANTIZED) for name in unknown):
        raise UserError(
            f"{folder} holds weights that are quantized already (FP8, GPTQ, AWQ or bitsandbytes); "
            "download the original model: glmrun converts BF16, F16 or F32"
        )
    missing = [name for name in needed if name not in tensors]
    if missing:
        raise UserError(f"{folder}: {len(missing)} of {len(needed)} tensors are missing from the weights: {some(missing)}")
    if unknown:
        raise UserError(f"{folder}: {len(unknown)} tensors are not of this model: {some(unknown)}; is config.json another model's?")
    for name, shape in needed.items():
        tensor = tensors[name]
        if tensor.dtype not in WEIGHT_DTYPES:
            raise UserError(f"{folder}: {name} is {tensor.dtype}; glmrun converts BF16, F16 or F32 weights")
        if tensor.shape != shape:
            raise UserError(f"{folder}: {name} has the shape {tensor.shape}, config.json means {shape}")
    return {name: tensors[name] for name in needed}


def _is_ignored(name: str, config: Config) -> bool:
    """Tensors that some versions store and that follow from the others."""
    return name.endswith("rotary_emb.inv_freq") or (config.tie_word_embeddings and name == "lm_head.weight")


def _json_of(path: Path) -> dict[str, Any]:
    """The object in a file that need not be there."""
    return read_json_object(path) if path.is_file() else {}


def _end_of_tokenizer(folder: Path, vocabulary: Vocabulary) -> list[int]:
    """The tokenizer's own end token: fine-tuning in another chat format changes it there, and not always in config.json."""
    end = _json_of(folder / "tokenizer_config.json").get("eos_token")
    text = end.get("content") if isinstance(end, dict) else end
    return [vocabulary.ids[text]] if isinstance(text, str) and text in vocabulary.ids else []


def _token_ids(path: Path, source: dict[str, Any], key: str, config: Config) -> list[int]:
    value = source.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    for i in ids:
        if type(i) is not int or not 0 <= i < config.vocab_size:
            raise UserError(f"{path}: {key} is {brief(value)}; glmrun expects token ids below vocab_size, {config.vocab_size}")
    return ids


def _chat_template(folder: Path) -> str | None:
    """chat_template.jinja, or else the template in tokenizer_config.json (the one called "default" where there are several)."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        raw = path.read_bytes()
        if len(raw) > _MAX_TEMPLATE:
            raise UserError(f"{path} has {len(raw):,} bytes; glmrun reads chat templates up to {_MAX_TEMPLATE:,}")
        try:
            return without_mark(raw, str(path)).decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not valid UTF-8 at byte {error.start}") from None
    path = folder / "tokenizer_config.json"
    template = _json_of(path).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is not None and (not isinstance(template, str) or len(template) > _MAX_TEMPLATE):
        raise UserError(
            f"{path}: chat_template is neither a text (up to {_MAX_TEMPLATE:,} characters) nor a list with one called default"
        )
    return template


def _license(card: Path) -> str | None:
    """The license that the model card's front matter names."""
    if not card.is_file():
        return None
    with open(card, encoding="utf-8", errors="replace") as file:
        head = file.read(1 << 16)
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    found = re.search(r"^license: *['\"]?([\w.+-]{1,60})", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
