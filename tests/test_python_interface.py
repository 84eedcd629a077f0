"""glmrun.load() as programs use it: arguments of every kind, close() while others ask, an end in the middle of an answer."""

import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from support.comparison import text_of, tokens_of
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.engine import sequence
from glmrun.engine.model import Model
from glmrun.engine.passes import Passes
from quant.errors import UserError

QUESTION = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.fixture(scope="module")
def path(tiny_gguf: Callable[..., Tiny]) -> Any:
    return tiny_gguf("Q4_K_M", ODD).path


@pytest.mark.parametrize(
    "tokens",
    [[1.0], [1.5], ["5"], [True], [[1, 2]], [[1], [2]], [[1], [2, 3]], [[]], np.zeros((2, 2), int), b"abc", bytearray(b"a"), "abc",
     [None], None, 5, [2**70], np.array([1.7, 2.0])],
    ids=str,
)  # fmt: skip
def test_tokens_that_are_no_row_of_whole_numbers_are_refused(nano: Model, tokens: Any) -> None:
    with pytest.raises(UserError, match="whole numbers"):
        nano.logits(tokens)
    if not isinstance(tokens, str):
        with pytest.raises(UserError, match="whole numbers"):
            nano.generate(tokens)


@pytest.mark.parametrize("tokens", [np.array([1, 2], np.uint16), (1, 2), range(1, 3), iter([1, 2]), [np.int32(1), 2]], ids=str)
def test_tokens_come_in_any_row(nano: Model, tokens: Any) -> None:
    assert np.array_equal(nano.logits(tokens), nano.logits([1, 2]))


def test_a_stop_text_may_stand_alone(nano: Model) -> None:
    """As a row of letters each of them would end the answer."""
    options = {"max_tokens": 40, "temperature": 0, "thinking": False}
    text = text_of(list(nano.chat(QUESTION, **options)))
    word = text[10:14]
    for stop in (word, [word], ("", word)):
        assert text_of(list(nano.chat(QUESTION, stop=stop, **options))) == text[: text.index(word)]
    prompt = {"max_tokens": 40, "temperature": 0}
    text = text_of(list(nano.generate("Hello", **prompt)))
    assert text_of(list(nano.generate("Hello", stop=text[8:12], **prompt))) == text[: text.index(text[8:12])]


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop", 5), ("stop", [5]), ("stop", b"x"), ("stop", [b"x"]), ("tool_choice", None), ("tool_choice", {}), ("temp", 1),
     ("forbidden", [1]), ("constraint", 1), ("bogus", 1)],
)  # fmt: skip
def test_options_that_are_none_are_named_before_the_first_chunk(nano: Model, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=name):
        nano.chat(QUESTION, tools=TOOLS, **{name: value})
    if name != "tool_choice":
        with pytest.raises(UserError, match=name):
            nano.generate("Hi", **{name: value})


def test_numbers_may_be_numpys(nano: Model) -> None:
    def ids(**options: Any) -> list[int]:
        return tokens_of(list(nano.chat(QUESTION, **options)))

    plain = ids(max_tokens=5, think_budget=2, logprobs=1, seed=3, logit_bias={7: 2.0})
    bias = {np.int64(7): np.float32(2)}
    assert ids(max_tokens=np.int64(5), think_budget=np.int32(2), logprobs=np.int64(1), seed=np.int64(3), logit_bias=bias) == plain
    assert ids(max_tokens=5, sampling={"temperature": 0}) == ids(max_tokens=5, temperature=0)
    for options in ({"max_tokens": True}, {"max_tokens": 1.0}, {"think_budget": True}, {"logit_bias": {True: 1.0}}):
        with pytest.raises(UserError):
            nano.chat(QUESTION, **options)


@pytest.mark.parametrize(
    "options", [{"n_ctx": "8"}, {"n_ctx": 8.5}, {"n_ctx": True}, {"n_threads": "2"}, {"n_threads": 1.5}], ids=str
)
def test_sizes_that_are_no_whole_numbers_are_refused(path: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="asked for"):
        glmrun.load(path, **options)


def test_logits_that_are_cancelled_end_early(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with glmrun.load(path, n_ctx=64) as model:
        step = Passes.step
        monkeypatch.setattr(Passes, "step", lambda *a: model.cancel() or step(*a))  # type: ignore[func-returns-value]
        assert model.logits([1, 2, 3]).shape == (0, model.config.vocab_size)


def test_close_ends_what_runs_and_later_calls_are_refused(path: Any) -> None:
    """Steps that are handed to threads that have ended would wait for ever."""
    for n in range(10):
        model, ends, begun = glmrun.load(path, n_ctx=512), list[Any](), threading.Barrier(4)

        def ask(model: Model = model, ends: list[Any] = ends, begun: threading.Barrier = begun) -> None:
            begun.wait()
            try:
                while ends is not None:
                    last = list(model.generate(list(range(200)), seed=1))[-1]
                    if last.finish_reason == "cancelled":
                        ends.append(last)
            except UserError as why:
                ends.append(why)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        open_answer = model.generate([1, 2, 3], max_tokens=50)
        next(open_answer)
        begun.wait()
        threading.Event().wait(0.01 * n)
        model.close()
        for thread in threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in threads)
        assert all("closed" in str(end) for end in ends if isinstance(end, UserError)) and ends
        assert [chunk.finish_reason for chunk in open_answer][-1] == "cancelled"
        for call in (lambda: model.logits([1]), lambda: model.generate([1]), lambda: model.chat(QUESTION)):  # noqa: B023
            with pytest.raises(UserError, match="closed; load it again"):
                call()
        model.close()


HANDLER = """
import signal, sys, threading, time
import glmrun

def close(*_):
    model.close()
    sys.exit(7)

def ask():
    try:
        while True:
            list(model.generate([1, 2, 3], seed=1))
    except Exception:
        pass

signal.signal(signal.SIGALRM, close)
for n in range(8):
    model = glmrun.load(n_ctx=256, n_threads=2)
    others = [threading.Thread(target=ask) for _ in range(2)]
    for thread in others:
        thread.start()
    signal.setitimer(signal.ITIMER_REAL, 0.1 + n / 100)
    try:
        ask()
    except SystemExit:
        pass
    for thread in others:
        thread.join()
    while any(thread.name.startswith("glmrun") for thread in threading.enumerate()):
        time.sleep(0.01)
"""


@pytest.mark.parametrize("place", ["take", "give_back", "count"])
def test_a_handler_may_close_a_model_in_a_thread_that_holds_a_lock(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may wait for the lock, in a step, and close() for them; or for the same lock. The handler does not raise."""
    model, asking, closed = glmrun.load(n_ctx=64, n_threads=1), threading.Event(), threading.Event()

    def ask() -> None:
        with suppress(UserError):
            while True:
                list(model.generate([4, 5, 6], max_tokens=40))
                asking.set()

    def close_here() -> None:
        in_step = any(frame.name == "step" for frame in traceback.extract_stack())
        if threading.current_thread() is interrupted and not in_step and not closed.is_set():
            assert asking.wait(30)
            closed.set()
            model.close()

    def interrupt() -> None:
        with suppress(UserError):
            list(model.generate([1, 2, 3], max_tokens=4))

    owner, name = {
        "take": (sequence, "common_prefix"),
        "give_back": (sequence.Sequence, "give_columns_back"),
        "count": (model.runner._news, "notify_all"),
    }[place]
    real = getattr(owner, name)

    def interrupted_here(*arguments: Any) -> Any:
        close_here()
        return real(*arguments)

    interrupted, other = threading.Thread(target=interrupt, daemon=True), threading.Thread(target=ask, daemon=True)
    list(model.generate([1, 2, 3], max_tokens=4))
    other.start()
    assert asking.wait(30)
    monkeypatch.setattr(owner, name, interrupted_here)
    interrupted.start()
    for thread in (interrupted, other):
        thread.join(30)
        assert not thread.is_alive()
    assert closed.is_set()
    with pytest.raises(UserError, match="closed"):
        model.generate([1])
    assert not any(thread.is_alive() for thread in model.runner._team._threads)


def test_a_signal_handler_may_close_a_model_that_others_ask() -> None:
    result = subprocess.run([sys.executable, "-c", HANDLER], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


END = """
import glmrun
from glmrun.engine.model import Model

model = glmrun.load(n_ctx=8192, n_threads=2)
answer = model.generate(list(range(900)) * 9, max_tokens=5)
while not next(answer).stats.prompt_seconds:
    pass
"""


def test_a_program_ends_in_the_middle_of_a_prompt() -> None:
    """At its end an iterator that somebody still holds is closed when no other thread can run any more."""
    result = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
