"""A model without weights that does an agent's turn: it thinks, calls the client's tool that runs commands, says what came back.

python tests/support/scripted_agent.py PORT      the server, with this model behind it, for clients that are tried by hand
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from glmrun.chat.chunk import CallPiece, Chunk, Stats
from glmrun.chat.request import ChatRequest, TooLong

# What clients call a tool that runs a command or finds something out, and the argument that it takes.
_TOOLS = {
    "Bash": "command", "bash": "command", "exec_command": "cmd", "shell": "command", "run_shell_command": "command",
    "get_weather": "city", "llm_version": "", "llm_time": "",
}  # fmt: skip


class PieceFormat:
    """A chat format in which four characters are a token."""

    source = ""

    def encode(self, request: ChatRequest) -> list[int]:
        return list(range(1 + len(json.dumps(request.messages)) // 4))


@dataclass
class ScriptedAgent:
    name: str = "scripted"
    path: str = "scripted"
    n_ctx: int = 200_000
    n_ctx_train: int = 200_000
    n_threads: int = 1
    seconds: float = 0.0  # between two pieces
    fails_after: int | None = None  # chunks; then comes what no server expects
    chat_format: PieceFormat = field(default_factory=PieceFormat)
    asked: list[ChatRequest] = field(default_factory=list)

    def cancel(self) -> None:
        pass

    def count_tokens(self, request: ChatRequest) -> int:
        return len(self.chat_format.encode(request))

    def prompt_text(self, request: ChatRequest) -> str:
        return json.dumps(request.messages)

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        self.asked.append(request)
        n_prompt = self.count_tokens(request)
        if n_prompt > self.n_ctx:
            raise TooLong(n_prompt, self.n_ctx)
        return self._failing(self._chunks(request, Stats(n_prompt=n_prompt, n_prefilled=n_prompt)))

    def _failing(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        for n, chunk in enumerate(chunks):
            if n == self.fails_after:
                raise ZeroDivisionError("scripted")
            yield chunk

    def _chunks(self, request: ChatRequest, stats: Stats) -> Iterator[Chunk]:
        yield Chunk(stats=stats)
        last = request.messages[-1]
        call = None if last["role"] == "tool" or request.tool_choice == "none" else _call(request)
        text = f"It says: {last['content']}"[:300] if last["role"] == "tool" else "" if call else "I have nothing to run."
        if request.json_schema is not None:
            text, call = '{"city": "Bonn"}', None
        pieces = [("reasoning", piece) for piece in ("I take ", "one step.") if request.thinking]
        pieces += [("text", text[at : at + 5]) for at in range(0, len(text), 5)]
        for n, (kind, piece) in enumerate(pieces[: request.max_tokens], 1):
            time.sleep(self.seconds)
            stats = replace(stats, n_generated=n)
            yield Chunk(token=n, stats=stats, **{kind: piece})
        if call and (request.max_tokens is None or len(pieces) < request.max_tokens):
            said = call["function"]["arguments"]
            for at in range(0, len(said) - 2, 7):  # the last ones come with the whole call
                yield Chunk(call_piece=CallPiece(call["id"], call["function"]["name"], said[at : at + 7]), stats=stats)
            yield Chunk(tool_calls=[call], stats=stats, finish_reason="tool_calls")
        else:
            yield Chunk(stats=stats, finish_reason="length" if request.max_tokens and len(pieces) > request.max_tokens else "stop")


def _call(request: ChatRequest) -> dict[str, Any] | None:
    """A call of the first tool that is known here."""
    for tool in request.tools or ():
        name = tool["function"]["name"]
        if name in _TOOLS:
            value = "Bonn" if _TOOLS[name] == "city" else "echo hello from the tool"
            arguments = {_TOOLS[name]: value} if _TOOLS[name] else {}
            if "description" in tool["function"].get("parameters", {}).get("required", []):
                arguments["description"] = "says hello"
            identity = f"call_{len(request.messages)}"
            return {"id": identity, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    return None


if __name__ == "__main__":
    from glmrun.server.listen import bound, listening
    from glmrun.server.service import Options, Service

    service = Service(Options(), lambda record: print(record, file=sys.stderr, flush=True))
    agent = ScriptedAgent()
    with bound("127.0.0.1", int(sys.argv[1])) as where, listening(service, where):
        service.model = agent  # type: ignore[assignment]
        seen = 0
        while True:
            time.sleep(0.2)
            for request in agent.asked[seen:]:
                tools = [tool["function"]["name"] for tool in request.tools or ()]
                print([m["role"] for m in request.messages], tools, request.thinking, file=sys.stderr, flush=True)
            seen = len(agent.asked)
