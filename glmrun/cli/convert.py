"""`glmrun convert`: a Hugging Face folder, or a GGUF file, becomes a GGUF file."""

import json
import os
import re
import shlex
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from glmrun.cli import options
from glmrun.cli.loading import only_one, resolve_model
from glmrun.terminal.console import note
from glmrun.terminal.tables import bytes_text, columns
from quant.errors import UserError

if TYPE_CHECKING:
    from quant.convert import Done, Plan
    from quant.gguf_header import MetadataValue
    from quant.recipes import Choice


def _list_quantizations(wanted: bool) -> None:
    if wanted:
        from quant.recipes import RECIPES

        rows = [[r.name, f"{r.bits_per_weight:.2f}", r.description] for r in RECIPES.values()]
        print(columns([["name", "bits per weight", "what it is for"], *rows], right=[1]))
        raise typer.Exit


def _source(name: str) -> str:
    """What a SRC means: a folder or a file, else the name of a model on this machine, checkpoints too."""
    if Path(name).exists() or os.sep in name:
        return name
    from glmrun.store.local import local_models, matching

    if name == "nano":
        return str(resolve_model(name))
    found = matching(name, local_models())
    return str(only_one(name, found).path) if found else name


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hugging Face model folder (config.json, tokenizer.json, *.safetensors), a GGUF file, or a name in glmrun list.",
        ),
    ],
    quantization: Annotated[
        str,
        typer.Option("-q", "--quant", "--quantize", "--outtype", metavar="NAME", help="See --list-quants; upper or lower case."),
    ] = "Q4_K_M",
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            "--outfile",
            callback=options.output_file,
            metavar="FILE",
            help="Left out: <folder's name>-<NAME>.gguf, here.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an interrupted conversion has finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show which tensor becomes what, and the total.")] = False,
    no_mtp: Annotated[bool, typer.Option("--no-mtp", help="Leave the next-token-prediction layer out.")] = False,
    pure: Annotated[bool, typer.Option("--pure", help="The same type for all matrices, no mixture.")] = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type", metavar="REGEX=TYPE", help="Type of the tensors whose name matches; the first match decides."
        ),
    ] = None,
    output_tensor_type: Annotated[
        str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="Type of output.weight.")
    ] = None,
    token_embedding_type: Annotated[
        str | None, typer.Option("--token-embedding-type", metavar="TYPE", help="Type of token_embd.weight.")
    ] = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept weights that are quantized already; they lose once more.")
    ] = False,
    imatrix: Annotated[
        str | None,
        typer.Option("--imatrix", metavar="FILE", help="An importance matrix (see `glmrun imatrix`): where errors cost most."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=[TYPE:]VALUE", help="Set a key of the file; TYPE is int, float, bool or str."),
    ] = None,
    split_max_size: Annotated[
        str | None, typer.Option("--split-max-size", metavar="N(M|G)", help="Several files of at most that much tensor data each.")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            callback=options.output_file,
            metavar="FILE",
            help="Write sizes, types, errors and checksums of all tensors as JSON.",
        ),
    ] = None,
    threads: options.Threads = None,
    list_quants: Annotated[
        bool, typer.Option("--list-quants", callback=_list_quantizations, is_eager=True, help="List the quantizations.")
    ] = False,
) -> None:
    """Convert a checkpoint to a GGUF file, in one step and with little memory.

    The file appears under its name only when it is complete. After Ctrl-C, a crash or a full disk, the same command continues
    where it stopped, and the result is the same.

    \b
    Examples:
      glmrun convert GLM-4.7-Flash -q Q4_K_M
      glmrun convert GLM-4.7-Flash -q q6_k -o /models/glm-q6.gguf --dry-run
      glmrun convert GLM-4.7-Flash --tensor-type attn_=q8_0 --tensor-type shexp=q8_0
      glmrun convert GLM-4.7-Flash-BF16.gguf -q Q4_K_M --split-max-size 4G
    """
    from quant.recipes import recipe

    chosen = recipe(quantization)  # an unknown name is reported before the folder is read
    choice = _choice(tensor_type or [], output_tensor_type, token_embedding_type, pure)
    overrides = dict(map(_override, metadata or []))
    split_bytes = _parse_bytes(split_max_size) if split_max_size else None
    if report:
        _check_report(Path(report))

    from glmrun.gguf.source import open_source, read_importance
    from quant.convert import plan

    source = _source(source)
    model = open_source(Path(source))
    for line in model.notes:
        note(line)
    importance = read_importance(imatrix) if imatrix else None
    planned = plan(model, chosen, not no_mtp, choice, split_bytes, overrides, allow_requantize, importance)
    if overrides:
        _prove(planned)
    for line in _advice(planned):
        note(line)
    if dry_run:
        _print_plan(planned)
        return
    path = Path(output) if output is not None else Path(f"{model.name}-{chosen.name}.gguf")
    _write(planned, path, force, restart, threads, Path(report) if report else None)


def _choice(tensor_types: list[str], output: str | None, embedding: str | None, pure: bool) -> "Choice":
    from quant.recipes import Choice, format_name

    patterns = []
    for text in tensor_types:
        pattern, equals, kind = text.rpartition("=")
        try:
            if not equals:
                raise typer.BadParameter(f"--tensor-type: {text!r} is not REGEX=TYPE, for example ffn_down=q6_k")
            patterns.append((re.compile(pattern), format_name(kind)))
        except re.error as why:
            raise typer.BadParameter(f"--tensor-type: {pattern!r} is not a regular expression: {why}") from None
    return Choice(tuple(patterns), format_name(output) if output else None, format_name(embedding) if embedding else None, pure)


def _check_report(path: Path) -> None:
    """Raise UserError now if the report could not be written after hours of work."""
    if not path.parent.is_dir():
        raise UserError(f"--report: the folder {path.parent} does not exist", "usage")
    if path.is_dir():
        raise UserError(f"--report: {path} is a folder; name a file in it", "usage")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--report: {path} can't be written; name another file")


def _prove(planned: "Plan") -> None:
    """Raise UserError if the file would not be a model any more with what --metadata sets: its header is opened as one."""
    from glmrun.chat.tokenizer import Tokenizer
    from glmrun.gguf.architecture import open_model_file
    from glmrun.gguf.dialects import whole_vocabulary

    with TemporaryDirectory() as folder:
        paths = [part.path(Path(folder, "x.gguf")) for part in planned.parts]
        for part, path in zip(planned.parts, paths, strict=True):
            path.write_bytes(part.blank_header)
            os.truncate(path, part.n_bytes)  # takes no room on the disk
        try:
            file = open_model_file(paths[0])
            Tokenizer.from_metadata(whole_vocabulary(file.metadata, file.config.vocab_size))
        except UserError as why:
            text = str(why).removeprefix(f"{paths[0]}: ")
            raise UserError(f"--metadata: no program could use a file with that: {text}", "usage") from None


def _override(text: str) -> "tuple[str, MetadataValue]":
    """`general.name=str:My model` as (key, value); numbers become GGUF's int32, uint32 or float32."""
    key, equals, value = text.partition("=")
    kind, colon, rest = value.partition(":")
    if not colon or kind not in ("int", "float", "bool", "str"):
        kind, rest = "str", value
    if not equals or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_-]+)+", key):
        raise typer.BadParameter(f"--metadata: {text!r} is not KEY=TYPE:VALUE, for example general.author=str:Me")
    if key.startswith(("split.", "glmrun.checksum.")) or key in ("general.alignment", "general.architecture"):
        raise typer.BadParameter(f"--metadata: {key} says how the file is built; it can't be set")
    if kind == "str":
        return key, options.text_argument(rest, "--metadata")
    if kind == "bool" and rest in ("true", "false"):
        return key, rest == "true"
    try:
        if kind == "int" and -(1 << 31) <= int(rest) < 1 << 32:
            import numpy as np

            return key, int(rest) if int(rest) >= 0 else np.int32(int(rest))
        if kind == "float":
            return key, float(rest)
    except ValueError:
        pass
    raise typer.BadParameter(
        f"--metadata: {rest!r} is not a value of type {kind} (int of 32 bits, float, bool: true or false, str)"
    )


def _parse_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d{1,9})([MG])", text.strip())
    if found is None or int(found[1]) == 0:
        raise typer.BadParameter(f"--split-max-size: {text!r} is not a size; write it like 500M or 4G")
    return int(found[1]) * (10**9 if found[2] == "G" else 10**6)


def _write(planned: "Plan", path: Path, force: bool, restart: bool, threads: int | None, report_path: Path | None) -> None:
    from glmrun.terminal.progress import BytesProgress
    from quant.convert import convert as write
    from quant.publish import journal_path

    began, done, n_resumed, checking = time.monotonic(), list["Done"](), 0, False
    try:
        with BytesProgress() as bar, closing(write(planned, path, force, threads, restart)) as steps:
            for step in steps:
                if step.note:
                    bar.clear()
                    note(step.note)
                if step.done:
                    done.append(step.done)
                n_resumed += bool(step.done and step.resumed)
                if checking != step.resumed:
                    bar.restart()
                    checking = step.resumed
                what = "checking what is there" if checking else f"{step.tensors_done}/{step.n_tensors} {step.tensor}"
                bar.update(what, step.bytes_done, step.n_bytes)
    except KeyboardInterrupt:
        if journal_path(path).exists():
            command = shlex.join(["glmrun", *(word for word in sys.argv[1:] if word != "--restart")])
            note(f"interrupted; what is finished is kept beside {path}. The same command continues: {command}")
        # Threads may still be reading or compiling; nothing of it matters any more, and waiting for them would take long.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(130)
    seconds = time.monotonic() - began
    _print_summary(planned, path, done, seconds)
    if report_path:
        from quant.report import report

        report_path.write_text(json.dumps(report(planned, done, path, seconds, n_resumed), indent=1) + "\n", encoding="utf-8")


def _advice(planned: "Plan") -> list[str]:
    """What to know before hours of work if this machine has not the memory for what is to be written."""
    from glmrun.gguf.architecture import DEFAULT_CONTEXT
    from glmrun.machine import memory
    from glmrun.measure.advice import advice, in_part, machine_with, quantizations
    from glmrun.measure.bandwidth import memory_bandwidth
    from glmrun.measure.plan import demand_of_tensors

    demand = demand_of_tensors(planned.recipe.name, planned.config, {r.name: (r.shape, r.format, r.n_bytes) for r in planned.rows})
    n_ctx, available = min(DEFAULT_CONTEXT, planned.config.max_position_embeddings), memory().available
    if demand.needed(n_ctx) <= available:
        return []
    here = machine_with(available, memory_bandwidth().bytes_per_second, planned.source.files)
    part, instead = in_part(demand, here), advice(demand, quantizations(planned.config), n_ctx, here)
    needed = f"{demand.name} needs {demand.needed(n_ctx) / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are free here"
    return [f"{needed}; it {part}" if part else needed, *([instead] if instead else [])]


def _print_plan(planned: "Plan") -> None:
    rows = [[r.name, " x ".join(map(str, r.shape)), r.source, r.format, f"{r.n_bytes:,}"] for r in planned.rows]
    print(columns([["tensor", "shape", "from", "to", "bytes"], *rows], right=[4]))
    print(f"\n{len(rows)} tensors, {planned.n_weights:,} weights, {planned.tensor_bytes:,} bytes of tensor data")
    files = "the file" if len(planned.parts) == 1 else f"{len(planned.parts)} files"
    print(f"{files}: {planned.file_bytes:,} bytes, {planned.bits_per_weight:.2f} bits per weight")


def _print_summary(planned: "Plan", path: Path, done: "list[Done]", seconds: float) -> None:
    from quant.report import tensor_classes

    classes = [c for c in tensor_classes(planned.rows, done) if c.squared_error]
    rows = [[c.name, " ".join(c.formats), str(c.tensors), bytes_text(c.bytes), f"{c.relative_error:.2e}"] for c in classes]
    if rows:
        table = columns([["tensors", "types", "number", "size", "squared error"], *rows], right=[2, 3, 4])
        print(table, file=sys.stderr)
    size = planned.file_bytes
    files = f"{path}" if len(planned.parts) == 1 else f"{planned.parts[0].path(path)} and {len(planned.parts) - 1} more"
    note(f"{files}: {bytes_text(size)} ({size:,} bytes), {planned.bits_per_weight:.2f} bits per weight, {seconds:.1f} s")
