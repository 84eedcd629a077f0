"""An earlier answer stands in the next prompt in the tokens it was written in, where they say what its message says."""

import pytest
from test_template import DECLARED, assistant, call, chat_format, results, user
from test_tokenizer import tokenizer

from glmrun.chat.request import ChatRequest

QUESTION = user("a")
OPENING = "[gMASK]<sop><|user|>a<|assistant|>"


def ids_of(text: str) -> list[int]:
    return tokenizer().encode(text, special=True)


def letters(text: str) -> list[int]:
    """The tokens of a text, none longer than a letter: a cut that encode() would not make."""
    return [token for letter in text for token in ids_of(letter)]


def encoded(answer: dict, **options) -> list[int]:
    return chat_format().encode(ChatRequest([QUESTION, answer, user("c")], clear_thinking=False, **options))


def test_an_answer_stands_in_the_tokens_it_was_written_in() -> None:
    written = [*ids_of("<think>"), *letters("why not"), *ids_of("</think>"), *letters("hello hello")]
    assert letters("hello hello") != ids_of("hello hello")
    prompt = encoded(assistant("hello hello", reasoning_content="why not", token_ids=written))
    assert prompt == [*ids_of(OPENING), *written, *ids_of("<|user|>c<|assistant|><think>")]


@pytest.mark.parametrize("written", ["<think>\nwhy\n</think>\n\nb\n", "<think>why</think>b", "</think><think>why</think>  b"])
def test_white_space_and_forgotten_tags_do_not_matter(written: str) -> None:
    prompt = encoded(assistant("b", reasoning_content="why", token_ids=ids_of(written)))
    assert tokenizer().decode(prompt) == f"{OPENING}{written}<|user|>c<|assistant|><think>"


def test_a_tool_call_stands_as_it_was_written() -> None:
    written = ids_of("</think>\n<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n</tool_call>")
    messages = [QUESTION, assistant("", tool_calls=[call("f", '{"x": 1}')], token_ids=written), *results("r")]
    prompt = chat_format().encode(ChatRequest(messages, [DECLARED]))
    behind = ids_of("<|observation|><tool_response>r</tool_response><|assistant|><think>")
    assert prompt[-len(written) - len(behind) :] == written + behind


@pytest.mark.parametrize(
    "wrong",
    [
        ids_of("</think>another text"), ids_of("<think>other</think>b"), ids_of("</think>b<|user|>c"),
        ids_of("</think>b<|endoftext|>"), [10**9], [-1], ["x"], [1.0], [True], "b", {"a": 1}, [],
    ],
)  # fmt: skip
def test_tokens_that_say_something_else_are_left_out(wrong) -> None:
    message = assistant("b", reasoning_content="why")
    assert encoded({**message, "token_ids": wrong}) == encoded(message)


def test_thinking_that_is_cleared_does_not_come_back_with_the_tokens() -> None:
    messages = [QUESTION, assistant("b", reasoning_content="why", token_ids=ids_of("<think>why</think>b")), user("c")]
    assert tokenizer().decode(chat_format().encode(ChatRequest(messages))) == OPENING + "</think>b<|user|>c<|assistant|><think>"


def test_what_a_turn_was_written_as_is_told_from_its_prompt() -> None:
    turns, prompt = chat_format().turns, ids_of(OPENING + "<think>")
    assert turns.written(prompt, ids_of("why</think>b"), "answer") == ids_of("<think>why</think>b")
    assert turns.written(prompt, ids_of("why"), "thinking") == ids_of("<think>why</think>")  # cut off: closed
    assert turns.written(prompt, ids_of("</think><tool_call>f<arg_key>"), "call") is None
    assert turns.written(prompt, ids_of("</think>b<|assistant|>"), "answer") is None
    assert turns.written(ids_of("no role"), ids_of("b"), "answer") is None
