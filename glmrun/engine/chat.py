"""Messages in, chunks of thinking, answer and tool calls out."""

from collections.abc import Iterator
from dataclasses import replace

from glmrun.chat.chunk import Chunk
from glmrun.chat.stream import ChatStream
from glmrun.chat.turns import Turns


def answer_of(
    turns: Turns, prompt: list[int], stream: ChatStream, chunks: Iterator[Chunk], one_call: bool = False
) -> Iterator[Chunk]:
    """The chunks of generate.generate() with what their tokens say; the last one carries the turn as the model wrote it.

    one_call   the answer ends behind its first call. Probabilities are those of the answer's tokens, not of the thinking's.
    """
    called = False
    written: list[int] = []
    for chunk in chunks:
        if chunk.token is not None and chunk.finish_reason is None:
            written.append(chunk.token)
            before, delta = stream.state, stream.push(chunk.token)
            if not before == stream.state == "answer":
                chunk = replace(chunk, logprobs=None)
        elif chunk.finish_reason is not None:
            chunk, delta = replace(chunk, logprobs=None), stream.finish(cut_off=chunk.finish_reason != "stop")
        else:
            yield chunk
            continue
        calls = (delta.tool_calls or [])[: 1 if one_call else None] or None
        called = called or calls is not None
        ended = "stop" if one_call and called else chunk.finish_reason
        piece = None if one_call and called else delta.call_piece
        reason = "tool_calls" if ended == "stop" and called else ended
        if reason in ("stop", "tool_calls") and stream.has_begun_call and not (one_call and called):
            reason = "length"  # what was given out of the call has no end, and that is how clients know
        turn = turns.written(prompt, written, stream.state) if reason else None
        yield replace(
            chunk, text=delta.text, reasoning=delta.reasoning, tool_calls=calls, call_piece=piece,
            finish_reason=reason, token_ids=turn,
        )  # fmt: skip
        if reason:
            return
