"""`glmrun demo`: everything once, on nano, in less than a minute."""

import time
from pathlib import Path

import typer

from glmrun.chat.answer import Answer
from glmrun.cli import loading, options
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import interruptible
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import bytes_text

_QUESTION = "What is 17 + 25?"
_REAL_MODEL = """\
It has 31 billion parameters. See whether it fits into this machine, download it (18 GB as
Q4_K_M) and chat with it:

    glmrun plan Q4_K_M
    glmrun pull ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M
    glmrun chat flash

`glmrun pull zai-org/GLM-4.7-Flash -q Q4_K_M` makes the file from the checkpoint instead (62 GB).
Nano is ready now: glmrun chat"""


def demo(threads: options.Threads = None) -> None:
    """Convert nano to three quantizations, ask it something, measure it, and show how to get the real model.

    \b
    Example:
      glmrun demo
    """
    _title("nano, the small model that comes with glmrun, in three quantizations")
    paths = _convert()
    _title("A question, and the model's thinking")
    _ask(paths[-1], threads)
    _title("Speed of reading 512 tokens and of writing 64")
    _measure(paths, threads)
    _title("The real model")
    print(_REAL_MODEL)


def _convert() -> list[Path]:
    from glmrun.store.nano import QUANTIZATIONS, nano_path
    from glmrun.terminal.progress import waiting

    paths = []
    for quantization in QUANTIZATIONS:
        began = time.monotonic()
        with waiting(f"converting to {quantization}"):
            path = nano_path(quantization)
        paths.append(path)
        print(f"  {path.name:<16} {bytes_text(path.stat().st_size):>10}   ready in {time.monotonic() - began:.1f} s", flush=True)
    print(f"\nThey stay in {one_line(str(path.parent))}.", flush=True)
    return paths


def _ask(path: Path, threads: int | None) -> None:
    from glmrun.terminal.answer import show_answer, stats_line

    model = loading.load_model(path, threads=threads)
    print(f">>> {_QUESTION}", flush=True)
    chunks = model.chat([{"role": "user", "content": _QUESTION}], temperature=0.0, max_tokens=400)
    answer = Answer()
    with interruptible(model, chunks):
        show_answer(chunks, answer)
    if answer.stats is not None:
        note(stats_line(answer.stats))
    if answer.finish_reason == "cancelled":
        raise typer.Exit(130)


def _measure(paths: list[Path], threads: int | None) -> None:
    from glmrun.cli.bench_table import BenchTable
    from glmrun.measure.bench import Choices, measure
    from glmrun.terminal.progress import work_bar

    table = BenchTable()
    print(table.heading(), flush=True)
    with work_bar() as bar:
        todo = [case for path in paths for case in Choices(n_gen=[64], n_threads=[threads]).cases(path)]
        for case, taken, result in measure(todo, repetitions=3):
            if result is None:
                bar.update(f"{case.path.name} {case.name}", taken, 3)
            else:
                bar.clear()
                print(table.row(result.asdict()), flush=True)


def _title(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(f"\n{text}\n", style="bold", markup=False)
