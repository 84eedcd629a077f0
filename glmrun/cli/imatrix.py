"""`glmrun imatrix`: what a model's matrices read, summed over a text, for `glmrun convert --imatrix`."""

import time
from pathlib import Path
from typing import Annotated

import typer

from glmrun.cli import loading, options
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import orderly_end
from quant.errors import UserError


def imatrix(
    file: Annotated[str, typer.Option("-f", "--file", metavar="FILE", help="Text as the model will meet, - for standard input.")],
    model: Annotated[str | None, loading.MODEL] = None,
    named: loading.Named = None,
    output: Annotated[
        str, typer.Option("-o", "--output", callback=options.output_file, metavar="FILE", help="The importance matrix.")
    ] = "imatrix.gguf",
    chunk_size: Annotated[int, typer.Option("-c", "--chunk-size", min=16, metavar="N", help="Tokens read together.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, metavar="N", help="Stop after N chunks.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
    threads: options.Threads = None,
) -> None:
    """Collect an importance matrix: the mean square of each column's input, for each matrix and expert.

    Special tokens in the text count as such, so conversations may stand in it as the chat template writes them. The file is
    llama.cpp's kind, for `glmrun convert --imatrix` and llama-quantize.

    \b
    Example:
      glmrun imatrix GLM-4.7-Flash-Q8_0.gguf -f text.txt -o glm.imatrix.gguf
    """
    from glmrun.terminal.progress import work_bar
    from quant.publish import publish

    text, read = options.read_text(file), [] if file == "-" else [Path(file)]
    path, target = loading.resolve_model(loading.one_model(model, named)), Path(output)
    loaded = loading.load_model(path, chunk_size, threads, draft="off")

    from glmrun.engine.importance import Collector

    ids = loaded.tokenizer.encode(text, special=True)
    n = min(len(ids) // chunk_size, chunks or len(ids))
    if n == 0:
        raise UserError(f"the text has {len(ids):,} tokens, less than one chunk of {chunk_size:,}; give more text, or a smaller -c")
    collector = Collector(loaded, [path.name for path in read] or ["standard input"])
    n_bytes = len(collector.result().packed())  # the same before and after
    with (
        orderly_end(),
        publish(target, {target: n_bytes}, force, [path, *read]) as out,
        work_bar() as bar,
    ):
        began = time.monotonic()
        for i in range(n):
            collector.read(ids[i * chunk_size : (i + 1) * chunk_size])
            bar.update("chunk", i + 1, n)
        found = collector.result()
        out.write(target, 0, found.packed())
    rate = n * chunk_size / (time.monotonic() - began)
    note(f"{output}: {len(found.sums):,} tensors, {n * chunk_size:,} tokens, {rate:.0f} tokens a second")
    for name, counts in found.counts.items():
        if "ffn_down_exps" in name and (unseen := int((counts == 0).sum())):
            note(f"{name}: {unseen} of {len(counts)} experts saw no token; their columns are weighed alike")
