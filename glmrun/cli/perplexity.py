"""`glmrun perplexity`: how well a model predicts a text, and how far it is from a reference."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmrun.cli import loading, options
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import orderly_end
from glmrun.terminal.sanitize import json_text

if TYPE_CHECKING:
    from glmrun.measure.perplexity import Scores
    from glmrun.measure.reference import ReferenceWriter

_LEAST_SCORED = 100  # positions below which a comparison's percentiles mean nothing


def perplexity(
    model: Annotated[str | None, loading.MODEL] = None,
    named: loading.Named = None,
    file: Annotated[
        str | None,
        typer.Option(
            "-f", "--file", metavar="TEXT", help="A text file in UTF-8, - for standard input. Left out: nano's held-out dialogues."
        ),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "-c", "--ctx", "--ctx-size", parser=options.parse_size, metavar="N", help="Tokens of a window. Left out: 512."
        ),
    ] = None,
    chunks: Annotated[int | None, typer.Option("--chunks", min=1, metavar="N", help="Read only the first N windows.")] = None,
    special: Annotated[
        bool, typer.Option("--parse-special", help="Texts like <|user|> are the control tokens they name, not plain text.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            "--kl-divergence-base",
            callback=options.output_file,
            metavar="FILE",
            help="Write this model's predictions to FILE, as the reference.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--kl-divergence", help="Compare with the reference in --kl-divergence-base; the text is taken from it.")
    ] = False,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object; shares are fractions, not percent.")] = False,
) -> None:
    """Measure perplexity and KL divergence by llama-perplexity's rules, with its report and its reference file.

    The text is cut into windows of -c tokens; what follows the middle of each is scored. Ctrl-C ends early, with what is done.

    \b
    Examples:
      glmrun perplexity model-Q4_K_M.gguf -f wiki.test.raw --chunks 50
      glmrun perplexity model-BF16.gguf -f wiki.test.raw --kl-divergence-base wiki.kld
      glmrun perplexity model-Q4_K_M.gguf --kl-divergence-base wiki.kld --kl-divergence
    """
    if compare and base is None:
        raise typer.BadParameter("--kl-divergence compares with a reference: name it with --kl-divergence-base FILE")
    if compare and (file is not None or window is not None or special):
        raise typer.BadParameter("--kl-divergence takes text and windows from the reference: leave -f, -c and --parse-special out")
    if window is not None and window < 4:
        raise typer.BadParameter("-c: a window has at least 4 tokens")
    path = loading.resolve_model(loading.one_model(model, named))

    from glmrun.measure.perplexity import score, statistics
    from glmrun.measure.reference import Reference, writing
    from glmrun.measure.windows import cut

    reference, text, writing_base = None, "", None
    if base is not None and compare:
        reference = Reference(base)
        n_ctx = reference.ids.shape[1]
    else:
        n_ctx, text, special = window or 512, *_text(file, special)
    opened = loading.load_model(path, n_ctx, threads, kv_type, draft="off")
    windows = reference.windows(opened, chunks) if reference else cut(opened, text, n_ctx, chunks, special)
    if base is not None and reference is None:
        read = [path] if file is None or file == "-" else [path, Path(file)]
        writing_base = writing(base, windows, opened.config.vocab_size, read)
    with orderly_end():  # a reference is large
        scores, done, interrupted = _watched(partial(score, opened, windows, reference), writing_base, path.name, len(windows.ids))
    if scores is None:
        raise typer.Exit(130)
    n_scored = done * windows.n_scored
    facts = {"model": str(path), "file": None if compare else file, "n_ctx": n_ctx, "chunks": done, "positions": n_scored}
    compared = statistics(scores) if reference and n_scored >= _LEAST_SCORED else None
    if as_json:
        print(json_text(facts | (compared or {"ppl": list(scores.perplexity)})))
    elif compared:
        print(report(compared))
    else:
        value, error = scores.perplexity
        print(f"Final estimate: PPL = {value:.4f} +/- {error:.5f}")
    if interrupted:
        raise typer.Exit(130)


def _text(file: str | None, special: bool) -> tuple[str, bool]:
    """(the text, whether its control tokens count as such)."""
    if file is None:
        from glmrun.store.nano import CHECKPOINT

        return (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8"), True
    return options.read_text(file), special


def _watched(
    steps: "Callable[[ReferenceWriter | None], Iterator[tuple[int, Scores]]]",
    writing_base: "AbstractContextManager[ReferenceWriter] | None",
    name: str,
    n_windows: int,
) -> "tuple[Scores | None, int, bool]":
    """Go through the steps behind a bar; returns (what was found, windows done, whether Ctrl-C ended it)."""
    from glmrun.terminal.progress import work_bar

    done, scores, interrupted = 0, None, False
    try:
        with writing_base or nullcontext() as writer, work_bar() as bar:
            bar.update(name, 0, n_windows)
            for done, scores in steps(writer):
                bar.update(f"{name} PPL {scores.perplexity[0]:.4f}", done, n_windows)
    except KeyboardInterrupt:
        interrupted = True
        note(f"interrupted after {done} of {n_windows} windows" + ("; no reference was written" if writing_base else ""))
    return scores, done, interrupted


def report(found: dict[str, Any]) -> str:
    """llama-perplexity's report of statistics()."""

    def pair(name: str) -> str:
        value, error = found[name]
        return f"{value:10.6f} ± {error:10.6f}"

    def percent(name: str) -> str:
        value, error = found[name]
        return f"{100 * value:6.3f} ± {100 * error:5.3f} %"

    lines = [
        "====== Perplexity statistics ======",
        f"Mean PPL(Q)                   : {pair('ppl')}",
        f"Mean PPL(base)                : {pair('ppl_base')}",
        f"Cor(ln(PPL(Q)), ln(PPL(base))): {100 * found['correlation']:6.2f}%",
        f"Mean ln(PPL(Q)/PPL(base))     : {pair('ln_ppl_ratio')}",
        f"Mean PPL(Q)/PPL(base)         : {pair('ppl_ratio')}",
        f"Mean PPL(Q)-PPL(base)         : {pair('ppl_difference')}",
        "",
        "====== KL divergence statistics ======",
        f"Mean    KLD: {pair('kld')}",
        *(f"{_heading(name)} KLD: {value:10.6f}" for name, value in found["kld_percentiles"].items()),
        "",
        "====== Token probability statistics ======",
        f"Mean    Δp: {percent('delta_p')}",
        *(f"{_heading(name)} Δp: {100 * value:6.3f}%" for name, value in found["delta_p_percentiles"].items()),
        f"RMS Δp    : {percent('rms_delta_p')}",
        f"Same top p: {percent('same_top_p')}",
    ]
    return "\n".join(lines)


def _heading(name: str) -> str:
    """`Maximum`, ` 5.0%  `: seven characters."""
    return f"{name.rjust(5):<7}" if name.endswith("%") else f"{name.capitalize():<7}"
