"""glmrun.load() as programs use it: close() while others ask, an end in the middle of an answer."""

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.engine.model import Model
from glmrun.engine.passes import Passes
from quant.errors import UserError

QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def path(tiny_gguf: Callable[..., Tiny]) -> Any:
    return tiny_gguf("Q4_K_M", ODD).path


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
