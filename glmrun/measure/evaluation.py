"""Questions with answers that a program can check, asked one after another or several at a time.

A suite is a file of JSON lines, one question each:

    {"id": "capitals 1", "skill": "capitals", "messages": [{"role": "user", "content": "What is the capital of Norway?"}],
     "check": "regex", "answer": "\\\\bOslo\\\\b", "thinking": false, "max_tokens": 200}

messages    OpenAI's; `prompt`, a text, stands for one message of the user. tools: OpenAI's, or absent
check       exact (runs of white space count as one space), regex (found anywhere), number (the last one in the answer), or
            tool_call (what is expected: {"name": ..., "arguments": {...}}, or a list of such calls, in any order)
id, skill, thinking, clear_thinking and max_tokens may be absent: the line's number, "all", true, true, no limit.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmrun.chat.answer import Answer, collect
from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from quant.errors import Interrupted, UserError
from quant.text import decode_text

if TYPE_CHECKING:
    Answerer = Callable[[ChatRequest], Iterator[Chunk]]  # a ChatModel's answer()

CHECKS: dict[str, Any] = {"exact": str, "regex": str, "number": (int, float), "tool_call": (dict, list)}
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")
_KEYS = ("id", "skill", "messages", "prompt", "tools", "thinking", "clear_thinking", "max_tokens", "check", "answer")


@dataclass(frozen=True)
class Question:
    """One line of a suite."""

    id: str
    skill: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    thinking: bool
    clear_thinking: bool
    max_tokens: int | None
    check: str
    answer: Any


@dataclass(frozen=True)
class Answered:
    """What became of a question; the fields of a line of the results. finish_reason: chat()'s, or why it was refused."""

    id: str
    skill: str
    right: bool
    text: str
    reasoning: str
    tool_calls: list[dict[str, Any]]
    finish_reason: str
    n_prompt: int
    n_generated: int
    seconds: float


def read_suite(path: Path) -> list[Question]:
    """The questions of a file; raises UserError that names the line and what is wrong with it (OSError if it can't be read)."""
    lines = decode_text(path.read_bytes(), str(path)).split("\n")
    questions: dict[str, Question] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            question = _question(json.loads(line), number)
            if question.id in questions:
                raise ValueError(f"another question has the id {question.id!r}, too")
        except json.JSONDecodeError as why:
            raise UserError(f"{path}, line {number}: not valid JSON: {why.msg}, character {why.colno}") from None
        except (ValueError, RecursionError) as why:
            raise UserError(f"{path}, line {number}: {why}") from None
        questions[question.id] = question
    if not questions:
        raise UserError(f"{path}: there is no question in it")
    return list(questions.values())


def _question(line: Any, number: int) -> Question:
    if not isinstance(line, dict) or not line.keys() <= set(_KEYS):
        raise ValueError(f"expected an object with keys among {', '.join(_KEYS)}")
    check, answer, prompt = line.get("check", "exact"), line.get("answer"), line.get("prompt")
    messages = line.get("messages") if prompt is None else [{"role": "user", "content": prompt}]
    if (prompt is None) == ("messages" not in line) or not isinstance(prompt, str | None) or not isinstance(messages, list):
        raise ValueError("expected either messages, a list, or prompt, a text")
    if not isinstance(check, str) or check not in CHECKS:
        raise ValueError(f"check is {check!r}; expected {', '.join(CHECKS)}")
    if not isinstance(answer, CHECKS[check]) or isinstance(answer, bool):
        raise ValueError(f"answer is {answer!r}, which is nothing that check {check} takes")
    if check == "tool_call" and not (
        answer and all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in _calls(answer))
    ):
        raise ValueError("an answer that is a tool call has a name, and arguments")
    if check == "regex":
        try:
            re.compile(answer)
        except re.error as why:
            raise ValueError(f"answer {answer!r} is not a regular expression: {why}") from None
    thinking, clear, limit, tools = (line.get(key) for key in ("thinking", "clear_thinking", "max_tokens", "tools"))
    if not isinstance(thinking, bool | None) or not isinstance(clear, bool | None):
        raise ValueError("thinking and clear_thinking are true or false")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"max_tokens is {limit!r}; expected a whole number above 0")
    name, skill = str(line.get("id", number)), str(line.get("skill", "all"))
    if any("\ud800" <= character <= "\udfff" for character in name + skill):
        raise ValueError(f"id and skill are whole characters, not {name!r} and {skill!r}")
    return Question(
        name, skill, messages, tools, thinking is not False, clear is not False,
        limit, check, answer,
    )  # fmt: skip


def is_right(question: Question, text: str, tool_calls: Sequence[dict[str, Any]]) -> bool:
    """Whether an answer passes its question's check."""
    if question.check == "tool_call":
        made = [_call(call) for call in tool_calls]
        expected = [(call["name"], call.get("arguments", {})) for call in _calls(question.answer)]
        return len(made) == len(expected) and all(made.count(call) == expected.count(call) for call in expected)
    if question.check == "exact":
        return not tool_calls and text.split() == question.answer.split()
    if question.check == "regex":
        return re.search(question.answer, text) is not None
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return bool(numbers) and math.isclose(float(numbers[-1].replace(",", "")), question.answer, rel_tol=1e-9, abs_tol=1e-9)


def _calls(answer: dict[str, Any] | list[Any]) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]


def _call(call: dict[str, Any]) -> tuple[str, Any]:
    """(name, arguments) of OpenAI's shape, where arguments travel as JSON text; a server may send what is none."""
    text = call["function"]["arguments"]
    try:
        return call["function"]["name"], json.loads(text or "{}")
    except (ValueError, RecursionError):
        return call["function"]["name"], text


def ask(answer: "Answerer", question: Question, seed: int, max_tokens: int | None = None, **sampling: Any) -> Answered:
    """Put one question; the smaller of both limits holds. Only an answer that came to its own end can be right."""
    limit = min((n for n in (question.max_tokens, max_tokens) if n is not None), default=None)
    request = ChatRequest(
        question.messages, question.tools, question.thinking, question.clear_thinking, max_tokens=limit,
        sampling={"seed": seed, **sampling},
    )  # fmt: skip
    said, began = Answer(), time.perf_counter()
    try:
        collect(answer(request), said)
    except Interrupted:
        raise
    except UserError as why:
        said.finish_reason = f"refused: {why}"
    right = said.finish_reason in ("stop", "tool_calls") and is_right(question, said.text, said.tool_calls)
    counts, seconds = said.stats or Stats(), round(time.perf_counter() - began, 3)
    return Answered(
        question.id, question.skill, right, said.text, said.reasoning, said.tool_calls, said.finish_reason or "",
        counts.n_prompt, counts.n_generated, seconds,
    )  # fmt: skip


def evaluate(
    answer: "Answerer",
    questions: Sequence[Question],
    answered: set[str],
    seed: int,
    max_tokens: int | None = None,
    parallel: int = 1,
    **sampling: Any,
) -> Iterator[Answered]:
    """Ask what has not been answered, so many at a time, until an answer is cancelled; what is ready comes first.

    A question's seed is its place's, wherever a run begins. Raises Interrupted if the model is gone; its question is not answered.
    """
    waiting = [(i, question) for i, question in enumerate(questions) if question.id not in answered]
    if parallel == 1:  # on the thread that hears Ctrl-C
        asked = (ask(answer, question, seed + i, max_tokens, **sampling) for i, question in waiting)
        yield from takewhile(lambda found: found.finish_reason != "cancelled", asked)
        return
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="question")
    try:
        futures = [pool.submit(ask, answer, question, seed + i, max_tokens, **sampling) for i, question in waiting]
        ready = (future.result() for future in as_completed(futures))
        yield from takewhile(lambda found: found.finish_reason != "cancelled", ready)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def by_skill(answers: Sequence[Answered]) -> dict[str, dict[str, Any]]:
    """{skill: {"right", "of", "accuracy", "error"}}, by name and "all" at the end; error: the accuracy's standard error."""
    found = {skill: [a.right for a in answers if a.skill == skill] for skill in sorted({a.skill for a in answers} - {"all"})}
    return {skill: _share(some) for skill, some in {**found, "all": [a.right for a in answers]}.items()}


def _share(right: list[bool]) -> dict[str, Any]:
    n, share = len(right), (sum(right) + 1) / (len(right) + 2)  # Laplace's: 0 of 3 is not certainly 0
    error = math.sqrt(share * (1 - share) / (n + 2))
    return {"right": sum(right), "of": n, "accuracy": round(sum(right) / max(1, n), 4), "error": round(error, 4)}
