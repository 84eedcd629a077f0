"""`glmrun convert`: a Hugging Face folder becomes one GGUF file."""

import math
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmrun.cli import options

if TYPE_CHECKING:
    from quant.convert import Plan


def _list_quantizations(wanted: bool) -> None:
    if wanted:
        from glmrun.terminal.tables import columns
        from quant.recipes import RECIPES

        rows = [[r.name, f"{r.bits_per_weight:.2f}", r.description] for r in RECIPES.values()]
        print(columns([["name", "bits per weight", "what it is for"], *rows], right=[1]))
        raise typer.Exit


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="A Hugging Face model folder: config.json, tokenizer.json, *.safetensors.")
    ],
    quantization: Annotated[
        str,
        typer.Option("-q", "--quant", "--quantize", "--outtype", metavar="NAME", help="See --list-quants; upper or lower case."),
    ] = "Q4_K_M",
    output: Annotated[
        str | None, typer.Option("-o", "--output", "--outfile", metavar="FILE", help="Left out: <folder's name>-<NAME>.gguf, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which tensor becomes what, and the total.")] = False,
    no_mtp: Annotated[bool, typer.Option("--no-mtp", help="Leave the next-token-prediction layer out.")] = False,
    threads: options.Threads = None,
    list_quants: Annotated[
        bool, typer.Option("--list-quants", callback=_list_quantizations, is_eager=True, help="List the quantizations.")
    ] = False,
) -> None:
    """Convert a checkpoint to a GGUF file, in one step and with little memory.

    The file appears under its name only when it is complete. Ctrl-C or an error leaves nothing behind.

    \b
    Examples:
      glmrun convert GLM-4.7-Flash -q Q4_K_M
      glmrun convert GLM-4.7-Flash -q q6_k -o /models/glm-q6.gguf --dry-run
    """
    from quant.recipes import recipe

    chosen = recipe(quantization)  # an unknown name is told before the folder is read

    from glmrun.terminal.console import note
    from quant.checkpoint import Checkpoint
    from quant.convert import plan

    checkpoint = Checkpoint.open(source)
    for line in checkpoint.notes:
        note(line)
    planned = plan(checkpoint, chosen, mtp=not no_mtp)
    if dry_run:
        _print_plan(planned)
        return
    _write(planned, Path(output) if output is not None else Path(f"{checkpoint.name}-{chosen.name}.gguf"), force, threads)


def _write(planned: "Plan", path: Path, force: bool, threads: int | None) -> None:
    from glmrun.terminal.console import note
    from glmrun.terminal.progress import bytes_bar
    from glmrun.terminal.tables import bytes_text
    from quant.convert import convert as write

    began = time.monotonic()
    with bytes_bar() as bar, closing(write(planned, path, force, threads)) as steps:
        for step in steps:
            bar.update(f"{step.tensors_done}/{step.n_tensors} {step.tensor}", step.bytes_done, step.n_bytes)
    seconds = time.monotonic() - began
    size = planned.file_bytes
    note(f"{path}: {bytes_text(size)} ({size:,} bytes), {planned.bits_per_weight:.2f} bits per weight, {seconds:.1f} s")


def _print_plan(planned: "Plan") -> None:
    from glmrun.terminal.tables import columns

    rows = [[r.name, " x ".join(map(str, r.shape)), r.source, r.format, f"{r.n_bytes:,}"] for r in planned.rows]
    print(columns([["tensor", "shape", "from", "to", "bytes"], *rows], right=[4]))
    weights = sum(math.prod(r.shape) for r in planned.rows)
    print(f"\n{len(rows)} tensors, {weights:,} weights, {planned.tensor_bytes:,} bytes of tensor data")
    print(f"the file: {planned.file_bytes:,} bytes, {planned.bits_per_weight:.2f} bits per weight")
