"""Tokens per second, measured the way llama-bench does and told under its names.

A test reads n_prompt tokens in one pass (pp) or makes n_gen tokens one by one (tg), each time from a cache that holds n_depth
tokens. Tokenizing and sampling are left out. One run of each test goes ahead unmeasured, so that reading the file from disk is
not in the numbers; how long it took is reported apart.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glmrun.measure.machine import cpu_name

if TYPE_CHECKING:
    from glmrun.engine import Model

# llama.cpp's names of general.file_type, as its tools print them.
_FILE_TYPES = {0: "all F32", 1: "F16", 7: "Q8_0", 15: "Q4_K - Medium", 18: "Q6_K", 32: "BF16"}
# ... and of this architecture's sizes, told apart by the number of layers.
_SIZES = {27: "16B", 47: "30B.A3B", 60: "236B", 61: "671B"}


@dataclass(frozen=True)
class Case:
    """One test on one file: n_prompt tokens read or n_gen tokens made, behind n_depth tokens."""

    path: Path
    n_threads: int | None
    n_prompt: int
    n_gen: int
    n_depth: int = 0

    @property
    def name(self) -> str:
        """llama-bench's name: pp512, tg128, pp512 @ d4096."""
        name = f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"
        return f"{name} @ d{self.n_depth}" if self.n_depth else name

    @property
    def n_tokens(self) -> int:
        return self.n_prompt or self.n_gen


@dataclass(frozen=True)
class Result:
    """What a case came to; samples in nanoseconds."""

    case: Case
    facts: dict[str, Any]  # of the file and the machine, llama-bench's names
    test_time: str
    samples_ns: list[int]
    load_seconds: float  # opening the file
    warmup_seconds: float

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each sample."""
        return [self.case.n_tokens * 1e9 / ns for ns in self.samples_ns]

    def asdict(self) -> dict[str, Any]:
        """One object of llama-bench's JSON, plus load_seconds and warmup_seconds."""
        spread = statistics.stdev if len(self.samples_ns) > 1 else lambda _: 0.0
        return {
            **self.facts,
            "n_prompt": self.case.n_prompt,
            "n_gen": self.case.n_gen,
            "n_depth": self.case.n_depth,
            "test_time": self.test_time,
            "avg_ns": round(statistics.fmean(self.samples_ns)),
            "stddev_ns": round(spread(self.samples_ns)),
            "avg_ts": statistics.fmean(self.samples_ts),
            "stddev_ts": spread(self.samples_ts),
            "load_seconds": round(self.load_seconds, 3),
            "warmup_seconds": round(self.warmup_seconds, 3),
            "samples_ns": self.samples_ns,
            "samples_ts": self.samples_ts,
        }


def cases(
    paths: Sequence[Path], prompts: Sequence[int], gens: Sequence[int], depths: Sequence[int], threads: Sequence[int | None]
) -> list[Case]:
    """All combinations, a file's together, in the order of a side-by-side table; 0 tokens means no such test."""
    return [
        case
        for path in paths
        for n_threads in threads
        for depth in depths
        for case in [
            *(Case(path, n_threads, n, 0, depth) for n in prompts if n),
            *(Case(path, n_threads, 0, n, depth) for n in gens if n),
        ]
    ]


def measure(
    todo: Sequence[Case], repetitions: int, warmup: bool = True, kv_type: str | None = None
) -> Iterator[tuple[Case, int, Result | None]]:
    """Run the cases in order; yields (case, samples taken, None) before each sample and (case, repetitions, Result) at its end.

    A model stays loaded as long as the next case wants the same file and number of threads.
    Raises UserError for a file that can't be run or a test that does not fit the model's context.
    """
    import glmrun

    model: Model | None = None
    loaded: tuple[Path, int | None] | None = None
    for case in todo:
        if loaded != (case.path, case.n_threads):
            same = [c for c in todo if (c.path, c.n_threads) == (case.path, case.n_threads)]
            n_ctx = max(c.n_depth + c.n_tokens for c in same)
            model = None  # two models at once may not fit
            began = time.perf_counter()
            model = glmrun.load(case.path, n_ctx=n_ctx, n_threads=case.n_threads, kv_type=kv_type)
            load_seconds = time.perf_counter() - began
            loaded = (case.path, case.n_threads)
        assert model is not None
        yield case, 0, None
        test_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        began = time.perf_counter()
        if warmup:
            _once(model, case)
        warmup_seconds = time.perf_counter() - began
        samples = []
        for i in range(repetitions):
            yield case, i, None
            samples.append(round(_once(model, case) * 1e9))
        yield case, repetitions, Result(case, facts(model), test_time, samples, load_seconds, warmup_seconds)


def _once(model: "Model", case: Case) -> float:
    """Seconds of one run."""
    model.reset()
    if case.n_depth:
        model.prefill_tokens(_tokens(model, case.n_depth, seed=1))
    if case.n_prompt:
        return model.prefill_tokens(_tokens(model, case.n_prompt, seed=2))
    return model.decode_tokens(case.n_gen)


def _tokens(model: "Model", count: int, seed: int) -> list[int]:
    """Random token ids, the same in every run: experts are chosen as for any text."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count).tolist()


def facts(model: "Model") -> dict[str, Any]:
    """The file and the machine under llama-bench's names."""
    from glmrun import __version__
    from glmrun.engine import MAX_TOKENS

    tensors = model.file.tensors.values()
    return {
        "build_commit": f"glmrun-{__version__}",
        "build_number": 0,
        "cpu_info": cpu_name(),
        "gpu_info": "",
        "backends": "numba-cpu",
        "model_filename": str(model.path),
        "model_type": model_type(model.config.num_hidden_layers, model.file.metadata.get("general.file_type")),
        "model_size": sum(t.n_bytes for t in tensors),
        "model_n_params": sum(prod(t.shape) for t in tensors),
        "n_batch": MAX_TOKENS,
        "n_ubatch": MAX_TOKENS,
        "n_threads": model.n_threads,
        "type_k": "f16",
        "type_v": "f16",
    }


def model_type(n_layers: int, file_type: int | None) -> str:
    """llama.cpp's description of a model: architecture, size, quantization; ?B for a size that has no name."""
    return f"deepseek2 {_SIZES.get(n_layers, '?B')} {_FILE_TYPES.get(file_type, 'unknown')}"  # type: ignore[arg-type]
