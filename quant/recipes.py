"""Recipes: which format each tensor of a file gets, exactly as llama-quantize chooses for this architecture.

Source   llama.cpp's quantizer, compared with it in tests/live/test_encoders.py; tests/test_recipes.py has totals of the real one
"""

import re
from dataclasses import dataclass
from math import prod

from quant.config import Config, tensor_shapes
from quant.errors import UserError
from quant.formats import WRITTEN


@dataclass(frozen=True)
class Recipe:
    """A named choice of formats."""

    name: str
    default: str  # the format of a matrix that no rule names
    bits_per_weight: float  # of the full-size model's file, MTP layer left out
    description: str

    @property
    def file_type(self) -> int:
        """The number that GGUF's general.file_type has for it."""
        from gguf import LlamaFileType  # slow to import, and only who writes a file needs it

        return LlamaFileType["ALL_F32" if self.name == "F32" else f"MOSTLY_{self.name}"].value


RECIPES = {
    r.name: r
    for r in (
        Recipe("Q4_K_M", "Q4_K", 4.84, "4-bit blocks, 6-bit output and half of the down projections: the usual choice"),
        Recipe("Q6_K", "Q6_K", 6.57, "6-bit blocks: hard to tell from the original"),
        Recipe("Q8_0", "Q8_0", 8.51, "8-bit blocks: nearly lossless"),
        Recipe("F16", "F16", 16.0, "half precision; weights beyond 65,504 do not fit"),
        Recipe("BF16", "BF16", 16.0, "the checkpoint's own numbers, unchanged"),
        Recipe("F32", "F32", 32.0, "single precision, for comparisons"),
    )
}


@dataclass(frozen=True)
class Choice:
    """What a user chooses instead of the recipe's formats, with llama-quantize's meaning."""

    tensors: tuple[tuple[re.Pattern[str], str], ...] = ()  # (searched in the tensor's name, format); the first match decides
    output: str | None = None
    token_embedding: str | None = None
    pure: bool = False  # every matrix gets the recipe's default format


# What a format gives way to when a row is not whole blocks of it.
_FALLBACK = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q5_0": "F16", "Q8_0": "F16"}


def recipe(name: str) -> Recipe:
    """The recipe of that name, upper or lower case; raises UserError (usage) listing the choices."""
    found = RECIPES.get(name.upper())
    if found is None:
        raise UserError(f"unknown quantization {name!r}; choose one of {', '.join(RECIPES)}", "usage")
    return found


def tensor_formats(recipe: Recipe, config: Config, choice: Choice | None = None) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """{GGUF tensor name: (shape, format, bytes)} of the model that config describes, in the order of the file.

    Raises UserError (usage) for a pattern of choice that finds no tensor.
    """
    found = {}
    for name, shape in tensor_shapes(config).items():
        kind = choose_format(recipe, name, shape, config.n_blocks, config.n_routed_experts, config.tie_word_embeddings, choice)
        found[name] = shape, kind, prod(shape[:-1]) * WRITTEN[kind].row_bytes(shape[-1])
    for pattern, kind in choice.tensors if choice is not None else ():
        if not any(map(pattern.search, found)):
            raise UserError(f"no tensor's name matches {pattern.pattern!r}, so none becomes {kind}; names are like {name}", "usage")
    return found


def format_name(name: str) -> str:
    """The format of that name, upper or lower case; raises UserError (usage) listing the choices."""
    if name.upper() not in WRITTEN:
        raise UserError(f"unknown tensor type {name!r}; choose one of {', '.join(WRITTEN)}", "usage")
    return name.upper()


def choose_format(
    recipe: Recipe,
    tensor_name: str,
    shape: tuple[int, ...],
    n_blocks: int,
    n_experts: int,
    tied: bool = False,
    choice: Choice | None = None,
) -> str:
    """The name of the format that recipe gives one tensor.

    tensor_name, shape   GGUF's name; row-major shape
    n_blocks             all decoder blocks in the file, the MTP layer included when it is kept: Q4_K_M counts from both ends
    n_experts            routed experts of the model
    tied                 the file has no output.weight, so token_embd.weight does its work
    choice               the user's own formats; they too give way where a row is not whole blocks of them
    """
    if not _is_matrix(tensor_name, shape):
        return "F32"
    choice = choice or Choice()
    named = {"output.weight": choice.output, "token_embd.weight": choice.token_embedding}.get(tensor_name)
    matched = next((kind for pattern, kind in choice.tensors if pattern.search(tensor_name)), None)
    more_bits = not choice.pure and recipe.name == "Q4_K_M" and _wants_more_bits(tensor_name, n_blocks, n_experts, tied)
    chosen = named or matched or ("Q6_K" if more_bits else recipe.default)
    while shape[-1] % WRITTEN[chosen].block_length:
        chosen = _FALLBACK[chosen]
    return chosen


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is quantized at all: norms, biases and the router are too small to gain and too sensitive to lose."""
    significant = [n for i, n in enumerate(shape) if n > 1 or any(before > 1 for before in shape[:i])]  # without leading ones
    return len(significant) >= 2 and name.endswith("weight") and "_norm.weight" not in name and "ffn_gate_inp.weight" not in name


def _wants_more_bits(name: str, n_blocks: int, n_experts: int, tied: bool) -> bool:
    """Whether Q4_K_M spends Q6_K on a matrix: the output, and the down projections of the first, the last and every third block."""
    if name == ("token_embd.weight" if tied else "output.weight"):
        return True
    if n_experts == 8 and "attn_output.weight" in name:
        return True  # llama-quantize says Q5_K to models of eight experts; Q6_K is the next that glmrun writes
    block = re.match(r"blk\.(\d+)\.", name)
    if "ffn_down" not in name or block is None:
        return False
    i, eighth = int(block[1]), n_blocks // 8
    return i < eighth or i >= 7 * n_blocks // 8 or (i - eighth) % 3 == 2
