"""A model without weights, for tests of the terminal: what it answers depends on the last message, at the speed the test needs.

python tests/support/scripted_model.py run "hello"      the command line, with this model behind it

SCRIPTED_MODEL_WRITES names a file that is made when a few words of an answer have been written, for tests that see none of them.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from quant.errors import UserError

ESCAPES = "\x1b]52;c;aGk=\x07red\x1b[31m\x9b31m‮tag\U000e0041\r[bold]x[/]\u2028."


class WordFormat:
    """A chat format in which every word is a token."""

    def encode(self, request: ChatRequest) -> list[str]:
        return [word for message in request.messages for word in message["content"].split()]


@dataclass
class ScriptedModel:
    path: Path = Path("scripted.gguf")
    n_ctx: int = 200
    n_ctx_train: int = 1000
    n_threads: int = 2
    advice: dict[str, Any] = field(default_factory=lambda: {"top_p": 0.8})
    chat_format: WordFormat = field(default_factory=WordFormat)
    stopped: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        self.stopped.set()

    @property
    def name(self) -> str:
        return self.path.name

    def count_tokens(self, request: ChatRequest) -> int:
        return len(self.chat_format.encode(request))

    def prompt_text(self, request: ChatRequest) -> str:
        return " ".join(self.chat_format.encode(request))

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        """`slow prompt`, `slow answer`: take their time; `escapes`: misbehaves; `messages`: what arrived; `long`: does not fit."""
        self.stopped.clear()
        messages, thinking, max_tokens = request.messages, request.thinking, request.max_tokens
        asked = {"think_budget": request.think_budget, "json_schema": request.json_schema, "tools": request.tools}
        given = {name: value for name, value in {**asked, **request.sampling}.items() if value is not None}
        given |= {} if request.clear_thinking else {"clear_thinking": False}
        said = messages[-1]["content"]
        n_prompt = len(self.chat_format.encode(request))
        if said == "long":
            raise UserError(f"the prompt has 500 tokens, the context {self.n_ctx}", "refused", "n_ctx")
        stats = Stats(n_prompt=n_prompt)
        for quarter in range(1, 5):
            time.sleep(0.5 if said == "slow prompt" else 0)
            stats = replace(stats, n_prefilled=n_prompt * quarter // 4, prompt_seconds=stats.prompt_seconds + 0.01)
            if self.stopped.is_set():
                yield Chunk(stats=stats, finish_reason="cancelled")
                return
            yield Chunk(stats=stats)
        answer = {
            "slow answer": ["tick "] * 400,
            "escapes": list(ESCAPES),
            "messages": [json.dumps({"messages": messages, "thinking": thinking, **given})],
            "nothing": [],
            "code": list("Here:\n\n```python\ndef f():\n    return 1\n```\nand\n```\nno\n```\n"),
        }.get(said, [f"You said: {said}"])
        steps = [("reasoning", piece) for piece in ("Let me ", "think.") if thinking] + [("text", piece) for piece in answer]
        for n, (kind, piece) in enumerate(steps[:max_tokens], 1):
            time.sleep(0.02 if said == "slow answer" else 0)
            stats = replace(stats, n_generated=n, generate_seconds=n * 0.02)
            if self.stopped.is_set():
                yield Chunk(stats=stats, finish_reason="cancelled")
                return
            yield Chunk(stats=stats, token=n, **{kind: piece})
            if n == 10 and (told := os.environ.get("SCRIPTED_MODEL_WRITES")):
                Path(told).touch()
        yield Chunk(stats=stats, finish_reason="length" if max_tokens is not None and len(steps) > max_tokens else "stop")


def load(
    path: Path | None = None,
    ctx: int | None = None,
    threads: int | None = None,
    kv_type: str | None = None,
    patient: bool = True,
    draft: str = "auto",
    draft_exact: bool = False,
) -> ScriptedModel:
    return ScriptedModel(path or Path("scripted.gguf"), ctx or 200, n_threads=threads or 2)


if __name__ == "__main__":
    import glmrun.store.nano
    from glmrun.cli import loading, main

    loading.load_model = load  # type: ignore[assignment]
    glmrun.store.nano.nano_path = lambda: Path("scripted.gguf")  # type: ignore[assignment]
    main(sys.argv[1:])
