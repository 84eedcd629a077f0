"""Rounds of tool calls: when they end, and what is kept."""

from typing import Any

import pytest

from glmrun.chat.answer import Answer
from glmrun.chat.tool_loop import MAX_ROUNDS, Rounds

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


def loop(reasons: list[str], stopped_at: int | None = None, tools: bool = True) -> tuple[list[str | None], str, list[str]]:
    """(how each answer ended, how the loop ended, what happened) when the answers end like this, the last one ever again."""
    happened: list[str] = []

    def carry_out(calls: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        assert calls == [CALL]
        happened.append("carry out")
        return [{"role": "tool", "tool_call_id": "1", "content": "x"}], happened.count("carry out") == stopped_at

    def keep(answer: Answer, results: list[dict[str, Any]]) -> None:
        assert answer.tool_calls == [CALL] and [message["tool_call_id"] for message in results] == ["1"]
        happened.append("keep")

    answers, rounds = [], Rounds(carry_out if tools else None, keep)
    for answer in rounds:
        reason = reasons[min(happened.count("ask"), len(reasons) - 1)]
        happened.append("ask")
        answers.append(answer)
        answer.finish_reason, answer.tool_calls = reason, [CALL] if reason == "tool_calls" else []
    return [answer.finish_reason for answer in answers], rounds.ending, happened


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_an_answer_without_calls_ends_it(reason: str) -> None:
    assert loop([reason]) == ([reason], "answered", ["ask"])
    assert loop(["tool_calls", reason]) == (["tool_calls", reason], "answered", ["ask", "carry out", "keep", "ask"])


def test_without_tools_calls_are_the_answer() -> None:
    assert loop(["tool_calls"], tools=False) == (["tool_calls"], "answered", ["ask"])


def test_a_call_that_the_user_stops_is_kept_and_ends_it() -> None:
    ends, ending, happened = loop(["tool_calls"], stopped_at=2)
    assert (ends, ending) == (["tool_calls", "cancelled"], "stopped") and happened[-1] == "keep"


def test_a_model_that_never_answers_is_left() -> None:
    ends, ending, happened = loop(["tool_calls"])
    assert (ends, ending) == (["tool_calls"] * MAX_ROUNDS, "too many rounds") and happened.count("keep") == MAX_ROUNDS
