"""Streams of Anthropic's, OpenAI's Responses' and Ollama's interface, held to their grammars on 2,000 generated answers."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from support.event_grammars import messages_answer, ollama_answer, responses_answer
from support.generated_answers import chunks_of, written

from glmrun.chat.answer import Answer, collect
from glmrun.chat.chunk import Chunk
from glmrun.server import anthropic, ollama, responses
from glmrun.server.interface import Interface, Writer
from quant.errors import UserError

Said = tuple[str, str, list[tuple[str, str, dict[str, Any]]]]  # thinking, text, calls: id, name, arguments
QUESTION = [{"role": "user", "content": "q"}]


def of_message(message: dict[str, Any]) -> Said:
    blocks = message["content"]
    said = ["".join(b[kind] for b in blocks if b["type"] == kind) for kind in ("thinking", "text")]
    return said[0], said[1], [(b["id"], b["name"], b["input"]) for b in blocks if b.get("input") is not None]


def of_response(response: dict[str, Any]) -> Said:
    output = response["output"]
    thought = "".join(
        part["text"] for item in output if item["type"] == "reasoning" for part in item.get("content") or item["summary"]
    )
    text = "".join(part["text"] for item in output if item["type"] == "message" for part in item["content"])
    calls = [item for item in output if item["type"] == "function_call" and item["status"] == "completed"]
    return thought, text, [(item["call_id"], item["name"], json.loads(item["arguments"])) for item in calls]


def of_ollama(answer: dict[str, Any]) -> Said:
    message = answer["message"]
    calls = [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", [])]
    return message.get("thinking", ""), message["content"], calls


Read = tuple[Interface, dict[str, Any], Callable[..., dict[str, Any]], Callable[[dict[str, Any]], Said]]
INTERFACES: dict[str, Read] = {
    "messages": (anthropic.Messages(), {"messages": QUESTION, "thinking": {"type": "adaptive"}}, messages_answer, of_message),
    "responses": (responses.Responses(), {"input": "q"}, responses_answer, of_response),
    "summaries": (responses.Responses(), {"input": "q", "reasoning": {"summary": "auto"}}, responses_answer, of_response),
    "chat": (ollama.OllamaChat(), {"messages": QUESTION}, ollama_answer, of_ollama),
}  # fmt: skip


@pytest.fixture(params=INTERFACES)
def interface(request: pytest.FixtureRequest) -> Read:
    return INTERFACES[request.param]


def streamed(writer: Writer, chunks: Sequence[Chunk], rng: random.Random) -> Iterator[bytes]:
    """What goes out, with waiting events wherever a server may put one."""
    yield from writer.begin()
    for chunk in chunks:
        yield from writer.waiting() if rng.random() < 0.1 else ()
        yield from writer.push(0, chunk)


def expected(chunks: Sequence[Chunk]) -> Said:
    answer = Answer()
    collect(chunks, answer)
    calls = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])) for call in answer.tool_calls]
    return answer.reasoning, answer.text, calls


def test_2000_answers_arrive_as_they_were_written_streamed_and_whole(interface: Read) -> None:
    asks, body, read, of = interface
    seen = set()
    for seed in range(2000):
        rng = random.Random(seed)
        chunks = list(chunks_of(written(rng), rng))
        writer = asks.asked(body, "glm").writer
        answer = read([*streamed(writer, chunks, rng), *writer.end()])
        whole = asks.asked(body, "glm").writer.whole([chunks])
        assert of(answer) == of(whole) == expected(chunks), seed
        for reason in ("stop_reason", "status", "done_reason"):
            assert answer.get(reason) == whole.get(reason)
        seen |= {answer.get("stop_reason"), answer.get("status"), answer.get("done_reason"), len(expected(chunks)[2])}
    assert seen >= {0, 1, 2, 3} and len(seen - {None}) >= 6


def test_a_failure_anywhere_ends_the_stream_as_its_grammar_says(interface: Read) -> None:
    asks, body, read, _ = interface
    ends = set()
    for seed in range(400):
        rng = random.Random(seed)
        chunks = list(chunks_of(written(rng), rng))
        writer = asks.asked(body, "glm").writer
        sent = list(streamed(writer, chunks[: rng.randrange(len(chunks))], rng))
        answer = read([*sent, *writer.fail(UserError("out of\nmemory"))])
        ends.add(bool(answer.get("error")))
    assert True in ends


def test_the_state_machines_refuse_what_clients_refuse() -> None:
    """Each of these was seen in the wild and cost a client its turn."""
    asks, body, read, _ = INTERFACES["messages"]
    chunks = [Chunk(reasoning="r"), Chunk(text="t", finish_reason="stop")]
    writer = asks.asked(body, "glm").writer
    sent = [*streamed(writer, chunks, random.Random(1)), *writer.end()]
    without_signature = [event for event in sent if b"signature_delta" not in event]
    begun_twice = [event for event in sent for _ in range(1 + (b"content_block_start" in event))]
    thinking_in_text = [event.replace(b'"text_delta", "text"', b'"thinking_delta", "thinking"') for event in sent]
    for wrong in (without_signature, begun_twice, thinking_in_text, sent[:-1], sent[1:], [*sent, sent[-1]]):
        assert wrong != sent
        with pytest.raises(AssertionError):
            read(wrong)
    asks, body, read, _ = INTERFACES["responses"]
    writer = asks.asked(body, "glm").writer
    sent = [*streamed(writer, chunks, random.Random(1)), *writer.end()]
    for i in range(len(sent)):
        with pytest.raises(AssertionError):
            read(sent[:i] + sent[i + 1 :])


def test_every_answer_can_be_sent_back(interface: Read) -> None:
    """The next request holds the answer: nothing of it is lost or changed."""
    asks, body, _, _ = interface
    for seed in range(300):
        rng = random.Random(seed)
        chunks = list(chunks_of(written(rng), rng))
        said = asks.asked(body, "glm").writer.whole([chunks])
        if isinstance(asks, responses.Responses):
            history: dict[str, Any] = {"input": [*QUESTION, *said["output"]]}
        else:
            history = {"messages": [*QUESTION, said.get("message", {"role": "assistant", **said})]}
        turns = [turn for turn in asks.asked(history, "glm").requests[0].messages if turn["role"] == "assistant"]
        calls = [(call["id"], *call["function"].values()) for turn in turns for call in turn.get("tool_calls", [])]
        said_again = "".join(t["reasoning_content"] for t in turns), "".join(t["content"] for t in turns), calls
        assert said_again == expected(chunks)
