"""A conversation with nano from turn to turn: what is read again, what is kept, and thinking that is limited."""

import pytest
from support.comparison import tokens_of

import glmrun
from glmrun.chat.request import ChatRequest
from glmrun.engine.model import Chunk
from quant.errors import UserError

QUESTIONS = ("What is 17 + 25?", "Hello, who are you?", "What is the capital of France?")


@pytest.fixture(scope="module")
def model() -> "glmrun.Model":
    return glmrun.load(n_ctx=1024)


def answer_of(chunks: list[Chunk]) -> dict:
    message = {"role": "assistant", "content": "".join(chunk.text for chunk in chunks), "token_ids": chunks[-1].token_ids}
    return message | {"reasoning_content": "".join(chunk.reasoning for chunk in chunks)}


def asked(text: str) -> dict:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_follow_up_reads_only_what_is_new(model: "glmrun.Model", temperature: float) -> None:
    """At a high temperature the model often cuts its words otherwise than encode() would."""
    model.latest.truncate(0)
    messages, written = [], 0
    for question in QUESTIONS:
        messages.append(asked(question))
        chunks = list(model.chat(messages, clear_thinking=False, max_tokens=120, temperature=temperature, seed=3))
        stats = chunks[-1].stats
        if written:
            new = len(model.tokenizer.encode(question)) + len(["<|user|>", "<|assistant|>", "<think>"])
            closing = len(["</think>"]) if messages[-2]["content"] == "" else 0
            assert stats.n_prompt - stats.n_cached <= new + closing + 1  # and the last token, where it was not read
        messages.append(answer_of(chunks))
        assert chunks[-1].token_ids is not None
        written = stats.n_prompt + stats.n_generated


def test_a_message_without_its_tokens_is_rendered(model: "glmrun.Model") -> None:
    messages = [asked(QUESTIONS[0])]
    chunks = list(model.chat(messages, clear_thinking=False, temperature=1.5, seed=3, max_tokens=120))
    with_tokens, without = answer_of(chunks), {**answer_of(chunks), "token_ids": None}
    more = asked("And now?")
    with_them = ChatRequest([*messages, with_tokens, more], clear_thinking=False)
    first = model.chat_format.encode(with_them)
    second = model.chat_format.encode(ChatRequest([*messages, without, more], clear_thinking=False))
    assert model.chat_format.render(with_them) == model.tokenizer.decode(second)
    assert first[: chunks[-1].stats.n_prompt] == second[: chunks[-1].stats.n_prompt]


def test_a_stop_text_ends_the_answer_and_not_the_thinking(model: "glmrun.Model") -> None:
    def said(**options: object) -> tuple[str, str, str | None]:
        chunks = list(model.chat([asked(QUESTIONS[0])], temperature=0, **options))
        return "".join(c.text for c in chunks), "".join(c.reasoning for c in chunks), chunks[-1].finish_reason

    text, reasoning, _ = said()
    stop = text[len(text) // 2 :][:4]
    assert len(stop) == 4 and said(stop=[stop]) == (text[: text.index(stop)], reasoning, "stop")
    assert said(stop=["nobody says this"])[0] == text


@pytest.mark.parametrize("budget", [0, 1, 7])
def test_thinking_is_closed_when_its_budget_is_spent(model: "glmrun.Model", budget: int) -> None:
    free = list(model.chat([asked(QUESTIONS[0])], temperature=0))
    assert sum(bool(chunk.reasoning) for chunk in free) > 8  # it would think for longer
    chunks = list(model.chat([asked(QUESTIONS[0])], temperature=0, think_budget=budget))
    close = model.tokenizer.id_of("</think>")
    assert tokens_of(chunks).index(close) == budget
    assert tokens_of(chunks)[:budget] == tokens_of(free)[:budget]
    assert chunks[-1].finish_reason == "stop" and "".join(chunk.text for chunk in chunks)


def test_a_budget_that_is_not_spent_changes_nothing(model: "glmrun.Model") -> None:
    runs = [tokens_of(list(model.chat([asked(QUESTIONS[1])], temperature=0, think_budget=n))) for n in (None, 500)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("budget", [-1, 1.5, True, "4"])
def test_a_budget_that_is_no_number_of_tokens_is_refused(model: "glmrun.Model", budget: object) -> None:
    with pytest.raises(UserError, match="thinking budget"):
        model.chat([asked("Hi")], think_budget=budget)


def test_an_answer_that_is_stopped_while_it_thinks_goes_on_from_there(model: "glmrun.Model") -> None:
    messages = [asked(QUESTIONS[0])]
    chunks = []
    for chunk in model.chat(messages, clear_thinking=False, temperature=0):
        chunks.append(chunk)
        if len(tokens_of(chunks)) == 5:
            model.cancel()
    assert chunks[-1].finish_reason == "cancelled"
    messages += [answer_of(chunks), asked("Go on.")]
    assert messages[1]["token_ids"][-1] == model.tokenizer.id_of("</think>")
    stats = list(model.chat(messages, clear_thinking=False, temperature=0, max_tokens=1))[-1].stats
    assert stats.n_cached >= chunks[-1].stats.n_prompt + 4


def test_the_conversation_is_counted_as_the_next_prompt_repeats_it(model: "glmrun.Model") -> None:
    messages = [asked(QUESTIONS[1])]
    chunks = list(model.chat(messages, clear_thinking=False, temperature=0))
    messages.append(answer_of(chunks))
    count = model.count_tokens(ChatRequest(messages, clear_thinking=False))
    assert count == chunks[-1].stats.n_prompt + chunks[-1].stats.n_generated - 1  # the end token is not part of it
    messages.append(asked(QUESTIONS[0]))
    assert model.count_tokens(ChatRequest(messages)) < model.count_tokens(ChatRequest(messages, clear_thinking=False))
    assert model.prompt_text(ChatRequest(messages[:1])).endswith(QUESTIONS[1] + "<|assistant|><think>")
