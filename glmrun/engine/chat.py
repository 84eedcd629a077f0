"""Messages in, chunks of thinking, answer and tool calls out."""

from collections.abc import Iterator
from dataclasses import replace

from glmrun.chat.chunk import Chunk
from glmrun.chat.stream import ChatStream
from glmrun.chat.template import ChatFormat


def answer_of(chat_format: ChatFormat, prompt: list[int], stream: ChatStream, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """The chunks of generate.generate() with what their tokens say; the last one carries the turn as the model wrote it."""
    called = False
    written: list[int] = []
    for chunk in chunks:
        if chunk.token is not None and chunk.finish_reason is None:
            written.append(chunk.token)
            delta = stream.push(chunk.token)
        elif chunk.finish_reason is not None:
            delta = stream.finish()
        else:
            yield chunk
            continue
        called = called or bool(delta.tool_calls)
        reason = "tool_calls" if chunk.finish_reason == "stop" and called else chunk.finish_reason
        turn = chat_format.turns.written(prompt, written, stream.state) if reason else None
        yield replace(
            chunk, text=delta.text, reasoning=delta.reasoning, tool_calls=delta.tool_calls or None, finish_reason=reason,
            token_ids=turn,
        )  # fmt: skip
