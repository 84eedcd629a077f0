"""`glmrun run`: one question, one answer."""

import json
import os
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmrun.cli import loading, options
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.terminal.stream import Answer


def run(
    first: Annotated[
        str | None,
        options.MODEL,
    ] = None,
    second: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The question.", show_default=False)] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The question, given by name.")] = None,
    system: options.System = None,
    max_tokens: options.MaxTokens = None,
    temp: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    think: options.Think = True,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, reasoning, tool_calls, usage, timings.")
    ] = False,
    stats: Annotated[bool, typer.Option("--stats", help="Print counts and speeds to standard error.")] = False,
) -> None:
    """Ask one question and print the answer.

    A single argument is the model if it is nano, ends in .gguf, names an existing file or is the whole name of a pulled model;
    otherwise it is the question.
    Text on standard input is added to the question. The answer goes to standard output; thinking, progress and statistics
    go to standard error. In a pipe or a file the answer is the model's text exactly; a terminal sees control characters
    spelled out. Ctrl-C stops the answer and keeps what was printed.

    \b
    Examples:
      glmrun run "What is 17 + 25?"
      glmrun run GLM-4.7-Flash-Q4_K_M.gguf "Name three rivers" --no-think -n 100
      git diff | glmrun run model.gguf "Write a commit message" --temp 0 > message.txt
    """
    model_name, question = _split_arguments(first, second, prompt)
    question = _with_stdin(question)
    messages = [{"role": "user", "content": question}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": options.text_argument(system, "the system prompt")})

    began = time.monotonic()
    model = loading.load_model(loading.resolve_model(model_name), ctx, threads, kv_type)
    load_seconds = time.monotonic() - began

    from glmrun.terminal.console import note
    from glmrun.terminal.interrupt import interruptible
    from glmrun.terminal.stream import Answer, collect, finish_note, show_answer, stats_line

    chunks = model.chat(
        messages, thinking=think, max_tokens=max_tokens, temperature=temp, top_p=top_p, top_k=top_k, min_p=min_p,
        repeat_penalty=repeat_penalty, seed=seed,
    )  # fmt: skip
    answer = Answer()
    with closing(interruptible(model, chunks)) as stream:
        (collect if as_json else show_answer)(stream, answer)
    if as_json:
        print(json.dumps(_as_json(answer, str(model.path), load_seconds), ensure_ascii=False, indent=2))
    elif ending := finish_note(answer, model.n_ctx):
        note(ending)
    if stats and answer.stats is not None:
        note(f"{stats_line(answer.stats)} · loaded in {load_seconds:.1f} s")
    if answer.finish_reason == "cancelled":
        raise typer.Exit(130)


def _split_arguments(first: str | None, second: str | None, prompt: str | None) -> tuple[str | None, str | None]:
    """(model, question) from what the command line has."""
    if second is not None:
        if prompt is not None:
            raise UserError("the question is given twice, by -p and as an argument; leave one out", 2)
        return first, second
    if first is None or _names_a_model(first):
        return first, prompt
    if prompt is not None:
        return first, prompt  # -p is the question, so this can only be a model: let it be missed by name
    return None, first


def _names_a_model(text: str) -> bool:
    if text == "nano" or text.endswith(".gguf") or os.path.exists(text):
        return True
    if "/" not in text or " " in text:
        return False
    from glmrun.local_models import local_models

    return any(text.casefold() == model.name.casefold() for model in local_models())


def _with_stdin(question: str | None) -> str:
    """The question with the text on standard input after it, when that is not a keyboard."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else options.read_stdin().rstrip("\r\n")
    parts = [options.text_argument(part, "the prompt") for part in (question, piped) if part]
    if not parts:
        raise UserError('nothing to ask; write glmrun run [MODEL] "question", or pipe text into it', 2)
    return "\n\n".join(parts)


def _as_json(answer: "Answer", path: str, load_seconds: float) -> dict[str, Any]:
    """One answer under the names that OpenAI's and llama.cpp's servers use; times in milliseconds."""
    stats = answer.stats
    assert stats is not None
    read = stats.n_prefilled - stats.n_cached
    return {
        "model": path,
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tool_calls": answer.tool_calls,
        "finish_reason": answer.finish_reason,
        "usage": {
            "prompt_tokens": stats.n_prompt,
            "cached_tokens": stats.n_cached,
            "completion_tokens": stats.n_generated,
            "total_tokens": stats.n_prompt + stats.n_generated,
        },
        "timings": {
            "load_ms": round(load_seconds * 1000, 3),
            "prompt_ms": round(stats.prompt_seconds * 1000, 3),
            "prompt_per_second": _per_second(read, stats.prompt_seconds),
            "predicted_ms": round(stats.generate_seconds * 1000, 3),
            "predicted_per_second": _per_second(stats.n_generated, stats.generate_seconds),
        },
    }


def _per_second(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
