"""`glmrun bench`: tokens per second, side by side."""

import csv
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glmrun.cli import loading, options
from glmrun.settings import default_model

if TYPE_CHECKING:
    from glmrun.measure.bench import Result


class Output(StrEnum):
    """Forms of the result."""

    md = "md"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def parse_counts(text: str) -> list[int]:
    """`512` or `128,512` as numbers."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number or a list of numbers like 128,512") from None
    if any(not 0 <= n <= 1 << 24 for n in counts):
        raise typer.BadParameter(f"{text!r}: each number is between 0 and {1 << 24:,}")
    return counts


def bench(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="FILE",
            help="A GGUF file; may be repeated, or several with commas. Left out: the setting, else nano in three quantizations.",
        ),
    ] = None,
    prompts: Annotated[str, typer.Option("-p", "--n-prompt", metavar="N,...", help="Tokens of the prompt tests; 0: none.")] = "512",
    gens: Annotated[str, typer.Option("-n", "--n-gen", metavar="N,...", help="Tokens of the generation tests; 0: none.")] = "128",
    depths: Annotated[str, typer.Option("-d", "--n-depth", metavar="N,...", help="Tokens that are in the cache beforehand.")] = "0",
    threads: Annotated[
        str | None,
        typer.Option(
            "-t", "--threads", metavar="N,...", help="Threads; left out: one per physical core.", **options.setting("threads")
        ),
    ] = None,
    kv_type: options.KvType = None,
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, metavar="N", help="Measured runs of each test.")] = 5,
    warmup: Annotated[bool, typer.Option("--warmup/--no-warmup", help="One unmeasured run of each test first.")] = True,
    output: Annotated[Output, typer.Option("-o", "--output", help="Markdown table, JSON, JSON lines or CSV.")] = Output.md,
) -> None:
    """Measure reading (pp) and writing (tg) speed; the columns and names are llama-bench's.

    Compiling kernels and reading the file happen before the clock starts; how long they took is told on standard error.

    \b
    Examples:
      glmrun bench
      glmrun bench -m GLM-4.7-Flash-Q4_K_M.gguf -p 512 -n 64 -t 2 -r 3
      glmrun bench -m a.gguf,b.gguf -n 0 -p 128,512 -d 0,4096 -o json > speed.json
    """
    wanted = parse_counts(threads) if threads is not None else [None]
    if 0 in wanted:
        raise typer.BadParameter("--threads: at least one thread is needed")
    counts = parse_counts(prompts), parse_counts(gens), parse_counts(depths)
    names = [name for text in models or [] for name in text.split(",") if name]
    if not any(counts[0] + counts[1]):
        raise typer.BadParameter("nothing to measure: both -p and -n are 0")
    paths = _paths(names)
    loading.compile_kernels()

    from glmrun.measure.bench import cases, measure
    from glmrun.terminal.progress import work_bar
    from glmrun.terminal.tables import BenchTable

    todo = cases(paths, *counts, wanted)
    table = BenchTable()
    results: list[Result] = []
    with work_bar() as bar:
        for case, taken, result in measure(todo, repetitions, warmup, kv_type):
            if result is None:
                bar.update(f"{case.path.name} {case.name}", len(results) * repetitions + taken, len(todo) * repetitions)
                continue
            bar.clear()
            results.append(result)
            if output is Output.md:
                if len(results) == 1:
                    print(table.heading())
                print(table.row(result.asdict(), case.name), flush=True)
            elif output is Output.jsonl:
                print(json.dumps(result.asdict(), ensure_ascii=False), flush=True)
    if output is Output.json:
        print(json.dumps([result.asdict() for result in results], ensure_ascii=False, indent=2))
    elif output is Output.csv:
        _print_csv(results)


def _paths(names: list[str]) -> list[Path]:
    names = names or [name for name in [default_model()] if name]
    if names:
        return [loading.resolve_model(name) for name in names]
    from glmrun.builtin import QUANTIZATIONS, nano_path

    return [nano_path(quantization) for quantization in QUANTIZATIONS]


def _print_csv(results: "list[Result]") -> None:
    """llama-bench's CSV: everything quoted, without the lists of samples."""
    rows = [{name: value for name, value in result.asdict().items() if not isinstance(value, list)} for result in results]
    writer = csv.DictWriter(sys.stdout, rows[0], quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
