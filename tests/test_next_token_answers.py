"""Answers with drafts by the prediction layer are the answers without: nano's layer is trained, random ones get an oracle."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.comparison import text_of, tokens_of
from support.tiny_model import ODD, Tiny
from typer.testing import CliRunner

import glmrun
from glmrun.cli import app
from glmrun.engine.model import Model
from glmrun.engine.next_token import guess
from glmrun.engine.speculative import Drafter, Guesses, PassCosts
from quant.errors import UserError

AHEAD = replace(ODD, num_nextn_predict_layers=1)
KINDS = ("mtp", "mtp:3", "auto")
QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
TOOLS = [{"type": "function", "function": WEATHER | {"description": "The weather of a city."}}]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def nanos() -> Iterator[dict[str, Model]]:
    """{kind of drafts: nano}."""
    models = {kind: glmrun.load(n_ctx=1024, n_threads=2, draft=kind) for kind in ("off", *KINDS)}
    yield models
    for model in models.values():
        model.close()


def said(chunks: list[Any]) -> list[Any]:
    """What must not depend on drafts."""
    last = chunks[-1]
    calls = [call["function"] for c in chunks for call in c.tool_calls or ()]
    parts = [*calls, *((c.token, c.text, c.reasoning, c.logprobs) for c in chunks if c.token is not None)]
    return [*parts, text_of(chunks), last.finish_reason, last.stop_text, last.token_ids, last.stats.n_generated]


def ask(model: Model, content: str, **options: Any) -> list[Any]:
    """From an empty cache: how many tokens of a prompt are read at once decides its last bits."""
    model._idle.close()
    return list(model.chat([{"role": "user", "content": content}], **({"max_tokens": 90} | options)))


@pytest.mark.parametrize("kind", ["mtp", "mtp:3"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "logprobs": 2},
        {"temperature": 1.0, "seed": 3},
        {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0, "seed": 4},
        {"temperature": 0.8, "repeat_penalty": 1.3, "seed": 5},
        {"temperature": 0, "think_budget": 9},
        {"temperature": 0, "thinking": False, "json_schema": PERSON},
        {"temperature": 0.7, "seed": 6, "json_schema": PERSON, "think_budget": 5},
        {"temperature": 0, "tools": TOOLS},
        {"temperature": 0, "tools": TOOLS, "tool_choice": "required"},
        {"temperature": 0, "stop": ("token", "4")},
        {"temperature": 0, "max_tokens": 17},
    ],
    ids=["greedy", "sampled", "wild", "penalty", "budget", "schema", "schema behind thinking", "tools", "a tool", "stop", "short"],
)
def test_nanos_answer_with_its_guesses_is_the_one_without(nanos: dict[str, Model], kind: str, options: dict[str, Any]) -> None:
    for content in ("What is 17 + 25?", "What is the weather in Paris?"):
        plain, drafted = ask(nanos["off"], content, **options), ask(nanos[kind], content, **options)
        assert said(drafted) == said(plain)
        stats = drafted[-1].stats
        assert stats.n_guessed_right <= stats.n_guessed <= stats.n_drafted and stats.n_guessed_right <= stats.n_accepted
        assert stats.n_guessed == stats.n_drafted > 0 and stats.n_guessed_right == stats.n_accepted
        assert stats.n_passes + stats.n_accepted >= plain[-1].stats.n_passes


def test_nanos_layer_is_mostly_right_and_saves_passes(nanos: dict[str, Model]) -> None:
    off = ask(nanos["off"], "Explain speculative decoding.", temperature=0)[-1].stats
    one = ask(nanos["mtp"], "Explain speculative decoding.", temperature=0)[-1].stats
    auto = ask(nanos["auto"], "Explain speculative decoding.", temperature=0)
    assert said(auto) == said(ask(nanos["off"], "Explain speculative decoding.", temperature=0)) and auto[-1].stats.n_guessed > 0
    three = ask(nanos["mtp:3"], "Explain speculative decoding.", temperature=0)[-1].stats
    assert one.n_accepted >= 0.8 * one.n_drafted and one.n_passes <= 0.65 * off.n_passes
    assert three.n_passes < one.n_passes


@pytest.mark.parametrize("kind", KINDS)
def test_turns_of_a_conversation_and_one_that_was_cancelled(nanos: dict[str, Model], kind: str) -> None:
    found = []
    for model in (nanos["off"], nanos[kind]):
        messages, answers = list(QUESTION), []
        for following in ("And 30 + 4?", "What is MTP?", "Thanks"):
            chunks = list(model.chat(messages, max_tokens=80, temperature=0))
            answers.append(said(chunks))
            messages += [{"role": "assistant", "content": text_of(chunks)}, {"role": "user", "content": following}]
            for n, chunk in enumerate(model.chat(messages, max_tokens=80, temperature=0)):
                if n == 12 or chunk.finish_reason:
                    break  # in the middle of an answer
            cut = []
            for chunk in model.chat(messages, max_tokens=80, temperature=0):
                cut.append(chunk)
                if len(tokens_of(cut)) == 7:
                    model.cancel()
            answers.append(said(cut))
        found.append(answers)
    assert found[0] == found[1]


def test_several_conversations_at_once(nanos: dict[str, Model]) -> None:
    contents = [f"What is {n} + {n + 5}?" for n in range(4)]
    expected = [said(ask(nanos["off"], content, temperature=0)) for content in contents]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda content: said(ask(nanos["mtp"], content, temperature=0)), contents))
    assert got == expected


# ---- random weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", ["F32", "Q4_K_M"])
@pytest.mark.parametrize("kind", ["mtp", "mtp:3"])
def test_guesses_that_are_right_or_wrong_change_nothing(
    tiny_gguf: Callable[..., Tiny], monkeypatch: pytest.MonkeyPatch, choice: str, kind: str
) -> None:
    """The layer's work is done; its guesses become what is right, but for every fifth."""
    prompt = np.random.default_rng(12).integers(0, 256, 19).tolist()
    for options in ({"temperature": 0, "logprobs": 1}, {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0, "seed": 3}):
        with glmrun.load(tiny_gguf(choice, AHEAD).path, n_ctx=256, n_threads=2, draft="off") as model:
            plain = list(model.generate(prompt, max_tokens=60, **options))
        truth = [*prompt, *tokens_of(plain), 0, 0, 0]
        assert len(truth) > 50

        def oracle(passes: Any, sequence: Any, token: int, n: int, real: Any = guess, truth: list[int] = truth) -> list[int] | None:
            found, at = real(passes, sequence, token, n), len(sequence.tokens) + 1
            return found and [(truth[i] + (i % 5 == 0)) % AHEAD.vocab_size for i in range(at, at + len(found))]

        monkeypatch.setattr("glmrun.engine.runner.guess", oracle)
        with glmrun.load(tiny_gguf(choice, AHEAD).path, n_ctx=256, n_threads=2, draft=kind) as model:
            drafted = list(model.generate(prompt, max_tokens=60, **options))
        assert said(drafted) == said(plain)
        stats = drafted[-1].stats
        assert 0.4 * stats.n_drafted < stats.n_accepted < stats.n_drafted and stats.n_passes < 0.7 * stats.n_generated


def test_random_weights_are_not_drafted_for_long(tiny_gguf: Callable[..., Tiny]) -> None:
    with glmrun.load(tiny_gguf("Q8_0", AHEAD).path, n_ctx=512, n_threads=2) as model:
        biases = dict.fromkeys(model.tokenizer.eog_ids, -100.0)
        options = {"temperature": 1.5, "top_p": 1.0, "min_p": 0.0, "top_k": 0, "logit_bias": biases}
        *_, last = model.generate(list(range(40, 60)), max_tokens=250, **options)
        # What a pass costs is measured, so how often it is tried again depends on the machine; `mtp` makes some 250 guesses.
        assert last.stats.n_generated == 250 and last.stats.n_guessed <= 60


# ---- when it pays ----------------------------------------------------------------------------------------------------


def costs(ratio: Callable[[int], float], layer: float) -> PassCosts:
    found = PassCosts()
    found.add(1, 0.02)
    for _ in range(30):
        found.add_guess(2, 2 * 0.02 * layer)
        for n in (1, 2, 3, 7, 16):
            found.add(1 + n, 0.02 * ratio(1 + n))
    return found


def test_a_chain_is_as_long_as_it_pays() -> None:
    guesses = Guesses()
    for _ in range(100):
        guesses.made([1, 2, 3])
        for token in (1, 2, 9):
            guesses.add(token)
    assert guesses.best(3, costs(lambda n: 1 + 0.1 * (n - 1), 0.1))[0] == 2
    assert guesses.best(1, costs(lambda n: 1 + 0.1 * (n - 1), 0.1)) == (1, pytest.approx(2 / 1.2, rel=0.02))
    assert guesses.best(3, costs(lambda n: 1.5 if n == 2 else 3.0, 0.1))[0] == 1
    assert guesses.best(3, costs(lambda n: 1.5 if n == 2 else 3.0, 0.9)) == (0, 0.0)
    assert guesses.best(0, PassCosts()) == guesses.best(-1, PassCosts()) == (0, 0.0)


def test_a_layer_that_was_wrong_is_asked_again_in_time() -> None:
    asked: list[int] = []

    def wrong(token: int, n: int) -> list[int]:
        asked.append(token)
        return [100_000] * n

    drafter = Drafter([0], PassCosts(), "auto", exact=False, guess=wrong)
    for token in range(1, 2000):
        drafter.add(token)
        drafter.next(1000)
    assert 3 <= len(asked) <= 20 and asked[0] == 1 and asked[-1] > 1500


def test_auto_takes_the_source_that_promises_more() -> None:
    cheap, text = costs(lambda n: 1 + 0.05 * (n - 1), 0.3), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 6
    drafter = Drafter(text[:20], cheap, "auto", exact=False, guess=lambda token, n: [token + 1] * n)
    sources = []
    for token in text[20:]:
        drafter.add(token)
        sources.append((len(drafter.next(1000)), drafter.guessed))
    assert (16, False) in sources[-10:]
    novel = Drafter([7], cheap, "auto", exact=False, guess=lambda token, n: list(range(token + 1, token + 1 + n)))
    for token in range(8, 60):
        novel.add(token)
        draft = novel.next(1000)
    assert draft[:2] == [60, 61] and novel.guessed
    assert Drafter([7], cheap, "mtp:2", exact=False, guess=lambda token, n: [5] * n).next(1) == [5]
    assert Drafter([7], cheap, "mtp", exact=False, guess=lambda token, n: [5] * n).next(0) == []


# ---- commands --------------------------------------------------------------------------------------------------------


def test_the_command_line_takes_the_layer_and_says_when_there_is_none(tiny_gguf: Callable[..., Tiny]) -> None:
    path = str(tiny_gguf("F32", AHEAD).path)
    common = ["aaaaaaaaaaaaaaaaaaaaaaaaaa", "-n", "20", "--no-think", "--json", "--temp", "0"]
    done = CliRunner().invoke(app, ["run", path, *common, "--draft", "mtp:2"])
    assert done.exit_code == 0, done.output
    timings = json.loads(done.stdout)["timings"]
    assert timings["draft_n"] == timings["draft_mtp_n"] > 10 and timings["draft_mtp_n_accepted"] <= timings["draft_n_accepted"]
    none = CliRunner().invoke(app, ["run", str(tiny_gguf("F32", ODD).path), *common, "--draft", "mtp"])
    assert isinstance(none.exception, UserError) and none.exception.kind == "usage"
    assert "no next-token-prediction layer" in str(none.exception) and "\n" not in str(none.exception)
    for wrong in ("mtp:0", "mtp:4", "mtp:", "mtp:x", "mtp9"):
        refused = CliRunner().invoke(app, ["run", path, *common, "--draft", wrong])
        assert refused.exit_code == 2 and "mtp:3" in refused.output
        with pytest.raises(UserError, match=wrong):
            glmrun.load(path, draft=wrong)
