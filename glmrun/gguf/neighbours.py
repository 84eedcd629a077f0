"""Models beside GLM-4.7-Flash, as their files name them: what they are, and what runs them."""

from glmrun.gguf.file import GGUFFile
from quant.config import FLASH
from quant.errors import brief

ARCHITECTURES = ("deepseek2", "glm4moelite")  # what GGUF files call this family: most of them, and those in Ollama's library
_NEIGHBOURS = {
    "glm5next": "GLM-5.3-Flash, which has linear attention and other experts",
    "glm-dsa": "GLM-5, whose attention has an indexer",
    "deepseek32": "DeepSeek-V3.2, whose attention has an indexer",
    "glm4moe": "GLM-4.5, 4.6 or 4.7, whose attention is another one",
    "glm4": "GLM-4 (9B or 32B), a model without experts",
    "chatglm": "ChatGLM, a model without experts",
    "deepseek": "DeepSeek-MoE, whose attention is another one",
    "mistral4": "Mistral 4",
}
_TELLING = ("expert_count", "attention.q_lora_rank", "expert_group_count", "rope.scaling.factor", "rope.scaling.type")
# What llama.cpp computes with in this family, where a file says so, and the values that change nothing.
_NEUTRAL = {
    "rope.scale_linear": (0, 1),
    "rope.scaling.attn_factor": (1,),
    "attention.temperature_scale": (0,),
    "attention.causal": (True,),
}
# What a file of ours holds whatever it calls itself; prunings have fewer experts and layers.
_SHAPES = {
    "embedding_length": FLASH.hidden_size,
    "attention.q_lora_rank": FLASH.q_lora_rank,
    "attention.kv_lora_rank": FLASH.kv_lora_rank,
    "attention.head_count": FLASH.num_attention_heads,
    "rope.dimension_count": FLASH.qk_rope_head_dim,
    "expert_feed_forward_length": FLASH.moe_intermediate_size,
}


def _is(found: object, value: int) -> bool:
    return isinstance(found, int) and found == value


def _relative(file: GGUFFile, architecture: str) -> str | None:
    """What a file of the family lacks or has that GLM-4.7-Flash does not, and who is like that; None if there is nothing."""
    said = {key: file.metadata.get(f"{architecture}.{key}") for key in _TELLING}
    experts, queries, groups, factor, scaling = said.values()
    biases, routers = (any(part in name for name in file.tensors) for part in (".exp_probs_b", ".ffn_gate_inp"))
    if experts is None or _is(experts, 0):
        return "a relative of DeepSeek-V2 without experts"
    if queries is None or _is(queries, 0):
        return "DeepSeek-V2-Lite or a relative, whose queries are not compressed (no attention.q_lora_rank)"
    if isinstance(groups, int) and groups > 1:
        return f"DeepSeek-V3, R1 or a relative, whose experts are chosen within groups ({groups})"
    if routers and not biases:
        return "DeepSeek-V2 or a relative, whose router has no bias (no exp_probs_b)"
    if isinstance(factor, int | float) and factor not in (0, 1) and scaling != "none":
        return f"Kimi, DeepSeek or a relative, whose positions are stretched (rope.scaling.factor {factor:g})"
    for key, neutral in _NEUTRAL.items():
        value = file.metadata.get(f"{architecture}.{key}")
        if isinstance(value, int | float) and value not in neutral:
            return f"a relative that computes otherwise ({key} {value})"
    return None


def another_model(file: GGUFFile) -> str | None:
    """What a file holds that is not of GLM-4.7-Flash's kind, as a sentence for the user; None if it may be."""
    said = file.metadata.get("general.architecture")
    found = said if isinstance(said, str) else ""
    ours = bool(found) and (
        found in ARCHITECTURES or all(_is(file.metadata.get(f"{found}.{key}"), value) for key, value in _SHAPES.items())
    )
    what = None if ours else _NEIGHBOURS.get(found)
    if any(".indexer." in name for name in file.tensors):
        ours, what = False, "GLM-5 or another model whose attention has an indexer"
    elif ours and (relative := _relative(file, found)):
        ours, what = False, relative
    if ours:
        return None
    name = f"architecture {brief(said)}" + (f" is {what}" if what else "")
    return f"{name}; glmrun runs GLM-4.7-Flash, whose files say {' or '.join(ARCHITECTURES)}; llama.cpp runs others"
