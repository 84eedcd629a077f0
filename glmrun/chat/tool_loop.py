"""The loop over rounds of tool calls: ask, carry out what the answer calls, ask again."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from glmrun.chat.answer import Answer

MAX_ROUNDS = 25  # of calls for one question: a model that has lost its way stops here

CarryOut = Callable[[list[dict[str, Any]]], tuple[list[dict[str, Any]], bool]]


@dataclass
class Rounds:
    """Answers, at least one, each to be filled in before the next is asked for, until one calls nothing.

    carry_out   calls -> (a message with the result of each, whether the user stopped them); None: calls are the caller's business
    keep        takes an answer with calls, and their results, into the conversation
    ending      how it ended
    """

    carry_out: CarryOut | None
    keep: Callable[[Answer, list[dict[str, Any]]], None]
    ending: Literal["answered", "stopped", "too many rounds"] = "answered"

    def __iter__(self) -> Iterator[Answer]:
        for _ in range(MAX_ROUNDS):
            answer = Answer()
            yield answer
            if self.carry_out is None or answer.finish_reason != "tool_calls":
                return
            results, stopped = self.carry_out(answer.tool_calls)
            self.keep(answer, results)
            if stopped:
                answer.finish_reason = "cancelled"
                self.ending = "stopped"
                return
        self.ending = "too many rounds"
