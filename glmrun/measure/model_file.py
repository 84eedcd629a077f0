"""What a GGUF file holds, as plain data: for `glmrun inspect`."""

import hashlib
from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

from glmrun.measure.plan import cache_type, kv_bytes
from quant.config import Config, read_per_token

if TYPE_CHECKING:
    from glmrun.gguf_file import GGUFFile


def model_facts(file: "GGUFFile", config: Config) -> dict[str, Any]:
    """General facts of a model file; sizes in bytes, counts of weights.

    parameters_active counts what one token is multiplied with: the chosen experts only, one row of the embedding, and not the
    next-token-prediction layer. kv_bytes_per_position is glmrun's own cache.
    """
    tensors = file.tensors.values()
    parameters = sum(prod(t.shape) for t in tensors)
    tensor_bytes = sum(t.n_bytes for t in tensors)
    by_format: Counter[str] = Counter()
    for tensor in tensors:
        by_format[tensor.format] += prod(tensor.shape)
    template = file.metadata.get("tokenizer.chat_template")
    return {
        "file": str(file.path),
        "name": file.metadata.get("general.name"),
        "architecture": file.metadata.get("general.architecture"),
        "gguf_version": file.version,
        "file_bytes": file.size,
        "tensor_bytes": tensor_bytes,
        "tensors": len(file.tensors),
        "parameters": parameters,
        "parameters_active": read_per_token(config, {t.name: prod(t.shape) for t in tensors}),
        "bits_per_weight": round(8 * tensor_bytes / parameters, 3),
        "formats": dict(by_format.most_common()),
        "context_length": config.max_position_embeddings,
        "kv_bytes_per_position": kv_bytes(config, cache_type({t.format for t in tensors if len(t.shape) > 1})),
        "layers": config.num_hidden_layers,
        "mtp_layers": config.num_nextn_predict_layers,
        "experts": config.n_routed_experts,
        "experts_used": config.num_experts_per_tok,
        "experts_shared": config.n_shared_experts,
        "tokenizer": "/".join(str(file.metadata.get(f"tokenizer.ggml.{key}", "?")) for key in ("model", "pre")),
        "vocabulary": config.vocab_size,
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) else None,
        "config": config.asdict(),
    }


def tensor_rows(file: "GGUFFile") -> list[dict[str, Any]]:
    """One row per tensor, in the order of the file; shapes row-major."""
    return [
        {"name": t.name, "shape": list(t.shape), "format": t.format, "bytes": t.n_bytes, "offset": t.offset}
        for t in file.tensors.values()
    ]


def plain_metadata(file: "GGUFFile", longest: int | None = None) -> dict[str, Any]:
    """The metadata as JSON can write it; lists beyond `longest` become {"length": n, "first": [...]}."""
    plain = {}
    for key, value in file.metadata.items():
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, list) and longest is not None and len(value) > longest:
            value = {"length": len(value), "first": value[:longest]}
        plain[key] = value
    return plain
