"""`glmrun bench`: tokens per second, side by side."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from glmrun.cli import loading, options
from glmrun.settings import default_model
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import orderly_end
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import bytes_text, columns
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.cli.bench_output import BenchOutput
    from glmrun.measure.bench import Case, Choices, Result

_MOST = 1 << 24  # tokens
Output = Literal["md", "csv", "json", "jsonl", "sql"]  # forms of the result


def parse_counts(text: str) -> list[int]:
    """`512`, `128,512`, `1-4`, `0-8192+4096` or `1-8*2` as numbers, as llama-bench reads them."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?", part.strip())
        if found is None:
            raise typer.BadParameter(f"{part!r} is not a number or a range; write 128,512 or 0-8192+4096 or 1-8*2")
        at, last = int(found[1]), int(found[2] or found[1])
        step, times = int(found[4] or 1), found[3] == "*"
        if last < at or (step < 2 or at == 0 if times else step < 1) or last > _MOST:
            raise typer.BadParameter(f"{part!r} never reaches its end, or is more than {_MOST:,}")
        while at <= last:
            counts.append(at)
            at = at * step if times else at + step
            if len(counts) > 1000:
                raise typer.BadParameter(f"{text!r} means more than 1,000 tests")
    return counts


def _parse_pair(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,8}),(\d{1,8})", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not a pair like 512,128")
    return int(found[1]), int(found[2])


def bench(
    context: typer.Context,
    named: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", autocompletion=loading.complete_model, help="Models, as -m takes them.", show_default=False
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--model",
            metavar="FILE",
            help="A GGUF file; may be repeated, or several with commas. Left out: the setting, else nano in three quantizations.",
        ),
    ] = None,
    quantizations: Annotated[
        str | None, typer.Option("-q", "--quant", metavar="NAME,...", help="Convert the one -m (a folder, a GGUF file) to each.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("-p", "--n-prompt", metavar="N,...", help="Prompt tests: tokens; 0: none. Left out: 512.")
    ] = None,
    gens: Annotated[
        list[str] | None, typer.Option("-n", "--n-gen", metavar="N,...", help="Generation tests: tokens; 0: none. Left out: 128.")
    ] = None,
    pairs: Annotated[
        list[str] | None, typer.Option("-pg", metavar="PP,TG", help="A test that reads PP tokens and makes TG; may be repeated.")
    ] = None,
    depths: Annotated[
        list[str] | None, typer.Option("-d", "--n-depth", metavar="N,...", help="Tokens in the cache beforehand. Left out: 0.")
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option("-t", "--threads", metavar="N,...", help="Threads; left out: one per core.", **options.setting("threads")),
    ] = None,
    ubatches: Annotated[
        list[str] | None,
        typer.Option("-ub", "--ubatch-size", metavar="N,...", help="Tokens of a step while a prompt is read. Left out: 512."),
    ] = None,
    kv_type: options.KvType = None,
    draft: Annotated[
        str,
        typer.Option(
            "--draft",
            parser=options.parse_draft,
            metavar="NAME",
            help="Drafts while tokens are made, as in run: these are chosen then, always the likeliest, and not given.",
        ),
    ] = "off",
    repetitions: Annotated[int, typer.Option("-r", "--repetitions", min=1, metavar="N", help="Measured runs of each test.")] = 5,
    delay: Annotated[float, typer.Option("--delay", min=0, metavar="SECONDS", help="Rest before each test.")] = 0.0,
    warmup: Annotated[bool, typer.Option("--warmup/--no-warmup", help="One unmeasured run of each test first.")] = True,
    output: Annotated[Output, typer.Option("-o", "--output", help="Form of the result.")] = "md",
    output_err: Annotated[
        Output | None, typer.Option("-oe", "--output-err", help="The result also to standard error, in this form.")
    ] = None,
    wide: Annotated[
        bool,
        typer.Option(
            "--wide",
            help="Also time to first token, peak memory, GB/s of weights, their share of the bandwidth, GB/s from disk, hit rate.",
        ),
    ] = False,
    plot: Annotated[bool, typer.Option("--plot", help="Draw speed against depth, or threads, in the terminal.")] = False,
    plot_out: Annotated[str | None, typer.Option("--plot-out", metavar="FILE", help="The same as FILE.png or FILE.svg.")] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Measure a server with OpenAI's interface instead; -m is a name there."),
    ] = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option("--compare", metavar="A.json B.json", help="Measure nothing: report what differs between two results."),
    ] = None,
) -> None:
    """Measure reading (pp) and writing (tg) speed; flags, columns and names are llama-bench's.

    Lists may hold ranges: first-last, first-last+step, first-last*factor. Compiling kernels and reading the file happen before
    the clock starts; how long they took is reported on standard error. Ctrl-C ends early, with the tests that are done.

    \b
    Examples:
      glmrun bench
      glmrun bench flash -n 64
      glmrun bench -m GLM-4.7-Flash-Q4_K_M.gguf -p 512 -n 64 -d 0-8192+4096 -r 3 --plot
      glmrun bench -m a.gguf,b.gguf -n 0 -p 128,512 -t 1-4*2 -o json > speed.json
      glmrun bench -m GLM-4.7-Flash -q Q4_K_M,Q6_K,Q8_0 --wide
      glmrun bench --compare before.json after.json
      glmrun bench --url http://localhost:8080/v1 -p 512,4096 -r 3
    """
    if compare is not None:
        _print_comparison(*compare)
        return
    choices = _choices(prompts, gens, pairs, depths, threads, ubatches)
    names = [name for text in [*(named or []), *(models or [])] for name in text.split(",") if name]
    if url is not None:
        options.refuse_beside_url(context, "quantizations", "depths", "threads", "ubatches", "kv_type", "draft")
    if plot_out is not None:
        from glmrun.terminal.plot import check

        check(plot_out)
    if url is not None:
        runs, n_files = _of_server(url, names, choices, repetitions, warmup, delay)
    else:
        files, n_files = _files(names, quantizations)
        runs = _of_files(files, choices, repetitions, warmup, kv_type, delay, draft)
        began = time.perf_counter()
        loading.compile_kernels()
        _note_machine(choices.n_threads, time.perf_counter() - began)

    extra = [*(["type_k", "type_v"] if kv_type else []), *(["draft"] if draft != "off" else [])]
    outputs = _outputs(output, output_err, choices, extra, wide)
    n_rows = n_files * len(choices.cases(Path()))
    with orderly_end():  # the converted files are large
        rows, interrupted = _measure(runs, outputs, n_rows, repetitions, wide, () if url else choices.n_threads)
    if rows and (plot or plot_out):
        _plot(rows, plot, plot_out, output == "md")
    if interrupted:
        raise typer.Exit(130)


def _choices(
    prompts: list[str] | None, gens: list[str] | None, pairs: list[str] | None, depths: list[str] | None, threads: str | None,
    ubatches: list[str] | None,
) -> "Choices":  # fmt: skip
    """What the options ask for, at least one test."""
    from glmrun.measure.bench import N_UBATCH, Choices

    given = (prompts or ["512"], gens or ["128"], depths or ["0"], ubatches or ["512"])
    lists = [[n for text in texts for n in parse_counts(text)] for texts in given]
    wanted: list[int | None] = [*parse_counts(threads)] if threads is not None else [None]
    if 0 in wanted:
        raise typer.BadParameter("--threads: at least one thread is needed")
    if not all(1 <= n <= N_UBATCH for n in lists[3]):
        raise typer.BadParameter(f"--ubatch-size: 1 to {N_UBATCH} tokens")
    choices = Choices(lists[0], lists[1], [_parse_pair(text) for text in pairs or []], lists[2], wanted, lists[3])
    if not choices.cases(Path()):
        raise typer.BadParameter("nothing to measure: both -p and -n are 0")
    return choices


def _outputs(form: Output, form_err: Output | None, choices: "Choices", extra: list[str], wide: bool) -> "list[BenchOutput]":
    """Where rows are printed: standard output, and standard error if that was asked for."""
    from glmrun.cli.bench_output import BenchOutput
    from glmrun.cli.bench_table import BenchTable
    from glmrun.measure.bench import N_UBATCH

    columns = [*(["n_ubatch"] if list(choices.n_ubatch) != [N_UBATCH] else []), *extra]
    streams = [(form, sys.stdout), *([(form_err, sys.stderr)] if form_err is not None else [])]
    return [BenchOutput(form, stream, BenchTable(columns, wide)) for form, stream in streams]


def _measure(
    runs: "Generator[_Steps]", outputs: "list[BenchOutput]", n_rows: int, repetitions: int, wide: bool,
    threads: Sequence[int | None],
) -> tuple[list[dict[str, Any]], bool]:  # fmt: skip
    """Print each row as it comes; returns them all, and whether Ctrl-C ended it."""
    rows: list[dict[str, Any]] = []
    interrupted = False
    try:
        with closing(runs):
            for row in _rows(runs, n_rows, repetitions, wide, threads):
                rows.append(row)
                for out in outputs:
                    out.row(row)
    except KeyboardInterrupt:
        interrupted = True
    except (UserError, OSError):  # of a later file or test
        _end(outputs if rows else [])
        raise
    _end(outputs)
    return rows, interrupted


def _end(outputs: "list[BenchOutput]") -> None:
    for out in outputs:
        out.end()


_Steps = Iterator[tuple["Case", int, "Result | None"]]


def _of_files(
    files: Generator[Path], choices: "Choices", repetitions: int, warmup: bool, kv_type: str | None, delay: float, draft: str
) -> Generator[_Steps]:
    """What each file's measurement yields, one file after another."""
    from glmrun.measure.bench import measure

    with closing(files):
        for path in files:
            yield measure(choices.cases(path), repetitions, warmup, kv_type, delay, draft)


def _of_server(
    url: str, names: list[str], choices: "Choices", repetitions: int, warmup: bool, delay: float
) -> tuple[Generator[_Steps], int]:
    """(what each model's measurement yields, how many); the server's first model if none is named."""
    from glmrun.chat.remote import RemoteModel
    from glmrun.measure.server_bench import measure_server

    models = [RemoteModel(url, name) for name in names] or [RemoteModel(url)]
    note(f"{models[0].url}: tokens as the server counts them, times as they pass here")
    steps = (measure_server(model, choices.cases(Path(model.name)), repetitions, warmup, delay) for model in models)
    return steps, len(models)


def _rows(
    runs: Iterator[_Steps], n_tests: int, repetitions: int, wide: bool, threads: Sequence[int | None]
) -> Iterator[dict[str, Any]]:
    """The rows of all runs, behind a progress bar that is off the screen whenever a row comes; threads: whose bandwidth."""
    from glmrun.measure.bandwidth import memory_bandwidth
    from glmrun.terminal.progress import work_bar

    # A shared machine's memory is faster at some hours than at others: the best that was seen counts, now or before.
    measured = {n: [memory_bandwidth(n, again).bytes_per_second for again in (False, True)] for n in threads} if wide else {}
    bandwidth = {n: max(speeds) for n, speeds in measured.items()}
    done = 0
    with work_bar() as bar:
        for steps in runs:
            for case, taken, result in steps:
                if result is None:
                    bar.update(f"{case.path.name} {case.name}", done * repetitions + taken, n_tests * repetitions)
                    continue
                bar.clear()
                done += 1
                yield result.asdict() | (result.wide(bandwidth.get(case.n_threads)) if wide else {})


def _files(names: list[str], quantizations: str | None) -> tuple[Generator[Path], int]:
    """(the files to measure, each ready when it comes, how many)."""
    names = names or [name for name in [default_model()] if name]
    from glmrun.store.nano import QUANTIZATIONS, nano_path
    from quant.recipes import recipe

    if quantizations is None:
        paths = [loading.resolve_model(name) for name in names] or [nano_path(name) for name in QUANTIZATIONS]
        return (path for path in paths), len(paths)
    recipes = [recipe(name).name for name in quantizations.split(",") if name]
    if len(names) > 1 or not recipes:
        raise typer.BadParameter("-q NAME,... converts one source, which -m names; without -m it is nano")
    if names in ([], ["nano"]):
        return (nano_path(name) for name in recipes), len(recipes)
    source = Path(names[0]) if Path(names[0]).exists() else loading.resolve_model(names[0])
    return _converted(source, recipes), len(recipes)


def _converted(source: Path, recipes: list[str]) -> Generator[Path]:
    """The source in one quantization after another, in the cache folder; each is deleted before the next is made."""
    from glmrun.gguf.source import open_source
    from glmrun.machine import cache_folder
    from glmrun.terminal.progress import BytesProgress
    from quant.convert import convert, plan

    model = open_source(source)
    writable = None  # the system's temporary folder
    with suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        writable = cache_folder() if os.access(cache_folder(), os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="bench-", dir=writable) as folder:
        for name in recipes:
            path = Path(folder, f"{model.name}-{name}.gguf")
            try:
                planned = plan(model, name)
            except UserError as why:
                if why.setting != "requantize":
                    raise
                raise UserError(f"{source} is quantized already; -q converts the checkpoint's folder or a BF16 file") from None
            with BytesProgress() as bar:
                for step in convert(planned, path, resumable=False):
                    bar.update(f"{name}: {step.tensor}", step.bytes_done, step.n_bytes)
            yield path
            path.unlink()


def _note_machine(threads: Sequence[int | None], compile_seconds: float) -> None:
    """What a figure depends on, to standard error."""
    import platform
    from importlib.metadata import version

    from glmrun import __version__
    from glmrun.machine import available_cores, cpu_name, memory
    from glmrun.measure.doctor import cpu_features, kernel_target

    found = memory()
    for n in threads:
        if n is not None and n > available_cores():
            note(f"-t {n}: this machine has {available_cores()} cores for glmrun, so {available_cores()} threads are measured")
    counts = ", ".join(str(min(n or available_cores(), available_cores())) for n in threads)
    note(f"{cpu_name()}: {' '.join(cpu_features())}; kernels for {kernel_target()}")
    note(f"threads: {counts} of {available_cores()}; memory: {bytes_text(found.total)}, {bytes_text(found.available)} available")
    versions = ", ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite", "numpy"))
    note(f"glmrun {__version__}, Python {platform.python_version()}, {versions}")
    note(f"kernels ready after {compile_seconds:.1f} s, which is in no figure")


def _plot(rows: list[dict[str, Any]], to_terminal: bool, path: str | None, stream_is_free: bool) -> None:
    from glmrun.cli.bench_output import bar_chart
    from glmrun.measure.bench_rows import curves
    from glmrun.terminal.plot import write

    by, found = curves(rows)
    if to_terminal:
        print(f"\n{bar_chart(by, found)}", file=sys.stdout if stream_is_free else sys.stderr, flush=True)
    if path is not None:
        write(path, rows[0]["cpu_info"], by, found)


def _print_comparison(a: str, b: str) -> None:
    from glmrun.measure.bench_rows import SIGNIFICANT, compare, read_rows

    found, alone = compare(read_rows(a), read_rows(b))
    if not found:
        raise UserError(f"{a} and {b} have no test in common: the same prompt, tokens and depth, and the same model or threads")
    heading = ["test", f"{Path(a).stem} t/s", f"{Path(b).stem} t/s", "difference", "p", "verdict"]
    groups: dict[str, list[list[str]]] = {}
    for d in found:
        p = "-" if d.p_value is None else f"{d.p_value:.3f}"
        cells = [d.test, f"{d.a:.2f}", f"{d.b:.2f}", f"{d.relative:+.1%}", p, d.verdict]
        groups.setdefault(f"{d.model}, {d.threads} threads", []).append(cells)
    for model, rows in groups.items():
        print(f"{one_line(model)}\n{columns([heading, *rows], right=[1, 2, 3, 4])}\n")
    note(f"p: how often chance alone makes such a difference (Welch's t-test); called one below {SIGNIFICANT}")
    if alone:
        note(f"{alone} tests are in one file only")
