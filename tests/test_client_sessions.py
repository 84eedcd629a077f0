"""What 17 clients sent in recorded sessions, whole and in order: their forms, not their texts (scripts/make_client_forms.py)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from support.event_grammars import messages_answer, ollama_answer, responses_answer
from support.scripted_agent import ScriptedAgent
from support.served import Served, served
from test_openai_chat import read as chat_answer

SESSIONS = json.loads((Path(__file__).parent / "golden" / "client_forms.json").read_text(encoding="utf-8"))["sessions"]
NEEDS_WEIGHTS = ("/v1/completions", "/tokenize", "/v1/models", "/api/show")
STREAMS: dict[str, Callable[[Iterable[bytes]], dict[str, Any]]] = {
    "/v1/messages": messages_answer, "/v1/responses": responses_answer, "/v1/chat/completions": chat_answer,
    "/api/chat": ollama_answer, "/api/generate": ollama_answer,
}  # fmt: skip
CONVERSATION = ("messages", "input", "system", "instructions", "prompt")
UNSAID = ("signature", "encrypted_content", "description", "metadata")


@pytest.fixture(scope="module")
def agent() -> ScriptedAgent:
    return ScriptedAgent()


@pytest.fixture(scope="module")
def scripted(agent: ScriptedAgent) -> Iterator[Served]:
    with served(agent) as found:
        yield found


def texts(value: Any) -> Iterator[str]:
    """The texts of a conversation that the model is to read."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from texts(inner) if key not in UNSAID else ()
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    elif isinstance(value, str) and not value.startswith("x-anthropic-billing-header:"):
        yield from re.findall(r"text \d+\.", value)


def is_streamed(path: str, body: dict[str, Any]) -> bool:
    return path in STREAMS and body.get("stream", path.startswith("/api/")) is True


def events(path: str, text: str) -> list[bytes]:
    end = "\n" if path.startswith("/api/") else "\n\n"
    return [(piece + end).encode() for piece in text.split(end)[:-1]]


@pytest.mark.parametrize("name", SESSIONS)
def test_a_session_is_answered_and_all_that_it_says_is_read(
    name: str, scripted: Served, server: Served, agent: ScriptedAgent
) -> None:
    read = 0
    for sent in SESSIONS[name]["requests"]:
        path, body = urlsplit(sent["path"]).path, sent["body"]
        to = server if path.startswith(NEEDS_WEIGHTS) else scripted
        content = None if body is None else json.dumps(body).encode()
        n_asked = len(agent.asked)
        answer = httpx2.request(sent["method"], to.url + sent["path"], content=content, headers=sent["headers"], timeout=60)
        assert answer.status_code == 200, (path, answer.text)
        if body is None:
            continue
        if is_streamed(path, body):
            said = STREAMS[path](events(path, answer.text))
            assert "error" not in said or said["error"] is None, said
        elif to is scripted:
            assert isinstance(answer.json(), dict)
        if len(agent.asked) > n_asked:
            told = json.dumps(agent.asked[-1].messages)
            wanted = [text for key in CONVERSATION for text in texts(body.get(key))]
            assert [text for text in wanted if text not in told] == [], path
            read += len(wanted)
    assert read > 0


def test_the_forms_hold_no_text_of_a_client() -> None:
    def strings(value: Any) -> Iterator[str]:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for one in inner:
            yield from strings(one)
        if isinstance(value, str):
            yield value

    replaced = re.compile(r"(x-anthropic-billing-header: )?text \d+\.|\{.*", re.DOTALL)
    spoken = [
        text for session in SESSIONS.values() for sent in session["requests"] for text in strings(sent["body"]) if " " in text
    ]
    assert len(spoken) > 500 and all(replaced.fullmatch(text) for text in spoken)
