"""What a GGUF file holds, as plain data: for `glmrun inspect`."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glmrun.measure.plan import cache_type, column_bytes, kv_bytes
from quant.config import Config, read_per_token

if TYPE_CHECKING:
    from glmrun.gguf.file import GGUFFile, TensorInfo

_OWN_TEMPLATE = Path(__file__).parents[1] / "chat" / "chat_template.jinja"
_TURN_ENDS = ("<|user|>", "<|observation|>")
_END_KEYS = ("eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id")


def model_facts(file: "GGUFFile", config: Config) -> dict[str, Any]:
    """file_facts() and what follows from the hyper-parameters.

    parameters_active counts what one token is multiplied with: the chosen experts only, one row of the embedding, and not the
    next-token-prediction layer. kv_bytes_per_position is glmrun's own cache.
    """
    tensors = file.tensors.values()
    formats = {t.format for t in tensors if len(t.shape) > 1}
    cache = cache_type(formats)
    return file_facts(file) | {
        "parameters_active": read_per_token(config, {t.name: prod(t.shape) for t in tensors}),
        "context_length": config.max_position_embeddings,
        "kv_bytes_per_position": kv_bytes(config, cache) + column_bytes(config, formats, cache),
        "layers": config.num_hidden_layers,
        "mtp_layers": config.num_nextn_predict_layers,
        "experts": config.n_routed_experts,
        "experts_used": config.num_experts_per_tok,
        "experts_shared": config.n_shared_experts,
        "vocabulary": config.vocab_size,
        "capabilities": capabilities(file, config),
        "warnings": warnings(file),
        "config": config.asdict(),
    }


def file_facts(file: "GGUFFile") -> dict[str, Any]:
    """Facts of any GGUF file; sizes in bytes, counts of weights."""
    tensors = file.tensors.values()
    parameters = sum(prod(t.shape) for t in tensors)
    tensor_bytes = sum(t.n_bytes for t in tensors)
    by_format: Counter[str] = Counter()
    for tensor in tensors:
        by_format[tensor.format] += prod(tensor.shape)
    template, tokens = file.metadata.get("tokenizer.chat_template"), file.metadata.get("tokenizer.ggml.tokens")
    return {
        "file": str(file.path),
        "name": name if isinstance(name := file.metadata.get("general.name"), str) else None,
        "architecture": file.metadata.get("general.architecture"),
        "gguf_version": file.version,
        "file_bytes": file.size,
        "tensor_bytes": tensor_bytes,
        "tensors": len(file.tensors),
        "parameters": parameters,
        "bits_per_weight": round(8 * tensor_bytes / max(parameters, 1), 3),
        "formats": dict(by_format.most_common()),
        "tokenizer": "/".join(str(file.metadata.get(f"tokenizer.ggml.{key}", "?")) for key in ("model", "pre")),
        "vocabulary": len(tokens) if isinstance(tokens, list) else 0,
        "chat_template_sha256": _sha256(template) if isinstance(template, str) else None,
        "chat_template_is_glmruns": isinstance(template, str) and template == _OWN_TEMPLATE.read_text(encoding="utf-8"),
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def capabilities(file: "GGUFFile", config: Config) -> list[str]:
    """What the file is good for, by its template (ours, if it has none), its vocabulary and its layers."""
    template, tokens = file.metadata.get("tokenizer.chat_template"), file.metadata.get("tokenizer.ggml.tokens")
    text = template if isinstance(template, str) else _OWN_TEMPLATE.read_text(encoding="utf-8")
    known = set(tokens) if isinstance(tokens, list) else set()
    found = ["chat"]
    if "</think>" in text and "</think>" in known:
        found.append("thinking")
    if "tools" in text and "<tool_call>" in text and "<tool_call>" in known:
        found.append("tools")
    if config.num_nextn_predict_layers:
        found.append("next-token prediction")
    return found


def warnings(file: "GGUFFile") -> list[str]:
    """What is known to be wrong with files like this one."""
    found, architecture = [], file.metadata.get("general.architecture")
    gating = file.metadata.get(f"{architecture}.expert_gating_func")
    measured = any(key.startswith("quantize.imatrix.") for key in file.metadata)
    if gating is None:
        found.append(
            "expert_gating_func is missing: made before llama.cpp knew this model's router. glmrun takes the sigmoid it is; "
            "an older program may take softmax and answer badly"
            + (", and the importance matrix was measured that way: fetch a newer file" if measured else "")
        )
    elif gating == 1:
        found.append(
            "expert_gating_func is softmax, and GLM-4.7-Flash's router is a sigmoid: made by a converter from before the fix; "
            "if this is that model, its answers will be wrong: fetch a newer file"
        )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    ids = {i for key in _END_KEYS for i in np.atleast_1d(file.metadata.get(f"tokenizer.ggml.{key}", -1)).tolist()}
    places = [(text, tokens.index(text)) for text in _TURN_ENDS if text in tokens] if isinstance(tokens, list) else []
    missing = [text for text, place in places if place not in ids]
    if missing:
        found.append(
            f"no end-of-turn id for {' and '.join(missing)}: other programs may go on with the user's part; "
            "glmrun knows them by name"
        )
    return found


def tensor_rows(file: "GGUFFile") -> list[dict[str, Any]]:
    """One row per tensor, in the order of the file; shapes row-major."""
    return [
        {"name": t.name, "shape": list(t.shape), "format": t.format, "bytes": t.n_bytes, "offset": t.offset}
        for t in file.tensors.values()
    ]


def plain_metadata(file: "GGUFFile", longest: int | None = None) -> dict[str, Any]:
    """The metadata as JSON can write it; lists as in brief()."""
    return {key: brief(_comparable(value), longest) for key, value in file.metadata.items()}


def brief(value: Any, longest: int | None) -> Any:
    """The value; of a list beyond `longest` {"length": n, "first": [...]}."""
    if isinstance(value, list) and longest is not None and len(value) > longest:
        return {"length": len(value), "first": value[:longest]}
    return value


# ---- hashes and differences ------------------------------------------------------------------------------------------


def hashes(file: "GGUFFile") -> Iterator[tuple[str, str, int]]:
    """(name, SHA-256, bytes) of each tensor's data, in the order of the file; the last, with the name "", is the model's.

    The model's is taken over names, shapes, formats and hashes in the order of names: metadata, padding, order and splitting
    do not matter, any weight does.
    """
    found = {}
    with ThreadPoolExecutor() as pool:
        for tensor, digest in zip(file.tensors.values(), pool.map(_data_hash, file.tensors.values()), strict=True):
            found[tensor.name] = [list(tensor.shape), tensor.format, digest]
            yield tensor.name, digest, tensor.n_bytes
    yield "", _sha256(json.dumps(sorted(found.items()))), 0


def _data_hash(tensor: "TensorInfo") -> str:
    return hashlib.sha256(tensor.data).hexdigest()  # type: ignore[arg-type]  # an array is a buffer


def difference(a: "GGUFFile", b: "GGUFFile", data: bool = False) -> dict[str, dict[str, list[Any]]]:
    """{"metadata": {key: [a's, b's]}, "tensors": {name: [a's, b's]}} of what differs; None where one has no such thing.

    data   compare the tensors' bytes too: those of one shape and format then stand there as ["same", "other data"]
    """
    first, second = ({key: _comparable(value) for key, value in file.metadata.items()} for file in (a, b))
    pairs = {key: [first.get(key), second.get(key)] for key in first | second}
    metadata = {key: [x, y] for key, (x, y) in pairs.items() if x != y or type(x) is not type(y)}  # true is no 1 to a reader
    tensors: dict[str, list[Any]] = {}
    for name in a.tensors | b.tensors:
        x, y = ([list(t.shape), t.format] if (t := file.tensors.get(name)) else None for file in (a, b))
        if x != y:
            tensors[name] = [x, y]
        elif data and not np.array_equal(a.tensors[name].data, b.tensors[name].data):
            tensors[name] = ["same", "other data"]
    return {"metadata": metadata, "tensors": tensors}


def _comparable(value: Any) -> Any:
    """A value as JSON can write it and == compares it: what is infinite or no number is text."""
    if isinstance(value, np.ndarray):
        return [_comparable(v) for v in value.tolist()] if value.dtype.kind == "f" else value.tolist()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
