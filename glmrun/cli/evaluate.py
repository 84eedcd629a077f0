"""`glmrun eval`: how many questions a model answers right."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from glmrun.chat.chunk import Chunk
from glmrun.chat.request import ChatModel, ChatRequest
from glmrun.cli import loading, options
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import interruptible
from glmrun.terminal.sanitize import json_text
from glmrun.terminal.tables import columns
from quant.errors import UserError
from quant.system import lock

if TYPE_CHECKING:
    from glmrun.measure.evaluation import Answered, Question


def evaluate(
    context: typer.Context,
    first: Annotated[str | None, loading.MODEL] = None,
    second: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE.jsonl", help="Questions, one JSON object a line. Left out: nano's skills.", show_default=False
        ),
    ] = None,
    named: loading.Named = None,
    output: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--output",
            callback=options.output_file,
            metavar="FILE",
            help="Answers, a JSON object a line; left out: FILE-MODEL.jsonl.",
        ),
    ] = None,
    preset: options.Preset = None,
    temp: Annotated[
        float | None,
        typer.Option(
            "--temp", "--temperature", min=0.0, metavar="X", help="0 always takes the likeliest token. Left out: the preset's."
        ),
    ] = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same answers.")] = 0,
    max_tokens: options.MaxTokens = None,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    url: options.Url = None,
    parallel: Annotated[
        int, typer.Option("--parallel", min=1, max=256, metavar="N", help="Ask N questions at a time; the answers are the same.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Ask questions with known answers and count what is right, under the makers' sampling settings.

    A line of FILE has a prompt (or messages), an answer and a check: exact, regex, number or tool_call; it may have skill,
    tools, thinking, max_tokens and id. Every answer is kept at once: after Ctrl-C the same command continues. Of the sampling
    settings and the largest number of tokens only what stands on the command line counts, whatever variables and the config
    file say. With --url the model runs on a server; if that goes away, the same command continues. A single argument that ends
    in .jsonl, or is a file that is there and no .gguf, is FILE.

    \b
    Examples:
      glmrun eval
      glmrun eval GLM-4.7-Flash-Q4_K_M.gguf questions.jsonl --preset coding
      glmrun eval flash questions.jsonl --temp 0 -o answers.jsonl --json
      glmrun eval questions.jsonl --url http://cluster:8000/v1 --parallel 32
      echo '{"prompt": "What is 6 * 7?", "check": "number", "answer": 42}' > questions.jsonl
    """
    max_tokens = max_tokens if options.typed(context, "max_tokens") else None

    from glmrun.measure.evaluation import by_skill, read_suite
    from glmrun.store.nano import CHECKPOINT

    model, file = _model_and_file(first, second, named)
    suite = Path(file) if file is not None else CHECKPOINT / "skills.jsonl"
    questions = read_suite(suite)
    name, sampling = _sampling(context)
    if name == "agent":  # which keeps all thinking
        questions = [replace(question, clear_thinking=False) for question in questions]
    of_model, open_model = _model(context, model)
    called = re.sub(r"[^\w.-]+", "-", of_model["model"].removesuffix(".gguf"))
    kept = Path(output or f"{suite.stem}-{called}.jsonl")
    about = {
        "questions": suite.name, "sha256": hashlib.sha256(suite.read_bytes()).hexdigest(), **of_model,
        "n_ctx": ctx, "kv_type": kv_type, "max_tokens": max_tokens, "seed": seed, "preset": name, **sampling,
    }  # fmt: skip
    answers = _read_answers(kept, about)
    if answers:
        note(f"{len(answers)} of {len(questions)} questions were answered before, in {kept}; delete it to ask them again")
    interrupted = False
    if len(answers) < len(questions):
        opened = open_model()
        with kept.open("a", encoding="utf-8") as out:
            if not lock(out.fileno()):
                raise UserError(f"another process is writing {kept}; wait for it or name another output: -o", "busy")
            answers = _read_answers(kept, about)  # another process may have gone on before
            if not kept.stat().st_size:
                _write(out, about)
            how = {"seed": seed, "max_tokens": max_tokens, "parallel": parallel, **sampling}
            interrupted = _ask(opened, questions, answers, out, how)
    if as_json:
        print(json_text(about | {"skills": by_skill(answers)}))
    elif answers:
        print(_table(answers))
    if interrupted:
        note(f"interrupted after {len(answers)} of {len(questions)} questions; the same command continues")
        raise typer.Exit(130)
    note(f"the answers are in {kept}")


def _model_and_file(first: str | None, second: str | None, named: str | None) -> tuple[str | None, str | None]:
    """(MODEL, the file of questions), in either order. Raises BadParameter for two of a kind."""
    words = [word for word in (first, second) if word is not None]
    files = [word for word in words if word.endswith(".jsonl") or (not word.endswith(".gguf") and Path(word).exists())]
    models = [word for word in words if word not in files]
    if len(models) > 1 or len(files) > 1:
        raise typer.BadParameter(f"eval takes a MODEL and a file of questions, not {words[0]} and {words[1]}")
    return loading.one_model(models[0] if models else None, named), files[0] if files else None


def _sampling(context: typer.Context) -> tuple[str, dict[str, Any]]:
    """The preset's name and its settings, with those that were given on the command line."""
    from glmrun.engine.sampling import PRESETS

    given = {name: context.params[name] for name in ("preset", "temp", "top_p", "top_k", "min_p") if options.typed(context, name)}
    name = given.pop("preset", "default")
    return name, PRESETS[name] | {"temperature" if key == "temp" else key: value for key, value in given.items()}


def _model(context: typer.Context, model: str | None) -> tuple[dict[str, Any], Callable[[], ChatModel]]:
    """(what the answers' file says of the model, what opens it); a server is asked for its name at once."""
    given = context.params
    if url := options.server_url(context, model):
        options.refuse_beside_url(context, "ctx", "threads", "kv_type")
        remote = loading.open_model(model, url)
        return {"model": remote.name, "server": url}, lambda: remote
    path = loading.resolve_model(model)
    said = {"model": path.name, "bytes": path.stat().st_size}
    return said, lambda: loading.load_model(path, given["ctx"], given["threads"], given["kv_type"])


def _read_answers(kept: Path, about: dict[str, Any]) -> "list[Answered]":
    """What an earlier run answered; a line that was cut off is removed. Raises UserError if that run was another one."""
    from glmrun.measure.evaluation import Answered

    if not kept.exists():
        return []
    data = kept.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        if not whole and not _line(about).startswith(data.decode()):
            raise ValueError
        first, *others = [json.loads(line) for line in whole.decode().split("\n")[:-1]] or [about]
        found = [Answered(**line) for line in others]
        differing = [key for key in about if first[key] != about[key]]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"{kept} is there and holds no answers of glmrun eval; name another output with -o") from None
    if differing:
        raise UserError(f"{kept} holds another run's answers (other {', '.join(differing)}); remove it or name another output: -o")
    if len(whole) < len(data):
        with kept.open("r+b") as file:
            file.truncate(len(whole))
    return found


def _line(fields: dict[str, Any]) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"


def _write(out: TextIO, fields: dict[str, Any]) -> None:
    out.write(_line(fields))
    out.flush()


def _ask(
    model: ChatModel, questions: "list[Question]", answers: "list[Answered]", out: TextIO, how: dict[str, Any]
) -> bool:  # fmt: skip
    """Ask the rest, adding to answers and the file; returns whether Ctrl-C ended it. how: evaluate()'s further arguments."""
    from glmrun.measure.evaluation import evaluate
    from glmrun.terminal.progress import work_bar

    done = {answer.id for answer in answers}

    def ask(request: ChatRequest) -> Iterator[Chunk]:
        chunks = model.answer(request)
        with interruptible(model, chunks):
            yield from chunks

    with work_bar() as bar:
        bar.update(questions[0].skill, len(answers), len(questions))
        try:
            for answer in evaluate(ask if how["parallel"] == 1 else model.answer, questions, done, **how):
                _write(out, asdict(answer))
                answers.append(answer)
                right = sum(a.right for a in answers)
                bar.update(f"{answer.skill}: {right} right", len(answers), len(questions))
        except KeyboardInterrupt:
            model.cancel()
            return True
    return len(answers) < len(questions)


def _table(answers: "list[Answered]") -> str:
    from glmrun.measure.evaluation import by_skill

    rows = [["skill", "right", "of", "accuracy"]]
    for skill, found in by_skill(answers).items():
        rows.append([skill, str(found["right"]), str(found["of"]), f"{found['accuracy']:.1%} ± {100 * found['error']:4.1f}"])
    tokens, seconds = sum(a.n_generated for a in answers), sum(a.seconds for a in answers)
    lines = [columns(rows, right=[1, 2, 3]), "", f"{tokens:,} tokens written in {seconds:,.0f} s"]
    cut = sum(a.finish_reason == "length" for a in answers)
    if cut:
        lines.append(f"answers cut off at the limit, which count as wrong: {cut}")
    refused = [a.finish_reason for a in answers if a.finish_reason.startswith("refused")]
    if refused:
        first = refused[0].removeprefix("refused: ")
        lines.append(f"questions refused, which count as wrong: {len(refused)}; the first: {first}")
    return "\n".join(lines)
