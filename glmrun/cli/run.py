"""`glmrun run`: one question, one answer."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from glmrun.chat.answer import Answer, collect
from glmrun.chat.chunk import Chunk
from glmrun.chat.request import ChatModel, ChatRequest
from glmrun.chat.tool_loop import Rounds
from glmrun.cli import loading, options
from glmrun.cli.question import model_and_question, with_texts
from glmrun.cli.run_log import RunLog
from glmrun.repl.tool_calls import TOO_MANY_ROUNDS, ToolCalls
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import interruptible
from glmrun.terminal.sanitize import json_text, visible
from glmrun.terminal.tool_blocks import show_tool_call
from quant.errors import UserError


def run(
    context: typer.Context,
    first: Annotated[str | None, loading.MODEL] = None,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="The question; with -T, key=value.", show_default=False)
    ] = None,
    named: loading.Named = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="The question, given by name.")] = None,
    template: Annotated[
        str | None, typer.Option("-T", "--template", metavar="NAME", help="A prompt that you keep (see glmrun prompts).")
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "-f", "--file", metavar="FILE", help="Add the text of a file, of a folder's files, of '*.py'; may be repeated."
        ),
    ] = None,
    go_on: Annotated[bool, typer.Option("--continue", help="Go on from the last call's question and answer.")] = False,
    log: options.Log = True,
    persona: options.Persona = None,
    system: options.System = None,
    preset: options.Preset = None,
    max_tokens: options.MaxTokens = None,
    temp: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    think: options.Think = True,
    think_budget: options.ThinkBudget = None,
    hide_thinking: Annotated[
        bool, typer.Option("--hide-thinking", "--hidethinking", help="Do not print the thinking to standard error.")
    ] = False,
    ctx: options.Ctx = None,
    threads: options.Threads = None,
    kv_type: options.KvType = None,
    draft: options.Draft = "auto",
    draft_exact: options.DraftExact = False,
    url: options.Url = None,
    tools_file: options.ToolsFile = None,
    approve: options.Approval = "ask",
    answer_format: Annotated[Literal["text", "json"], typer.Option("--format", help="json: the answer is a JSON object.")] = "text",
    json_schema: Annotated[
        str | None, typer.Option("--json-schema", metavar="FILE|TEXT", help="The answer is JSON of this schema.")
    ] = None,
    extract: Annotated[bool, typer.Option("-x", "--extract", help="Print the first code block of the answer only.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: text, reasoning, tool_calls, usage, timings.")
    ] = False,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    stats: Annotated[bool, typer.Option("--stats", "--verbose", help="Print counts and speeds to standard error.")] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print the prompt as the model reads it to standard error.")
    ] = False,
) -> None:
    """Ask one question and print the answer.

    A single argument is the model if it is nano, ends in .gguf, names an existing file or is the whole name of a pulled model;
    otherwise, and always with --url or -m, it is the question. Files (-f) and the text on standard input are added to it.

    The answer goes to standard output; thinking, tool calls, progress and statistics go to standard error. In a pipe or a file
    the answer is the model's text exactly; a terminal sees control characters spelled out. Ctrl-C stops the answer, keeps what
    was printed and exits with 130.

    Each call is kept with its answer (glmrun sessions --runs shows them; --no-log, or the setting log = false, keeps none), so
    --continue can go on from the last one. -T takes a prompt from a file NAME.md with {{variables}}: glmrun prompts lists them.
    In a --json-schema an object has the named properties, all of them and no others, unless it says something else itself.

    --tools runs functions of a Python file when the model calls them, in a process of their own, 30 seconds each at most; a
    function needs a docstring and a type for each parameter. --url reads its key from the variable GLMRUN_API_KEY. With GLMRUN_URL
    set, every call asks that server, unless MODEL is a file.

    \b
    Examples:
      glmrun run "What is 17 + 25?"
      glmrun run GLM-4.7-Flash-Q4_K_M.gguf "Name three rivers" --no-think -n 100
      git diff | glmrun run model.gguf "Write a commit message" --temp 0 > message.txt
      glmrun run model.gguf "What differs?" -f old.py -f new.py
      glmrun run "And in one word?" --continue
      glmrun run -T review language=Python -f 'src/*.py'
      glmrun run model.gguf "A Python function that reverses a string" -x > reverse.py
      glmrun run model.gguf "Ada is 36" --json-schema '{"type": "object", "properties": {"age": {"type": "integer"}}}'
      glmrun run model.gguf "What is the weather in Rome?" --tools weather.py --approve auto
      glmrun run --url http://localhost:8000/v1 "Name three rivers"
    """
    url = options.server_url(context, named or first)
    if url is not None:
        options.refuse_beside_url(context, *options.ENGINE)
    schema = _schema(answer_format, json_schema)
    if extract and (as_json or schema is not None):
        raise typer.BadParameter("-x prints a code block as it is, so it goes with neither --json nor a JSON answer")
    if tools_file is not None and schema is not None:
        raise typer.BadParameter("--tools and a JSON answer exclude each other; leave one out")
    words = [word for word in (first, *(more or [])) if word is not None]
    model_name, question = model_and_question(words, named, prompt, template, url is not None)
    text = with_texts(question, files or [])
    kept = RunLog.begin(log, go_on, options.system_prompt(context, go_on))
    messages = kept.asked(text)
    form = _Form(as_json, extract, hide_thinking, no_stream, markdown=not extract and schema is None)

    with ExitStack() as stack:
        calls = stack.enter_context(ToolCalls(tools_file, approve)) if tools_file is not None else None
        began = time.monotonic()
        model = loading.open_model(model_name or kept.model_name(url), url, **options.of_engine(context))
        load_seconds = time.monotonic() - began
        request = ChatRequest.of(
            messages, tools=calls.tools.declarations if calls else None, thinking=think, think_budget=think_budget,
            json_schema=schema, **options.sampling(context),
        )  # fmt: skip
        if show_prompt:
            print(visible(model.prompt_text(request)), file=sys.stderr, flush=True)
        answers = _answers(model, request, calls, form, messages)
        kept.write(model, messages)
    _report(answers, model, load_seconds, form, stats)
    _check(answers[-1], extract, schema)


@dataclass(frozen=True)
class _Form:
    """What of an answer is printed, and how."""

    as_json: bool  # later, and whole
    extract: bool
    hide_thinking: bool
    no_stream: bool
    markdown: bool

    def show(self, chunks: Iterator[Chunk], answer: Answer, with_calls: bool) -> None:
        """Print an answer as it comes, its tool calls too if nobody else does, and put it together: whole, whatever is printed."""
        from glmrun.terminal.answer import show_answer

        if self.as_json:
            collect(chunks, answer)
            return
        chunks = _added_to(answer, chunks)
        chunks = _without_thinking(chunks) if self.hide_thinking else chunks
        chunks = _first_code_block(chunks) if self.extract else chunks
        show_answer(_at_the_end(chunks) if self.no_stream else chunks, Answer(), markdown=self.markdown)
        for call in answer.tool_calls if with_calls else ():
            show_tool_call(call)


def _answers(
    model: ChatModel, request: ChatRequest, calls: ToolCalls | None, form: _Form, messages: list[dict[str, Any]]
) -> list[Answer]:
    """The model's answers: one, and another one after each round of tool calls. All are added to the messages."""

    def keep(answer: Answer, results: list[dict[str, Any]]) -> None:
        messages.extend([answer.message(), *results])

    answers, rounds = list[Answer](), Rounds(calls.results if calls else None, keep)
    for answer in rounds:
        answers.append(answer)
        chunks = model.answer(replace(request, messages=list(messages)))
        with interruptible(model, chunks):
            form.show(chunks, answer, with_calls=calls is None)  # with --tools they are shown when they are carried out
    if rounds.ending == "too many rounds":
        note(TOO_MANY_ROUNDS)
    if rounds.ending == "answered":
        messages.append(answers[-1].message())
    return answers


def _report(answers: list[Answer], model: ChatModel, load_seconds: float, form: _Form, stats: bool) -> None:
    """Say what the answer itself does not: all of it as JSON, how it ended, counts and speeds."""
    from glmrun.terminal.answer import finish_note, stats_line

    answer = answers[-1]
    if form.as_json:
        print(json_text(_as_json(answers, str(model.path), load_seconds)))
    elif ending := finish_note(answer, model.n_ctx):
        note(ending)
    if remark := getattr(model, "remark", ""):  # a server's
        note(remark)
    if stats and answer.stats is not None:
        note(f"{stats_line(answer.stats)} · loaded in {load_seconds:.1f} s")


def _check(answer: Answer, extract: bool, schema: dict[str, Any] | None) -> None:
    """Raise for an answer that was stopped or is not what was asked for."""
    if answer.finish_reason == "cancelled":
        raise typer.Exit(130)
    if extract and not _code_block(answer.text):
        raise UserError("the answer has no code block")
    if schema is not None and not _is_json(answer.text):
        raise UserError("the answer is not whole JSON" + (": it was cut off" if answer.finish_reason == "length" else ""))


def _schema(answer_format: str, text: str | None) -> dict[str, Any] | None:
    """The JSON schema of the answer, from the option's text or the file it names; None if the answer is free."""
    if text is None:
        return {"type": "object"} if answer_format == "json" else None
    where = "--json-schema"
    if text.strip() and not text.lstrip().startswith("{"):
        from glmrun.repl.attachments import read_text

        where, text = text, read_text(Path(text))
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as why:
        raise UserError(f"{where}: not valid JSON: {why}", "usage") from None
    if not isinstance(schema, dict):
        raise UserError(f"{where}: a JSON schema is an object", "usage")
    from glmrun.chat.schema import closed

    return closed(schema)


def _added_to(answer: Answer, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    for chunk in chunks:
        answer.add(chunk)
        yield chunk


def _without_thinking(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    for chunk in chunks:
        yield replace(chunk, reasoning="")


def _first_code_block(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks with no other text than the first code block's; they end with it."""
    from glmrun.terminal.code_block import FirstCodeBlock

    block = FirstCodeBlock()
    for chunk in chunks:
        text = block.feed(chunk.text) + (block.finish() if chunk.finish_reason is not None else "")
        yield replace(chunk, text=text)
        if block.closed:
            return


def _code_block(text: str) -> str:
    from glmrun.terminal.code_block import FirstCodeBlock

    block = FirstCodeBlock()
    return block.feed(text) + block.finish()


def _at_the_end(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks with all of the text in the last one."""
    text = ""
    for chunk in chunks:
        text += chunk.text
        yield replace(chunk, text="" if chunk.finish_reason is None else text)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _as_json(answers: list[Answer], label: str, load_seconds: float) -> dict[str, Any]:
    """All of it under the names that OpenAI's and llama.cpp's servers use; times in milliseconds.

    With tools there are several answers: texts and thoughts are joined, calls listed, counts and times added.
    """
    stats = [answer.stats for answer in answers if answer.stats is not None]
    n_prompt, n_cached, n_generated = (sum(getattr(s, name) for s in stats) for name in ("n_prompt", "n_cached", "n_generated"))
    n_read = sum(s.n_prefilled - s.n_cached for s in stats)
    prompt_seconds, generate_seconds = sum(s.prompt_seconds for s in stats), sum(s.generate_seconds for s in stats)
    return {
        "model": label,
        "text": "\n".join(answer.text for answer in answers if answer.text),
        "reasoning": "\n".join(answer.reasoning for answer in answers if answer.reasoning),
        "tool_calls": [call for answer in answers for call in answer.tool_calls],
        "finish_reason": answers[-1].finish_reason,
        "usage": {
            "prompt_tokens": n_prompt,
            "cached_tokens": n_cached,
            "completion_tokens": n_generated,
            "total_tokens": n_prompt + n_generated,
        },
        "timings": {
            "load_ms": round(load_seconds * 1000, 3),
            "prompt_ms": round(prompt_seconds * 1000, 3),
            "prompt_per_second": _per_second(n_read, prompt_seconds),
            "predicted_ms": round(generate_seconds * 1000, 3),
            "predicted_per_second": _per_second(n_generated, generate_seconds),
            "draft_n": sum(s.n_drafted for s in stats),
            "draft_n_accepted": sum(s.n_accepted for s in stats),
            "draft_mtp_n": sum(s.n_guessed for s in stats),
            "draft_mtp_n_accepted": sum(s.n_guessed_right for s in stats),
        },
    }


def _per_second(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
