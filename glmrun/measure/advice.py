"""Which quantization of a model a machine has the memory for, and what it is like where a model fits only in part."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from glmrun.measure.bandwidth import disk_bandwidth
from glmrun.measure.plan import Demand, demand_of_recipe
from quant.config import Config
from quant.recipes import RECIPES

SHOWN = ("Q4_K_M", "Q6_K", "Q8_0", "BF16")  # F16 is as large as BF16, F32 is for comparisons
ASSUMED_DISK = 1e9  # bytes a second, where no file can be measured


@dataclass(frozen=True)
class Machine:
    """What a model would run on: bytes that are free, bytes a second of memory and disk; room: bytes for a new file."""

    available: int
    memory_speed: float
    disk_speed: float
    disk_measured: bool
    room: float = math.inf


@dataclass(frozen=True)
class InPart:
    """A model of which not all experts stay in memory."""

    missing_bytes_per_token: int
    disk_bytes_per_second: float
    disk_measured: bool
    tokens_per_second: float

    def __str__(self) -> str:
        missing, disk = self.missing_bytes_per_token / 1e9, self.disk_bytes_per_second / 1e9
        measured = "" if self.disk_measured else ", a speed that is not measured"
        return (
            f"fits in part: at most {self.tokens_per_second:.1f} tokens a second, {missing:.2f} GB of each token's experts"
            f" read from the disk at {disk:.1f} GB/s{measured}"
        )


def quantizations(config: Config, cache: str | None = None) -> list[Demand]:
    """What the usual quantizations of a model ask for, smallest first."""
    return [demand_of_recipe(config, RECIPES[name], cache) for name in SHOWN]


def machine_with(available: int, memory_speed: float, files: Iterable[Path], room: float = math.inf) -> Machine:
    """This machine; its disk measured with the first of the files that is large enough for that."""
    measured = next((speed for path in files if path.is_file() and (speed := disk_bandwidth(path))), None)
    return Machine(available, memory_speed, measured or ASSUMED_DISK, measured is not None, room)


def in_part(demand: Demand, machine: Machine) -> InPart | None:
    """How it runs there; None if all its weights find room, or not even those that each token reads."""
    missing = demand.missing_per_token(machine.available)
    speed = demand.speed_in_part(machine.memory_speed, machine.disk_speed, machine.available)
    return InPart(missing, machine.disk_speed, machine.disk_measured, speed) if missing and speed else None


def advice(demand: Demand, others: Sequence[Demand], n_ctx: int, machine: Machine, stored: bool = False) -> str | None:
    """What runs there instead of a model that does not fit: the most exact of the smaller ones that fits whole with n_ctx
    positions, else with fewer, else the fastest in part; None where the model itself is the best that there is.

    stored   the model's own file needs no room any more
    """
    smaller = [d for d in others if d.weights < demand.weights and d.file_bytes <= machine.room]
    itself = stored or demand.file_bytes <= machine.room
    if not (smaller or itself):
        return "No quantization of it fits on the disk."
    if whole := [d for d in smaller if d.needed(n_ctx) <= machine.available]:
        best = max(whole, key=lambda d: d.weights)
        return f"{best.name} fits: {best.needed(n_ctx) / 1e9:.1f} GB with a context of {n_ctx:,} tokens."
    if itself and demand.largest_context(machine.available):
        return None
    if shorter := [d for d in smaller if d.largest_context(machine.available)]:
        best = max(shorter, key=lambda d: d.weights)
        return f"{best.name} fits with a context of {best.largest_context(machine.available):,} tokens."
    parts = [(part.tokens_per_second, d.name, part) for d in smaller if (part := in_part(d, machine))]
    if parts:
        _, name, part = max(parts, key=lambda found: found[0])
        return f"{name} {part}."
    return None if itself and in_part(demand, machine) else "No quantization of it fits, not even in part."
