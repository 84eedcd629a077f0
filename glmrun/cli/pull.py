"""`glmrun pull`: a model from a hub, into the cache that other programs share."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from glmrun.cli import options
from glmrun.cli.convert import convert
from glmrun.terminal.console import note
from glmrun.terminal.tables import bytes_text
from quant.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from glmrun.store.hub import Reference, RemoteFile
    from quant.config import Config
    from quant.recipes import Recipe


def pull(
    model: Annotated[str, typer.Argument(metavar="USER/MODEL[:QUANT]", help="A repository of GGUF files, or the checkpoint.")],
    quantization: Annotated[
        str | None,
        typer.Option("-q", "--quant", metavar="NAME", help="Which of the files, or what a checkpoint becomes. Left out: Q4_K_M."),
    ] = None,
    ctx: options.Ctx = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask, also where the model does not fit into memory.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be fetched and whether it fits.")] = False,
    threads: options.Threads = None,
) -> None:
    """Download a model from a hub; a checkpoint is converted to one GGUF file.

    Files go to the standard cache of Hugging Face's tools (HF_HOME, HF_HUB_CACHE), which other programs use too; what is there
    is not fetched again, and an interrupted download continues where it stopped. HF_TOKEN opens what is gated or private. The
    file's place is printed on standard output; from then on, any part of its name means it: glmrun chat flash.

    \b
    Examples:
      glmrun pull ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M
      glmrun pull hf.co/ggml-org/GLM-4.7-Flash-GGUF -q Q8_0
      glmrun pull zai-org/GLM-4.7-Flash --quant Q6_K
    """
    from dataclasses import replace

    from glmrun.store import hub

    reference = hub.Reference.parse(model)
    if quantization is not None and (reference.quantization or quantization).upper() != quantization.upper():
        raise UserError(f"two quantizations are asked for, {reference.quantization} and {quantization}; leave one out", "usage")
    reference = replace(reference, quantization=quantization or reference.quantization)
    files = hub.choose_files(reference, hub.list_files(reference))
    if hub.is_checkpoint(files) and (path := _converted(reference)).exists():
        note("converted already")
        print(path)
        return
    fits = _show_plan(reference, files, ctx)
    if dry_run:
        return
    if not fits and not yes:
        _ask("It does not fit into this machine's memory. Fetch it all the same?")
    print((_convert if hub.is_checkpoint(files) else _fetch)(reference, files, threads))


def _show_plan(reference: "Reference", files: "list[RemoteFile]", ctx: int | None) -> bool:
    """Report what is fetched and whether the model fits into memory; raises UserError if the disk has no room."""
    from glmrun.machine import memory
    from glmrun.measure.plan import demand_of_download, demand_of_recipe
    from glmrun.store import hub
    from quant.publish import bytes_there
    from quant.recipes import RECIPES

    n_bytes, missing = sum(file.n_bytes for file in files), hub.bytes_missing(reference, files)
    if hub.is_checkpoint(files):
        demand = demand_of_recipe(_config(reference, files), _recipe(reference))
        path = _converted(reference)
        hub.check_disk(reference, files, path.parent, max(0, demand.file_bytes - bytes_there(path)))
    else:
        demand = demand_of_download(files[0].name, n_bytes, RECIPES.get(hub.quantization_of(files[0].name) or ""))
        hub.check_disk(reference, files)
    n_ctx, available = options.context_of(ctx, demand.config.max_position_embeddings), memory().available
    fits = demand.needed(n_ctx) <= available
    what = f"{len(files)} files, " if len(files) > 1 else f"{files[0].name}, "
    left = "" if missing == n_bytes else f", {bytes_text(missing)} of them still to fetch"
    note(f"{reference.repo}: {what}{bytes_text(n_bytes)}{left}")
    verdict = "fits" if fits else "does not fit"
    if not fits and (largest := demand.largest_context(available)):
        verdict += f", a context of {largest:,} does"
    needed = bytes_text(demand.needed(n_ctx))
    note(f"{needed} of memory for a context of {n_ctx:,} tokens, {bytes_text(available)} available: {verdict}")
    return fits


def _config(reference: "Reference", files: "list[RemoteFile]") -> "Config":
    """The shape that a checkpoint says it has: its config.json is fetched for it."""
    from glmrun.store import hub
    from quant.checkpoint import config_from_json
    from quant.strict_json import read_json_object

    return config_from_json(read_json_object(hub.download(reference, [f for f in files if f.name == "config.json"])[0]))


def _fetch(reference: "Reference", files: "list[RemoteFile]", threads: int | None) -> "Path":
    """Download the files; the first one's place."""
    from glmrun.store import hub
    from glmrun.terminal.progress import BytesProgress

    with BytesProgress() as bar:
        return hub.download(reference, files, bar.update)[0]


def _recipe(reference: "Reference") -> "Recipe":
    """What a checkpoint becomes."""
    from glmrun.store.hub import DEFAULT_QUANTIZATION
    from quant.recipes import recipe

    return recipe(reference.quantization or DEFAULT_QUANTIZATION)


def _converted(reference: "Reference") -> "Path":
    """Where the file is that a checkpoint becomes."""
    from glmrun.store.local import models_folder

    return models_folder() / f"{reference.repo.rpartition('/')[2]}-{_recipe(reference).name}.gguf"


def _convert(reference: "Reference", files: "list[RemoteFile]", threads: int | None) -> "Path":
    """Download a checkpoint and convert it into the models folder; the new file's place."""
    path = _converted(reference)
    folder = _fetch(reference, files, threads).parent
    path.parent.mkdir(parents=True, exist_ok=True)
    convert(str(folder), quantization=_recipe(reference).name, output=str(path), threads=threads)
    note(f"the checkpoint stays in the cache; glmrun rm {reference.repo} frees its room")
    return path


def _ask(question: str) -> None:
    """Go on after a yes; raises UserError where nobody can be asked, and Abort for a no."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise UserError(f"{question} Nobody can be asked here; --yes says yes", "refused")
    if not typer.confirm(question, err=True):
        raise typer.Abort
