"""/v1/completions with nano: texts and ids continued, prompts scored as evaluation harnesses need it; and `glmrun serve` itself."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from support.served import Served

import glmrun
from glmrun.engine.model import Model

PATH = "/v1/completions"
TEXTS = ["The capital of France is Paris.", "17 + 25 = 42", "é🙂 x"]


@pytest.fixture(scope="module")
def nano() -> Iterator[Model]:
    with glmrun.load(n_ctx=512) as model:
        yield model


def test_a_prompt_is_scored_as_the_model_scores_it(server: Served, nano: Model) -> None:
    """What evaluation harnesses send and read: ids in a list, one token more than the prompt, the first without a number."""
    prompts = [nano.tokenizer.encode(text) for text in TEXTS]
    asked = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    choices = server.post(PATH, asked).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for ids, choice in zip(prompts, choices, strict=True):
        told = choice["logprobs"]
        assert {len(column) for column in told.values()} == {len(ids) + 1}
        assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
        logits = nano.logits(ids).astype(np.float64)
        expected = (
            logits - logits.max(1, keepdims=True) - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
        )
        for i, (token, value, top) in enumerate(
            zip(ids[1:], told["token_logprobs"][1:-1], told["top_logprobs"][1:-1], strict=True)
        ):
            assert math.isclose(value, expected[i, token], abs_tol=1e-4)
            greedy = int(logits[i].argmax()) == token
            assert (value == max(top.values())) == greedy
    assert choices[0]["text"].startswith(TEXTS[0]) and choices[0]["logprobs"]["text_offset"][:2] == [0, 3]


def test_offsets_count_characters_also_of_several_tokens(server: Served, nano: Model) -> None:
    text = "a \N{SLICE OF PIZZA}\N{SLICE OF PIZZA} \u3042 b"
    asked = {"prompt": text, "max_tokens": 0, "logprobs": 0, "echo": True}
    told = server.post(PATH, asked).json()["choices"][0]["logprobs"]
    ids = nano.tokenizer.encode(text)
    assert len(told["text_offset"]) == len(ids) > len(text)  # else no character has several tokens
    expected = [len(b"".join(map(nano.tokenizer.bytes_of, ids[:n])).decode("utf-8", "ignore")) for n in range(len(ids))]
    assert told["text_offset"] == expected


def test_the_likelier_of_two_endings_is_found(server: Served, nano: Model) -> None:
    def score(end: str) -> float:
        asked = {"prompt": f"The capital of France is{end}", "max_tokens": 0, "logprobs": 0, "echo": True}
        n_end = len(nano.tokenizer.encode(end))
        return float(sum(server.post(PATH, asked).json()["choices"][0]["logprobs"]["token_logprobs"][-n_end:]))

    assert score(" Paris.") > score(" xqz.") + 1


def test_texts_are_continued_streamed_and_whole(server: Served, nano: Model) -> None:
    asked = {"prompt": TEXTS[:2], "max_tokens": 8, "temperature": 0, "n": 2, "stream_options": {"include_usage": True}}
    expected = ["".join(c.text for c in nano.generate(text, max_tokens=8, temperature=0)) for text in TEXTS[:2] for _ in range(2)]
    whole = server.post(PATH, asked).json()
    assert [choice["text"] for choice in whole["choices"]] == expected
    events = server.events(PATH, asked)
    choices = [e["choices"][0] for e in events[:-1] if e["choices"]]
    assert ["".join(c["text"] for c in choices if c["index"] == i) for i in range(4)] == expected
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == [c["finish_reason"] for c in whole["choices"]]
    n_prompt = sum(len(nano.tokenizer.encode(text)) for text in TEXTS[:2])  # each prompt once, whatever n
    usages = [{k: v for k, v in one["usage"].items() if k.endswith("_tokens")} for one in (events[-2], whole)]
    assert usages[0] == usages[1] and usages[0]["prompt_tokens"] == n_prompt
    by_ids = {**asked, "prompt": nano.tokenizer.encode(TEXTS[0]), "n": 1}
    assert server.post(PATH, by_ids).json()["choices"][0]["text"] == expected[0]
    echoed = server.post(PATH, {**asked, "echo": True, "n": 1}).json()["choices"][1]["text"]
    assert echoed == TEXTS[1] + expected[2]


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": [[]]}, None), ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"), ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": [10**9]}, None), ({"prompt": [-1]}, None), ({"prompt": ["a"] * 257}, "prompt"), ({"prompt": ""}, None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_named(server: Served, asked: dict[str, Any], param: str | None) -> None:
    answer = server.post(PATH, asked)
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["param"] or "").startswith(param or "")


def test_a_prompt_beyond_the_context_is_an_overflow(server: Served) -> None:
    answer = server.post(PATH, {"prompt": [5] * 513, "echo": True, "max_tokens": 0})
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"


def test_neighbours_get_what_each_gets_alone(server: Served) -> None:
    bodies = [
        {"prompt": f"{text} {i}", "max_tokens": 20, "temperature": 0.8, "seed": i, "logprobs": 2}
        for i, text in enumerate(TEXTS * 4)
    ]  # fmt: skip
    alone = [server.post(PATH, body).json()["choices"] for body in bodies]
    together: list[Any] = [None] * len(bodies)

    def ask(i: int) -> None:
        together[i] = server.post(PATH, bodies[i]).json()["choices"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [c[0]["text"] for c in together] == [c[0]["text"] for c in alone]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_says_its_address_and_ends_on_a_signal(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "glmrun", "serve", "nano", "--port", "0", "-c", "256", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        found = re.search(r"nano\S* at (http://localhost:\d+) ", line)
        assert found, line
        body = {"messages": [{"role": "user", "content": "secret words"}], "max_tokens": 3}
        answer = httpx2.post(f"{found[1]}/v1/chat/completions", json=body, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 3
        told = json.loads(process.stderr.readline())
        assert told["status"] == 200 and told["generated_tokens"] == 3
        process.send_signal(number)
        assert "secret" not in process.stderr.read() + line + str(told)
        assert process.wait(30) == 0


def test_a_port_that_is_taken_is_one_line(server: Served) -> None:
    command = [sys.executable, "-m", "glmrun", "serve", "nano", "--port", str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: 127.0.0.1, port") and done.stderr.count("\n") == 1
