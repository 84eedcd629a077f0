"""`glmrun verify`: is a file byte for byte what was written?"""

import time
from contextlib import closing
from typing import Annotated

import typer

from glmrun.cli import loading, options
from glmrun.terminal.console import note
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import bytes_text


def verify(
    model: Annotated[str | None, loading.MODEL] = None,
    named: loading.Named = None,
    threads: options.Threads = None,
) -> None:
    """Prove a model file intact: every byte against the checksums that glmrun convert stores in it.

    Prints one line for each damaged tensor. Exit code 0: intact; 1: damaged, or there are no checksums; 3: no such file.

    \b
    Examples:
      glmrun verify GLM-4.7-Flash-Q4_K_M.gguf
      glmrun verify flash
    """
    from glmrun.gguf.verify import verify as check
    from glmrun.terminal.progress import BytesProgress

    file = str(loading.resolve_model(loading.one_model(model, named)))
    began, damaged, checked = time.monotonic(), 0, 0
    with BytesProgress() as bar, closing(check(file, threads)) as steps:
        for step in steps:
            checked += 1
            bar.update(step.name, step.bytes_done, step.n_bytes)
            if not step.intact:
                damaged += 1
                bar.clear()
                print(f"damaged: {one_line(step.name)}", flush=True)
    size, seconds = step.n_bytes, time.monotonic() - began
    speed = f"{bytes_text(size)} in {seconds:.1f} s"
    if damaged:
        note(f"{file}: {damaged} of {checked} checksums differ ({speed}); the file was damaged, or rewritten by another program")
        raise typer.Exit(1)
    note(f"{file}: intact, {checked} checksums of tensors and headers are right ({speed})")
