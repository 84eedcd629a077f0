"""nano as a Hugging Face folder: BF16 shards with the hub's tensor names, configuration, tokenizer, template."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import Glm4MoeLiteConfig

from nano import vocabulary
from nano.architecture import Nano

SHARDS = 4


def tensors(model: Nano) -> dict[str, torch.Tensor]:
    """{the hub's name: tensor}: experts one by one, the next-token layer as one more layer, all BF16 but the selection bias.

    Its embedding and head are the trunk's and left out, as a checkpoint may: a tenth of the wheel.
    """
    config = model.trunk.config
    n, state = config.num_hidden_layers, dict(model.trunk.state_dict())
    extra = f"model.layers.{n}."
    for name, tensor in model.next_token.state_dict().items():
        state[extra + name.removeprefix("layer.")] = tensor
    state[extra + "shared_head.norm.weight"] = state.pop(extra + "norm.weight")
    named: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for e, both in enumerate(tensor):
                gate, up = both.chunk(2)
                named |= {f"{stem}.{e}.gate_proj.weight": gate, f"{stem}.{e}.up_proj.weight": up}
        elif last == "down_proj":
            named |= {f"{stem}.{e}.down_proj.weight": down for e, down in enumerate(tensor)}
        else:
            named[name] = tensor
    return {
        name: tensor.detach()
        .to(torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16)
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in sorted(named.items(), key=lambda item: _place(item[0]))
    }


def _place(name: str) -> tuple:
    parts = [int(part) if part.isdigit() else part for part in name.split(".")]
    layer = next((part for part in parts if isinstance(part, int)), -1 if "embed" in name else 1 << 30)
    return (layer, *map(str, parts[:4]), *(f"{part:06d}" if isinstance(part, int) else part for part in parts[4:]))


def read(folder: Path) -> dict[str, torch.Tensor]:
    """{the hub's name: tensor} of a folder that write() made."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def give(model: Nano, named: dict[str, torch.Tensor]) -> None:
    """Give the model weights by the hub's names."""
    extra = f"model.layers.{model.trunk.config.num_hidden_layers}."
    for module, prefix in ((model.trunk, ""), (model.next_token, extra)):
        state = {}
        for name in module.state_dict():
            full = prefix + name.removeprefix("layer.")
            full = full.replace(extra + "norm.weight", extra + "shared_head.norm.weight")
            stem, _, last = full.rpartition(".")
            experts = range(model.trunk.config.n_routed_experts)
            if last == "gate_up_proj":
                both = [[named[f"{stem}.{e}.{half}_proj.weight"] for half in ("gate", "up")] for e in experts]
                state[name] = torch.stack([torch.cat(halves) for halves in both])
            elif last == "down_proj":
                state[name] = torch.stack([named[f"{stem}.{e}.down_proj.weight"] for e in experts])
            else:
                state[name] = named[full]
        module.load_state_dict(state)


def round_weights(model: Nano) -> None:
    """Give the model the weights its checkpoint holds, so that what is measured is what is shipped."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.bfloat16().float())


def write(model: Nano, tokenizer: Tokenizer, template: Path, folder: Path) -> None:
    """Write the folder completely under another name, then move its files into place."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    named = tensors(model)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in named.items()}
    total, filled = sum(sizes.values()), 0
    groups: list[dict[str, torch.Tensor]] = [{} for _ in range(SHARDS)]
    for name, tensor in named.items():
        groups[min(SHARDS - 1, filled * SHARDS // total)][name] = tensor
        filled += sizes[name]
    where: dict[str, str] = {}
    for i, group in enumerate(groups):
        shard = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        save_file(group, partial / shard, metadata={"format": "pt"})
        (partial / shard).chmod(0o644)
        where |= dict.fromkeys(group, shard)
    index = {
        "metadata": {"total_parameters": sum(t.numel() for t in named.values()), "total_size": total},
        "weight_map": dict(sorted(where.items())),
    }
    _json(partial / "model.safetensors.index.json", index)
    _json(partial / "config.json", config_values(model.trunk.config))
    end = model.trunk.config.eos_token_id
    sampling = {"do_sample": True, "eos_token_id": end, "pad_token_id": end[0], "temperature": 1.0, "top_p": 0.95}
    _json(partial / "generation_config.json", {"_from_model_config": True, **sampling})
    vocabulary.save(tokenizer, partial)
    shutil.copyfile(template, partial / "chat_template.jinja")
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(partial.iterdir()):
        path.replace(folder / path.name)
    partial.rmdir()


# What every transformers configuration carries, whatever the model.
_GENERIC = {
    "chunk_size_feed_forward", "id2label", "label2id", "is_encoder_decoder", "output_attentions", "output_hidden_states",
    "output_router_logits", "pretraining_tp", "problem_type", "qk_head_dim", "return_dict", "bos_token_id", "transformers_version",
}  # fmt: skip


def config_values(config: Glm4MoeLiteConfig) -> dict:
    """config.json's content: the model's own keys."""
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_") and k not in _GENERIC}
    return dict(sorted((values | {"dtype": "bfloat16", "num_nextn_predict_layers": 1}).items()))


def _json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
