"""The bench's tests on a server with OpenAI's interface, timed from outside.

A prompt is N common words, one token each in most vocabularies, behind a few that differ every time, so that no cache knows
it. Times are those of as many tokens as the test names, at the speed of as many as the server counted:

    reading   prompt tokens less cached ones / seconds until the first piece of the answer, the way there and back included
    writing   tokens after the first / seconds from the first piece to the end
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from glmrun.chat.request import ChatRequest
from glmrun.measure.bench import NO_GPU, NO_PROCESSOR_CHOICE, Case, Result
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.chat.remote import RemoteModel

_COMMON = """
the of and to in is was for on that by this with you it not or be are from at as your all have new more an we will home can us about
if page my has search free but our one other do no information time they site he up may what which their news out use any there see
only so his when contact here business who web also now help get view online first am been would how were services some these click
its like service than find price date back top people had list name just over state year day into
"""
_DIFFERENT = 8  # words at the start that no earlier prompt had
LONG_ANSWER = "Write the numbers from one upwards as words, separated by commas. Do not stop before ten thousand."


@dataclass(frozen=True)
class _Run:
    """One answer: what the server counted, and seconds."""

    n_prompt: int
    n_generated: int
    prompt_seconds: float
    generate_seconds: float


def measure_server(
    model: "RemoteModel", todo: Sequence[Case], repetitions: int, warmup: bool = True, delay: float = 0.0
) -> Iterator[tuple[Case, int, Result | None]]:
    """As bench.measure(), for cases without a depth. Raises UserError if the server fails, or ends an answer at its first token."""
    for case in todo:
        yield case, 0, None
        time.sleep(delay)
        test_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        began = time.perf_counter()
        if warmup:
            _once(model, case)
        warmup_seconds = time.perf_counter() - began
        totals, prompts = [], []
        for i in range(repetitions):
            yield case, i, None
            run = _once(model, case)
            totals.append(round(1e9 * _seconds(model, case, run)))
            prompts.append(round(1e9 * run.prompt_seconds) if case.n_prompt else 0)
        yield case, repetitions, Result(case, facts(model), test_time, totals, prompts, 0.0, warmup_seconds, 0, None)


def _once(model: "RemoteModel", case: Case) -> _Run:
    common = _COMMON.split()
    words = random.Random().choices(common, k=_DIFFERENT) + random.Random(2).choices(common, k=case.n_prompt)
    text = " ".join(words[: case.n_prompt])
    ask = LONG_ANSWER if case.n_gen else ""
    stats = None
    question = {"role": "user", "content": "\n\n".join(filter(None, (text, ask)))}
    for chunk in model.answer(ChatRequest([question], max_tokens=max(1, case.n_gen), sampling={"temperature": 0.0})):
        stats = chunk.stats
    assert stats is not None
    return _Run(stats.n_prompt - stats.n_cached, stats.n_generated, stats.prompt_seconds, stats.generate_seconds)


def _seconds(model: "RemoteModel", case: Case, run: _Run) -> float:
    """What the case's own numbers of tokens take at the run's speeds."""
    seconds = 0.0
    if case.n_prompt:
        seconds += run.prompt_seconds * case.n_prompt / (run.n_prompt or case.n_prompt)
    if case.n_gen:
        if run.n_generated < 2 or run.generate_seconds <= 0:
            raise UserError(f"{model.path}: the answer to {case.name} ended at its first token; there is no speed to measure")
        seconds += run.generate_seconds * case.n_gen / (run.n_generated - 1)
    return seconds


def facts(model: "RemoteModel") -> dict[str, Any]:
    """llama-bench's fields; the address stands for the processor, what a server does not report is empty or 0."""
    from glmrun import __version__

    return {
        "build_commit": f"glmrun-{__version__}", "build_number": 0, "cpu_info": model.url, "gpu_info": "", "backends": "server",
        "model_filename": model.name, "model_type": model.name, "model_size": 0, "model_n_params": 0, "n_batch": 0, "n_ubatch": 0,
        "n_threads": 0, **NO_PROCESSOR_CHOICE, "type_k": "", "type_v": "", **NO_GPU,
    }  # fmt: skip
