"""`glmrun plan`: does it fit, and how fast can it be."""

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from glmrun.cli import loading, options
from glmrun.terminal.console import note, tell
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import bytes_text, columns
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.machine import Memory
    from glmrun.measure.bandwidth import Bandwidth
    from glmrun.measure.plan import Demand, Device


Engine = Literal["vllm", "sglang", "llama-server"]  # a program on other machines that serves the model


def plan(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL|QUANT",
            autocompletion=loading.complete_model,
            help="A GGUF file, or a quantization of GLM-4.7-Flash that need not exist yet. Left out: Q4_K_M.",
            show_default=False,
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="WORD...", help="With --devices: only those that hold all of these words.", show_default=False),
    ] = None,
    named: loading.Named = None,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    devices: Annotated[bool, typer.Option("--devices", help="Add a table of well-known CPUs, Macs and GPUs.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the memory's speed again, about a second.")] = False,
    engine: Annotated[
        Engine | None,
        typer.Option("--engine", help="Print the command that starts the model in another program, with the makers' flags."),
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=0, max=1024, metavar="N", help="GPUs that --engine may use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report whether a model fits into this machine and how fast it can be here, before anything is downloaded.

    Exit code 0: it fits, 1: it does not, or only in part, 2: wrong usage. The speed is a ceiling: the memory's measured speed
    divided by the bytes that one token reads. Nothing that reads each weight once per token is faster; real programs are slower.
    A model that fits in part runs, too: experts that find no room are read from the disk, whose speed is measured with the file,
    or with another model that is here. Of a model that does not fit the quantization is named that does.

    \b
    Examples:
      glmrun plan
      glmrun plan Q6_K -c 64K
      glmrun plan model.gguf -c 200k --json
      glmrun plan --devices ryzen
      glmrun plan --engine vllm --gpus 4
      glmrun plan Q8_0 --engine llama-server --gpus 2 -c 64K
    """
    what, words = _model_and_words(what, named, words or [], devices)
    if engine is not None or gpus is not None:
        for name in ("threads", "kv_type", "devices", "measure"):
            if options.typed(context, name):
                raise typer.BadParameter(f"--engine: its command has no place for --{name.replace('_', '-')}; leave it out")
        _print_command(engine, what, gpus, ctx, as_json)
        return
    from glmrun.machine import memory
    from glmrun.measure.advice import advice, in_part, machine_with, quantizations
    from glmrun.measure.bandwidth import memory_bandwidth

    demand, name, exists = _demand(what, kv_type)
    n_ctx = options.context_of(ctx, demand.config.max_position_embeddings)
    others = quantizations(demand.config, kv_type)
    listed = _listed(words) if devices else []
    speed = memory_bandwidth(threads, measure)
    found = memory()
    folder, free = _disk()
    fits_memory, fits_disk = demand.needed(n_ctx) <= found.available, exists or demand.file_bytes <= free
    part = instead = None
    if not (fits_memory and fits_disk):
        here = machine_with(found.available, speed.bytes_per_second, _measurable(what if exists else None), free)
        part = in_part(demand, here) if fits_disk else None
        instead = advice(demand, others, n_ctx, here, exists)
    if as_json:
        disk = {"needed": 0 if exists else demand.file_bytes, "free": free, "folder": str(folder)}
        fits = {"disk": disk, "fits": fits_memory and fits_disk, "fits_in_part": part and asdict(part), "instead": instead}
        print(json.dumps(_as_json(name, demand, others, n_ctx, speed, found, listed) | fits, indent=2))
    else:
        _print_plan(name, demand, n_ctx, speed, found, None if exists else (folder, free))
        tell(_verdict(demand, n_ctx, found, fits_memory, fits_disk))
        for line in [*([f"It {part}."] if part else []), *([instead] if instead else [])]:
            tell(line)
        print("\n" + _quantizations(others, n_ctx, speed, found))
        if listed:
            print("\n" + _devices(others, n_ctx, listed))
    if not (fits_memory and fits_disk):
        raise typer.Exit(1)


def _model_and_words(what: str | None, named: str | None, words: list[str], with_devices: bool) -> tuple[str | None, list[str]]:
    """(MODEL or QUANT, the words for --devices): a first argument that can be neither is a word. Raises BadParameter."""
    from quant.recipes import RECIPES

    if words and not with_devices:
        raise typer.BadParameter(f"plan takes one MODEL or quantization, not also {words[0]}; words choose among --devices")
    if with_devices and what is not None and (named is not None or not (what.upper() in RECIPES or loading.means_a_model(what))):
        return named, [what, *words]
    return loading.one_model(what, named), words


def _print_command(engine: Engine | None, what: str | None, gpus: int | None, ctx: int | None, as_json: bool) -> None:
    """Print the command for a shell; what it needs, and how to use the server, goes to standard error."""
    from glmrun.measure.engines import ADDRESS, SERVED_NAME, command, needs
    from quant.config import FLASH

    if engine is None:
        raise typer.BadParameter("--gpus: say for which program: --engine vllm, sglang or llama-server")
    options.context_of(ctx, FLASH.max_position_embeddings)
    words = command(engine, _source(engine, what), gpus, ctx)
    if as_json:
        print(json.dumps({"engine": engine, "command": words, "url": ADDRESS, "served_name": SERVED_NAME}, indent=2))
        return
    lines = [shlex.quote(words[0])]
    for word in words[1:]:
        lines += [f"  {shlex.quote(word)}"] if word.startswith("-") else []
        lines[-1] += "" if word.startswith("-") else f" {shlex.quote(word)}"
    print(" \\\n".join(lines))
    note(needs(engine, gpus))
    note(f"then: glmrun chat --url {ADDRESS} {SERVED_NAME}")


def _source(engine: Engine, what: str | None) -> str:
    """What the program is to load: a checkpoint's folder or name for vLLM and SGLang, a file or a quantization for llama-server."""
    from quant.recipes import RECIPES

    if engine == "llama-server":
        recipe = RECIPES.get((what or "Q4_K_M").upper())
        return recipe.name if recipe is not None else str(loading.resolve_model(what))
    if what is None or Path(what).is_dir() or (what.count("/") == 1 and not Path(what).exists()):
        return what or "zai-org/GLM-4.7-Flash"
    raise typer.BadParameter(f"{what}: {engine} runs the checkpoint: its folder, or a name like zai-org/GLM-4.7-Flash")


def _demand(what: str | None, kv_type: str | None) -> "tuple[Demand, str, bool]":
    """(demand, what to call it, does the file exist)."""
    from glmrun.measure.plan import demand_of_file, demand_of_recipe
    from quant.config import FLASH
    from quant.recipes import RECIPES

    recipe = RECIPES.get((what or "Q4_K_M").upper())
    if recipe is not None:
        return demand_of_recipe(FLASH, recipe, kv_type), f"GLM-4.7-Flash as {recipe.name}", False

    from glmrun.gguf.architecture import config_from_gguf
    from glmrun.gguf.open import open_gguf

    if what and re.fullmatch(r"(I?Q\d|T?Q|MX)[\w]*|[FB]\d+", what, re.IGNORECASE) and not Path(what).exists():
        raise UserError(f"{what}: glmrun writes {', '.join(RECIPES)}; name one of these, or a GGUF file", "usage")
    file = open_gguf(loading.resolve_model(what))
    demand = demand_of_file(file, config_from_gguf(file), kv_type)
    return demand, demand.name, True


def _measurable(model: str | None) -> Iterator[Path]:
    """Files whose reading tells the disk's speed: the model's own if it is there, else the models of this machine."""
    from glmrun.store.local import local_models

    if model is not None:
        yield loading.resolve_model(model)
    for found in sorted(local_models(), key=lambda m: -m.n_bytes):
        yield found.path


def _disk() -> tuple[Path, int]:
    """Where a model would be put, the hub's cache, and the bytes that are free there."""
    from glmrun.machine import free_disk
    from glmrun.store.hub import cache_folder

    folder = cache_folder()
    return folder, free_disk(folder)


def _print_plan(
    name: str, demand: "Demand", n_ctx: int, speed: "Bandwidth", found: "Memory", disk: tuple[Path, int] | None
) -> None:
    from glmrun.measure.plan import WORKING_BYTES

    why = "the limit of this control group" if found.limited else "this machine's memory"
    per_token = f"{demand.per_token / 1e9:.2f}" if demand.per_token >= 10_000_000 else f"{demand.per_token / 1e9:.4f}"
    positions = f"{n_ctx:,} positions of {demand.per_position:,} bytes, {demand.cache}"
    if demand.columns:
        positions += f", and {demand.columns:,} in int8"
    rows = [
        ("weights", bytes_text(demand.weights), ""),
        ("cache", bytes_text(n_ctx * demand.cache_per_position), positions),
        ("working memory", bytes_text(WORKING_BYTES), "interpreter, kernels, buffers"),
        ("needed", bytes_text(demand.needed(n_ctx)), ""),
    ]
    if more := demand.needed_ahead(n_ctx):
        rows.append(("drafts", bytes_text(more), "more: the prediction layer, where there is memory for it"))
    rows.append(("available", bytes_text(found.available), f"of {bytes_text(found.total)}, {why}"))
    if disk is not None:
        folder, free = disk
        rows.append(("disk", bytes_text(demand.file_bytes), f"for the file; {bytes_text(free)} are free in {folder}"))
    measured = f"{speed.bytes_per_second / 1e9:.1f} GB/s read by {speed.n_threads} threads ({speed.measured[:10]})"
    rows.append(("speed", f"{demand.ceiling(speed.bytes_per_second):.1f}", f"tokens/s at most: {measured}, {per_token} GB a token"))
    rows.append(("", f"{demand.ceiling(speed.bytes_per_second, n_ctx):.1f}", "tokens/s at most with the context full"))
    if speed.busy:
        rows.append(("", "", "measured while other programs were computing: too low, and not remembered"))
    print(f"{one_line(name)}\n")
    tell(columns([("", "", ""), *rows], right=[1]).lstrip("\n"))


def _verdict(demand: "Demand", n_ctx: int, found: "Memory", fits_memory: bool, fits_disk: bool) -> str:
    if fits_memory and fits_disk:
        return "\nIt fits."
    missing = bytes_text(demand.needed(n_ctx) - found.available)
    if not fits_disk:
        more = "" if fits_memory else f", and {missing} of memory are missing"
        return f"\nIt does not fit: the disk is too full for the file{more}."
    largest = demand.largest_context(found.available)
    if largest:
        return f"\nIt does not fit: {missing} are missing; a context of {largest:,} tokens fits (-c {largest})."
    if demand.needed(n_ctx) <= found.total:
        return f"\nIt does not fit now: {missing} are missing. Close other programs, or choose a smaller quantization."
    return f"\nIt does not fit: {missing} are missing. Choose a smaller quantization or a machine with more memory."


def _quantizations(others: "list[Demand]", n_ctx: int, speed: "Bandwidth", found: "Memory") -> str:
    rows = [["quant", "file", "needed", "largest context", "tokens/s at most", "context full"]]
    for d in others:
        largest = d.largest_context(found.available)
        ceilings = [f"{d.ceiling(speed.bytes_per_second, at):.1f}" for at in (0, n_ctx)]
        fits = f"{largest:,}" if largest else "does not fit"
        rows.append([d.name, bytes_text(d.file_bytes), bytes_text(d.needed(n_ctx)), fits, *ceilings])
    return columns(rows, right=[1, 2, 3, 4, 5])


def _listed(words: list[str]) -> "list[Device]":
    """The machines that hold all words, each once: a card's series may be left out. Raises UserError if there is none."""
    from glmrun.measure.plan import devices

    found: dict[str, Device] = {}
    for device in devices():
        if all(word.casefold() in device.name.casefold() for word in words):
            found.setdefault(re.sub(r"\b(GeForce|Radeon) ", "", device.name), device)
    if not found:
        raise UserError(f"no machine in the table is called {' '.join(words)}; --devices alone shows all", "usage")
    return list(found.values())


def _devices(others: "list[Demand]", n_ctx: int, listed: "list[Device]") -> str:
    from glmrun.measure.plan import fits_device

    rows = [["machine", "memory GB", "GB/s", *(d.name for d in others)]]
    for device in listed:
        cells = [f"{d.ceiling(device.bandwidth):.0f}" if fits_device(d, device, n_ctx) else "-" for d in others]
        rows.append([device.name, f"{device.memory / 2**30:.0f}", f"{device.bandwidth / 1e9:.0f}", *cells])
    table = columns(rows, right=range(1, len(rows[0])))
    return (
        f"{table}\n\nTokens a second at most, with an empty context; - where {n_ctx:,} positions do not fit. From the makers' peak"
        " bandwidths,\nwhich no program reaches. glmrun computes on CPUs (a Mac's too); GPUs are here to compare other programs."
    )


def _as_json(
    name: str, demand: "Demand", others: "list[Demand]", n_ctx: int, speed: "Bandwidth", found: "Memory", listed: "list[Device]"
) -> dict[str, Any]:
    from glmrun.measure.plan import WORKING_BYTES, fits_device

    def described(d: "Demand") -> dict[str, Any]:
        return {
            "name": d.name,
            "file_bytes": d.file_bytes,
            "weight_bytes": d.weights,
            "cache_type": d.cache,
            "cache_bytes": n_ctx * d.cache_per_position,
            "cache_bytes_per_position": d.cache_per_position,
            "working_bytes": WORKING_BYTES,
            "needed_bytes": d.needed(n_ctx),
            "bytes_per_token": d.per_token,
            "largest_context": d.largest_context(found.available),
            "ceiling_tokens_per_second": round(d.ceiling(speed.bytes_per_second), 2),
            "ceiling_tokens_per_second_full": round(d.ceiling(speed.bytes_per_second, n_ctx), 2),
        }

    plan: dict[str, Any] = {
        "model": name, "context": n_ctx, **described(demand), "memory": asdict(found), "bandwidth": asdict(speed),
        "quantizations": [described(d) for d in others],
    }  # fmt: skip
    if listed:
        plan["devices"] = [
            {
                **asdict(device),
                "ceilings": {d.name: round(d.ceiling(device.bandwidth), 2) for d in others if fits_device(d, device, n_ctx)},
            }
            for device in listed
        ]
    return plan
