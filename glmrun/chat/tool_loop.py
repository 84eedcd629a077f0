"""The loop over rounds of tool calls: ask, carry out what the answer calls, ask again."""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Literal

from glmrun.chat.answer import Answer

MAX_ROUNDS = 25  # of calls for one question: a model that has lost its way stops here

Ending = Literal["answered", "stopped", "too many rounds"]
CarryOut = Callable[[list[dict[str, Any]]], tuple[list[dict[str, Any]], bool]]


def ask_with_tools(
    each: Iterable[Answer], carry_out: CarryOut | None, keep: Callable[[Answer, list[dict[str, Any]]], None]
) -> tuple[list[Answer], Ending]:
    """Ask until an answer calls nothing; returns all answers, at least one, and how it ended.

    each        answers without end, each made when it is asked for: to the conversation as it is by then
    carry_out   calls -> (a message with the result of each, whether the user stopped them); None: calls are the caller's business
    keep        takes an answer with calls, and their results, into the conversation
    """
    answers: list[Answer] = []
    for answer in islice(each, MAX_ROUNDS):
        answers.append(answer)
        if carry_out is None or answer.finish_reason != "tool_calls":
            return answers, "answered"
        results, stopped = carry_out(answer.tool_calls)
        keep(answer, results)
        if stopped:
            answer.finish_reason = "cancelled"
            return answers, "stopped"
    return answers, "too many rounds"
