"""Whether a model fits into a machine and how fast it can be there, from sizes alone.

    needed memory   weights + cache of all positions + working memory
    tokens/s        <= bandwidth / bytes that one token reads: its weights once, and the cache of all positions before it

    in part         the experts that find no room are read from the disk: 1 / tokens/s = read per token / bandwidth + missing / disk

The speed is a ceiling, not a forecast: nothing that reads every weight once per token is faster, real programs are slower.
"""

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from glmrun.tensors.split import forms_to_run
from quant.config import FLASH, Config, read_per_token
from quant.formats import FORMATS
from quant.recipes import Recipe, tensor_formats

if TYPE_CHECKING:
    from glmrun.gguf.file import GGUFFile

WORKING_BYTES = 600_000_000  # interpreter, compiled kernels and a step's buffers: 340 MB measured, 370 at 131,072 positions
DEVICE_BYTES = 2 << 30  # what the system of another machine keeps for itself
# Bits of one cached value; q8_0 has a float16 scale for each 32 values.
CACHE_BITS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5}


@dataclass(frozen=True)
class Demand:
    """What one file of a model asks of a machine; bytes."""

    name: str
    config: Config
    file_bytes: int  # of tensor data; for a file that exists, of the file
    weights: int  # that stay in memory: all but the next-token-prediction layer
    per_token: int  # weights that one token reads
    cache: str  # type of the cached values
    per_position: int  # of the cache's rows
    columns: int  # of what attention reads beside each row: the same in int8, where it computes in int8
    experts: int = 0  # of the weights, those of which a token reads some
    experts_per_token: int = 0
    ahead: int = 0  # what the next-token-prediction layer needs beside all that where it runs, without its cache

    @property
    def cache_per_position(self) -> int:
        """Bytes of memory that a position takes."""
        return self.per_position + self.columns

    def needed(self, n_ctx: int) -> int:
        """Bytes of memory for a context of n_ctx positions."""
        return self.weights + n_ctx * self.cache_per_position + WORKING_BYTES

    def needed_ahead(self, n_ctx: int) -> int:
        """Bytes of memory that the prediction layer needs more, with its rows of n_ctx positions; 0 where the file has none."""
        return self.ahead and self.ahead + n_ctx * self.cache_per_position // self.config.num_hidden_layers

    def largest_context(self, available: int) -> int:
        """Positions for which `available` bytes are enough, at most what the model takes; 0 if not even the weights fit."""
        room = (available - self.needed(0)) // self.cache_per_position
        return max(0, min(room, self.config.max_position_embeddings))

    def ceiling(self, bytes_per_second: float, position: int = 0) -> float:
        """Tokens a second that no program exceeds, with `position` positions in the cache."""
        return bytes_per_second / (self.per_token + position * self.per_position)

    def missing_per_token(self, available: int) -> int | None:
        """Bytes that a token reads from the disk with an empty cache, where experts are chosen evenly: those of its experts that
        find no room beside all the rest. None if not even the rest fits.
        """
        room = available - (self.needed(0) - self.experts)
        if room < 0 or not self.experts:
            return None if room < 0 else 0
        return int(self.experts_per_token * max(0.0, 1 - room / self.experts))

    def speed_in_part(self, bytes_per_second: float, from_disk: float, available: int) -> float | None:
        """Tokens a second with an empty cache where the missing experts come from a disk of from_disk bytes a second."""
        missing = self.missing_per_token(available)
        return None if missing is None else 1 / (self.per_token / bytes_per_second + missing / from_disk)


def cache_type(formats: Collection[str], wanted: str | None = None) -> str:
    """The type of the cache beside matrices in these formats: as exact as the weights where none is quantized."""
    return wanted or ("f32" if all(FORMATS[name].block_length == 1 for name in formats) else "f16")


def kv_bytes(config: Config, cache: str) -> int:
    """Bytes of the cache for one position: in every layer a latent row and a rotary key, each in whole vectors."""
    latent, rope = _whole_vectors(config)
    return int(config.num_hidden_layers * (latent + rope) * CACHE_BITS[cache] / 8)


def column_bytes(config: Config, formats: Collection[str], cache: str) -> int:
    """Bytes of one position's columns in all layers (kernels/attention/columns.py), at most; 0 where attention is in float32."""
    if cache == "f32" or all(name == "Q8_0" or FORMATS[name].block_length == 1 for name in formats):
        return 0
    latent, rope = _whole_vectors(config)
    key, value = latent + 2 * rope + (latent + rope) // 16, latent + latent // 8
    return config.num_hidden_layers * (key + value)


def _whole_vectors(config: Config) -> tuple[int, int]:
    """Widths of latent and rotary key as they are cached."""
    return -(-config.kv_lora_rank // 64) * 64, -(-config.qk_rope_head_dim // 64) * 64


def demand_of_recipe(config: Config, recipe: Recipe, wanted_cache: str | None = None) -> Demand:
    """The demand of a file that need not exist: config's model in that quantization, without the prediction layer."""
    config = replace(config, num_nextn_predict_layers=0)
    return demand_of_tensors(recipe.name, config, tensor_formats(recipe, config), wanted_cache)


def demand_of_tensors(
    name: str, config: Config, tensors: Mapping[str, tuple[tuple[int, ...], str, int]], wanted_cache: str | None = None
) -> Demand:
    """The demand of a file that is still to be written; tensors: {GGUF name: (shape, format, bytes)}."""
    prediction = f"blk.{config.num_hidden_layers}."
    used = {tensor: form for tensor, form in tensors.items() if not tensor.startswith(prediction)}
    sizes = {tensor: n_bytes for tensor, (_, _, n_bytes) in used.items()}
    formats = {kind for shape, kind, _ in used.values() if len(shape) > 1}
    cache = cache_type(formats, wanted_cache)
    n_bytes, per_token = sum(n for _, _, n in tensors.values()), read_per_token(config, sizes)
    weights, caches = sum(sizes.values()), (kv_bytes(config, cache), column_bytes(config, formats, cache))
    experts = {tensor: size for tensor, size in sizes.items() if "_exps." in tensor}
    of_experts = sum(experts.values()), read_per_token(config, experts)
    return Demand(name, config, n_bytes, weights, per_token, cache, *caches, *of_experts)


def demand_of_file(file: "GGUFFile", config: Config, wanted_cache: str | None = None) -> Demand:
    """The demand of a file that is there; what has to be converted counts as what it becomes."""
    demand = demand_of_tensors(file.path.name, config, forms_to_run(file, config), wanted_cache)
    ahead = sum(n for _, _, n in forms_to_run(file, config, ahead=True).values()) - demand.weights
    return replace(demand, file_bytes=file.size, ahead=ahead)


def demand_of_download(name: str, n_bytes: int, recipe: Recipe | None) -> Demand:
    """The demand of a file of the full-size model of which only the size is known, and what its name says of its formats."""
    tensors = {} if recipe is None else tensor_formats(recipe, FLASH)
    formats = {kind for shape, kind, _ in tensors.values() if len(shape) > 1} or {"Q4_K"}
    cache = cache_type(formats)
    return Demand(name, FLASH, n_bytes, n_bytes, n_bytes, cache, kv_bytes(FLASH, cache), column_bytes(FLASH, formats, cache))


@dataclass(frozen=True)
class Device:
    """A well-known machine; bytes and bytes a second as its maker reports them."""

    kind: str  # cpu, mac or gpu
    name: str
    memory: int
    bandwidth: float


def devices() -> list[Device]:
    """The rows of devices.csv."""
    text = Path(__file__).with_name("devices.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return [Device(r["kind"], r["device"], int(float(r["memory_gb"]) * 2**30), float(r["bandwidth_gb_s"]) * 1e9) for r in rows]


def fits_device(demand: Demand, device: Device, n_ctx: int) -> bool:
    """Whether a machine with nothing else to do has the memory, without the columns: most run it with another program."""
    return demand.needed(n_ctx) - n_ctx * demand.columns <= device.memory - DEVICE_BYTES
