"""What Ollama's clients ask about models: there is one, whatever they call it."""

import hashlib
from collections import Counter
from math import prod
from typing import Any

from glmrun.engine.model import Model
from glmrun.server.ollama import timestamp
from glmrun.server.service import Service

# Whose words these are. Editors read the number, segment by segment, and hide servers that are older than they want.
VERSION = "0.13.0"


def version(_: Service, __: dict[str, Any]) -> dict[str, Any]:
    """GET /api/version."""
    return {"version": VERSION}


def tags(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """GET /api/tags: the models that are there."""
    return {"models": [_listed(service)]}


def running(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """GET /api/ps: the models that are in memory; this one stays as long as the server."""
    never = "2318-09-21T00:00:00Z"
    return {"models": [_listed(service) | {"expires_at": never, "size_vram": 0, "context_length": service.opened().n_ctx}]}


def show(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """POST /api/show, whatever model was named. Editors look for a name, the context's length and tools, in the template, too."""
    model = service.opened()
    architecture = model.file.metadata["general.architecture"]
    return {
        "modelfile": "", "parameters": "", "template": model.chat_format.source, "license": "", "details": _details(model),
        "model_info": {
            "general.architecture": architecture, "general.basename": service.name,
            "general.parameter_count": _weights(model).total(),
            f"{architecture}.context_length": model.n_ctx,
        },
        "capabilities": ["completion", "tools", "thinking"], "modified_at": timestamp(model.path.stat().st_mtime),
    }  # fmt: skip


def _listed(service: Service) -> dict[str, Any]:
    model, name = service.opened(), service.name
    size, modified = model.file.size, model.path.stat().st_mtime
    digest = hashlib.sha256(f"{name} {size} {modified}".encode()).hexdigest()
    return {
        "name": name, "model": name, "modified_at": timestamp(modified), "size": size, "digest": digest, "details": _details(model),
    }  # fmt: skip


def _details(model: Model) -> dict[str, Any]:
    weights, architecture = _weights(model), model.file.metadata["general.architecture"]
    n = weights.total()
    return {
        "parent_model": "", "format": "gguf", "family": architecture, "families": [architecture],
        "parameter_size": f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.1f}M",
        "quantization_level": weights.most_common(1)[0][0],
    }  # fmt: skip


def _weights(model: Model) -> Counter[str]:
    """How many weights the file has of each block format."""
    found: Counter[str] = Counter()
    for tensor in model.file.tensors.values():
        found[tensor.format] += prod(tensor.shape)
    return found
