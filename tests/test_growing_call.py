"""What is given out of a tool call before it is closed: pieces that the whole call's arguments begin with, byte for byte."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from generated_tool_calls import Case, make_case

from glmrun.chat.answer import Answer
from glmrun.chat.chunk import Chunk
from glmrun.chat.stream import ChatStream, Delta
from glmrun.engine.chat import answer_of

PROPERTIES: dict[str, Any] = {
    "path": {"type": "string"}, "text": {"enum": ["a", "b"]}, "days": {"type": "integer"}, "any": {},
    "maybe": {"type": ["string", "null"]},
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "write", "parameters": {"type": "object", "properties": PROPERTIES}}}]


def deltas_of(text: str, cuts: list[int], tools: list[dict], cut_off: bool = False) -> tuple[list[Delta], ChatStream]:
    stream = ChatStream(None, False, tools)
    deltas = [stream.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [*deltas, stream.finish(cut_off)], stream


def given_out(deltas: list[Delta]) -> tuple[dict[str, tuple[str, str]], list[dict]]:
    """({id: name, arguments} as far as pieces said, whole calls); no piece comes behind its call or another one's."""
    pieces: dict[str, tuple[str, str]] = {}
    calls: list[dict] = []
    for delta in deltas:
        calls += delta.tool_calls or []
        if (piece := delta.call_piece) is not None:
            assert piece.arguments and piece.id not in [call["id"] for call in calls]
            name, said = pieces.get(piece.id, (piece.name, ""))
            assert name == piece.name and (piece.id not in pieces or piece.id == list(pieces)[-1])
            pieces[piece.id] = name, said + piece.arguments
    return pieces, calls


def held_to_the_whole(case: Case, chance: random.Random, cut_off: bool) -> int:
    """Read a case in random pieces and at once; the number of characters that came before their call was closed."""
    cuts = sorted(chance.sample(range(1, len(case.written)), min(chance.randint(0, 60), len(case.written) - 1)))
    deltas, stream = deltas_of(case.written, cuts, case.tools, cut_off)
    pieces, calls = given_out(deltas)
    whole = {call["id"]: call["function"] for call in calls}
    for call_id, (name, said) in pieces.items():
        if call_id in whole:
            assert name == whole[call_id]["name"] and whole[call_id]["arguments"].startswith(said), case.written
        else:
            assert stream.has_begun_call and call_id == list(pieces)[-1], case.written
    [once, rest], _ = deltas_of(case.written, [], case.tools, cut_off)
    at_once = [call["function"] for delta in (once, rest) for call in delta.tool_calls or ()]
    assert [call["function"] for call in calls] == at_once, case.written
    return sum(len(said) for _, said in pieces.values())


@pytest.mark.parametrize("damage", [None, "dropped", "moved", "doubled"])
def test_pieces_begin_what_the_whole_answer_calls(damage: str | None) -> None:
    chance, n_early = random.Random(8), 0
    for _ in range(400):
        n_early += held_to_the_whole(make_case(chance, damage), chance, cut_off=False)
    assert n_early > 2000


def test_what_generation_cuts_off_stays_a_beginning() -> None:
    chance, n_early = random.Random(9), 0
    for n in range(400):
        case = make_case(chance, [None, "dropped", "moved", "doubled"][n % 4])
        case = replace(case, written=case.written[: chance.randrange(2, len(case.written) + 1)])
        n_early += held_to_the_whole(case, chance, cut_off=True)
    assert n_early > 2000


def pair(key: str, value: str) -> str:
    return f"<arg_key>{key}</arg_key><arg_value>{value}</arg_value>"


def steps(text: str) -> list[str]:
    """What is given out behind each character that adds something."""
    deltas, _ = deltas_of(text, list(range(1, len(text))), TOOLS)
    return [delta.call_piece.arguments for delta in deltas if delta.call_piece]


def test_a_text_is_given_out_as_it_grows() -> None:
    assert steps("<tool_call>write" + pair("path", 'a"\n\nb\n') + "</tool_call>") == ['{"path": "a', '\\"', "\\n\\nb"]


def test_other_values_come_with_the_next_text() -> None:
    others = pair("days", "3") + pair("any", "[1]")
    written = "<tool_call>write" + others + pair("text", "b") + pair("maybe", "null") + pair("path", "é")
    assert steps(written) == ['{"days": 3, "any": [1], "text": "b', '", "maybe": null, "path": "é']


@pytest.mark.parametrize(
    "written",
    [
        "<tool_call>unknown" + pair("path", "a"),
        "<tool_call>write" + pair("other", "1") + pair("path", "a"),
        "<tool_call>write" + pair("path", "  <think>a"),
        "<tool_call>write" + pair("days", "<b> <tool_call>") + pair("path", "a"),
        "<tool_call>write" + pair("days", "1") + pair("days", "2") + pair("path", "a"),
        '<tool_call>{"name": "write", "arguments": {"path": "a"}}',
        "<tool_call>write</arg_key>" + pair("path", "a"),
        "write" + pair("path", "a"),
    ],
)
def test_what_may_have_been_meant_otherwise_waits(written: str) -> None:
    assert steps(written + "</tool_call>") == []


def test_of_equal_keys_the_first_counts_since_it_is_given_out() -> None:
    deltas, _ = deltas_of("<tool_call>write" + pair("path", "a") + pair("path", "b") + "</tool_call>", [], TOOLS)
    assert json.loads(given_out(deltas)[1][0]["function"]["arguments"]) == {"path": "a"}


def test_half_surrogate_pairs_are_escaped_one_by_one() -> None:
    deltas, _ = deltas_of("<tool_call>write" + pair("path", "é\ud800x") + pair("any", '"\\ud800"') + "</tool_call>", [], TOOLS)
    assert given_out(deltas)[1][0]["function"]["arguments"] == '{"path": "é\\ud800x", "any": "\\ud800"}'


class Letters(ChatStream):
    """Its tokens are letters."""

    def push(self, token_id: int) -> Delta:
        return self.feed(chr(token_id))


class NoTurns:
    """Turns that are not kept."""

    def written(self, *_: Any) -> None:
        return None


def chunks_of(text: str, one_call: bool = False) -> list[Chunk]:
    tokens: Iterator[Chunk] = (Chunk(token=ord(letter)) for letter in text)
    ended = iter([Chunk(finish_reason="stop")])
    stream = Letters(None, False, TOOLS)
    chunks = (chunk for part in (tokens, ended) for chunk in part)
    return list(answer_of(NoTurns(), [], stream, chunks, one_call))  # type: ignore[arg-type]


def test_an_answer_that_ends_inside_a_begun_call_was_cut_off() -> None:
    written = "<tool_call>write" + pair("path", "a")
    for text, ends in [(written, "tool_calls"), (written[:-3], "length"), ("<tool_call>wri", "stop")]:
        chunks = chunks_of(text)
        assert chunks[-1].finish_reason == ends and any(chunk.call_piece for chunk in chunks) == (ends != "stop")


def test_behind_the_only_call_no_other_one_begins() -> None:
    both = ("<tool_call>write" + pair("path", "a") + "</tool_call>") * 2
    for one_call in (False, True):
        answer, chunks = Answer(), chunks_of(both, one_call)
        for chunk in chunks:
            answer.add(chunk)
        assert len(answer.tool_calls) == 2 - one_call and answer.finish_reason == "tool_calls"
        assert len({chunk.call_piece.id for chunk in chunks if chunk.call_piece}) == 2 - one_call
