"""Bodies of Anthropic's, OpenAI's and Ollama's clients, damaged at random: a request that can be used, or one line."""

import copy
import random
from typing import Any

import pytest
from test_anthropic import claude_code
from test_ollama import HISTORY, WEATHER
from test_responses import codex
from test_tokenizer import tokenizer

from glmrun.chat.template import ChatFormat
from glmrun.engine.sampling import Sampler
from glmrun.server import anthropic, ollama, responses
from glmrun.server.openai_chat import OpenAIChat
from quant.errors import UserError

OLLAMA = {
    "messages": HISTORY, "tools": [WEATHER], "think": True, "format": "json", "stream": True,
    "options": {"temperature": 0.5, "stop": ["a"], "num_predict": 5},
}  # fmt: skip
GENERATE = {"prompt": "q", "system": "s", "raw": False, "think": "low", "format": {"type": "object"}, "options": None}
CUSTOM = {"id": "c2", "type": "custom", "custom": {"name": "patch", "input": "x"}}
COMPLETION = {
    "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "rules"}]}, {"role": "user", "content": "q", "name": "n"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "refusal", "refusal": "no"}],
         "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}, CUSTOM]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "20"}]},
        {"role": "assistant", "content": "It is", "prefix": True},
    ],
    "tools": [WEATHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [WEATHER]}},
    "response_format": {"type": "text"}, "stop": ["a"], "logit_bias": {"5": 1.5}, "seed": 3, "stream_options": {},
    "reasoning": {"effort": "low"}, "thinking": {"type": "enabled"}, "chat_template_kwargs": {}, "max_tokens": 5, "n": 2,
}  # fmt: skip
WEIRD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 70, 1.5, float("1e400"), "", "x", "x" * 5000, "\ud83d", "user", "tool", "image", [], [[]],
    [None], {}, {"type": "text"}, {"type": "image", "source": {}}, {"type": []}, {"role": "assistant", "content": None},
    {"type": "function"}, [{"type": "tool_result"}], {"a": {"b": [{"c": 1}]}},
)  # fmt: skip
BODIES = {
    "messages": (anthropic.Messages(), claude_code(second_turn=True)),
    "responses": (responses.Responses(), codex(second_turn=True)),
    "completion": (OpenAIChat(), COMPLETION),
    "chat": (ollama.OllamaChat(), OLLAMA),
    "generate": (ollama.OllamaGenerate(), GENERATE),
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a value."""
    here = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [(value, key) for key, _ in here] + [place for _, inner in here for place in places(inner)]


def damage(body: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if found := places(body):
            container, key = rng.choice(found)
            if rng.random() < 0.2:
                del container[key]
            else:
                container[key] = copy.deepcopy(rng.choice(WEIRD))


@pytest.mark.parametrize("name", BODIES)
def test_a_damaged_body_is_taken_or_refused_in_one_line(name: str) -> None:
    interface, body = BODIES[name]
    chat_format = ChatFormat(None, tokenizer())
    outcomes = {"taken": 0, "refused": 0}
    for seed in range(2000):
        damaged = copy.deepcopy(body)
        damage(damaged, random.Random(seed))
        try:
            for request in interface.asked(damaged, "m").requests:
                chat_format.render(request)
                Sampler(**{name: value for name, value in request.sampling.items() if value is not None})
            outcomes["taken"] += 1
        except UserError as error:
            assert error.kind == "usage" and "\n" not in str(error) and len(str(error)) < 500, seed
            interface.error(400, error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes
