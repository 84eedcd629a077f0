"""Tokens per second, measured as llama-bench measures, reported under its names.

A test reads n_prompt tokens (pp), makes n_gen tokens one by one (tg), or one after the other (pp+tg), each time from a cache that
holds n_depth tokens. Tokenizing and sampling are left out. One run of each test goes ahead unmeasured, so that reading the file
from disk is not in the numbers; how long it took is reported apart.
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

from glmrun.machine import cpu_name, disk_bytes, peak_memory
from glmrun.measure.steps import Steps

if TYPE_CHECKING:
    from glmrun.engine.model import Model

N_UBATCH = 512  # tokens of one step while a prompt is read, and at most
# llama.cpp's names of general.file_type, as its tools print them.
_FILE_TYPES = {0: "all F32", 1: "F16", 7: "Q8_0", 15: "Q4_K - Medium", 18: "Q6_K", 32: "BF16"}
# ... and of this architecture's sizes, distinguished by the number of layers.
_SIZES = {27: "16B", 47: "30B.A3B", 60: "236B", 61: "671B"}
# What llama-bench says about choices that glmrun does not have: its defaults for a CPU.
NO_PROCESSOR_CHOICE = {"cpu_mask": "0x0", "cpu_strict": False, "poll": 50}
NO_GPU = {
    "n_gpu_layers": 0, "n_cpu_moe": 0, "split_mode": "layer", "main_gpu": 0, "no_kv_offload": False, "flash_attn": 1,
    "devices": "none", "tensor_split": "0.00", "tensor_buft_overrides": "none", "load_mode": "mmap", "embeddings": False,
    "no_op_offload": 0, "no_host": False, "fit_target": 0, "fit_min_ctx": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One test on one file: n_prompt tokens read, then n_gen tokens made, behind n_depth tokens."""

    path: Path
    n_threads: int | None
    n_prompt: int
    n_gen: int
    n_depth: int = 0
    n_ubatch: int = N_UBATCH

    @property
    def name(self) -> str:
        return case_name(self.n_prompt, self.n_gen, self.n_depth)

    @property
    def n_tokens(self) -> int:
        return self.n_prompt + self.n_gen


def case_name(n_prompt: int, n_gen: int, n_depth: int) -> str:
    """llama-bench's name: pp512, tg128, pp512+tg128, pp512 @ d4096."""
    parts = [*([f"pp{n_prompt}"] if n_prompt else []), *([f"tg{n_gen}"] if n_gen else [])]
    return "+".join(parts) + (f" @ d{n_depth}" if n_depth else "")


@dataclass(frozen=True)
class Result:
    """What a case came to; samples in nanoseconds."""

    case: Case
    facts: dict[str, Any]  # of the file and the machine, llama-bench's names
    test_time: str
    samples_ns: list[int]
    prompt_ns: list[int]  # of each sample: until the first token could be chosen; 0 without a prompt
    load_seconds: float  # opening the file
    warmup_seconds: float
    bytes_per_token: int  # weights that one token reads
    peak_memory: int | None  # bytes of this process
    disk_bytes: int | None = None  # that came from disks for the samples
    hit_rate: float | None = None  # of a model larger than memory: the share of experts' bytes that were there when asked for

    @property
    def samples_ts(self) -> list[float]:
        """Tokens per second of each sample."""
        return [self.case.n_tokens * 1e9 / ns for ns in self.samples_ns]

    def asdict(self) -> dict[str, Any]:
        """One object of llama-bench's JSON, its fields in its order and nothing else."""
        return {
            **self.facts,
            "n_prompt": self.case.n_prompt,
            "n_gen": self.case.n_gen,
            "n_depth": self.case.n_depth,
            "test_time": self.test_time,
            **averages(self.samples_ns, self.samples_ts),
        }

    def wide(self, bandwidth: float | None) -> dict[str, Any]:
        """What llama-bench does not report; None where it does not apply. bandwidth: bytes a second that the memory gives."""
        writes = self.case.n_gen and not self.case.n_prompt and "draft" not in self.facts  # else a pass makes several tokens
        weights = self.bytes_per_token * statistics.fmean(self.samples_ts) if writes else None
        return {
            "ttft_ms": round(statistics.fmean(self.prompt_ns) / 1e6, 3) if self.case.n_prompt else None,
            "peak_memory_bytes": self.peak_memory,
            "weights_gb_s": round(weights / 1e9, 3) if weights else None,
            "bandwidth_share": round(weights / bandwidth, 4) if weights and bandwidth else None,
            "disk_gb_s": None if self.disk_bytes is None else round(self.disk_bytes / sum(self.samples_ns), 3),
            "disk_hit_rate": None if self.hit_rate is None else round(self.hit_rate, 4),
            "load_seconds": round(self.load_seconds, 3),
            "warmup_seconds": round(self.warmup_seconds, 3),
        }


def averages(samples_ns: list[int], samples_ts: list[float]) -> dict[str, Any]:
    """Means and standard deviations under llama-bench's names, then the samples."""
    spread = statistics.stdev if len(samples_ns) > 1 else lambda _: 0.0
    return {
        "avg_ns": round(statistics.fmean(samples_ns)),
        "stddev_ns": round(spread(samples_ns)),
        "avg_ts": statistics.fmean(samples_ts),
        "stddev_ts": spread(samples_ts),
        "samples_ns": samples_ns,
        "samples_ts": samples_ts,
    }


@dataclass(frozen=True)
class Choices:
    """What llama-bench's options -p -n -pg -d -t -ub ask for; 0 tokens means no such test."""

    n_prompt: Sequence[int] = (512,)
    n_gen: Sequence[int] = (128,)
    n_pg: Sequence[tuple[int, int]] = ()
    n_depth: Sequence[int] = (0,)
    n_threads: Sequence[int | None] = (None,)
    n_ubatch: Sequence[int] = (N_UBATCH,)

    def cases(self, path: Path) -> list[Case]:
        """All combinations on one file, in llama-bench's order."""
        pairs = [*((n, 0) for n in self.n_prompt), *((0, n) for n in self.n_gen), *self.n_pg]
        return [
            Case(path, n_threads, n_prompt, n_gen, depth, n_ubatch)
            for n_ubatch in self.n_ubatch
            for n_threads in self.n_threads
            for depth in self.n_depth
            for n_prompt, n_gen in pairs
            if n_prompt or n_gen
        ]


def measure(
    todo: Sequence[Case],
    repetitions: int,
    warmup: bool = True,
    kv_type: str | None = None,
    delay: float = 0.0,
    draft: str = "off",
) -> Iterator[tuple[Case, int, Result | None]]:
    """Run the cases in order; yields (case, samples taken, None) before each sample and (case, repetitions, Result) at its end.

    draft   other than off: tokens are not given but chosen, so that drafts can be right; results name it
    A model stays loaded as long as the next case wants the same file and number of threads. delay: seconds of rest before a case.
    Raises UserError for a file that can't be run or a test that does not fit the model's context.
    """
    import glmrun

    model: Model | None = None
    loaded: tuple[Path, int | None] | None = None
    for case in todo:
        if loaded != (case.path, case.n_threads):
            same = [c for c in todo if (c.path, c.n_threads) == (case.path, case.n_threads)]
            n_ctx = max(c.n_depth + c.n_tokens for c in same)
            if model is not None:
                model.close()
            model = None  # two models at once may not fit
            began = time.perf_counter()
            model = glmrun.load(case.path, n_ctx=n_ctx, n_threads=case.n_threads, kv_type=kv_type, draft=draft)
            load_seconds = time.perf_counter() - began
            steps = Steps(model)
            loaded, filled = (case.path, case.n_threads), 0
        assert model is not None
        yield case, 0, None
        time.sleep(delay)
        test_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        peak_memory(restart=True)
        began = time.perf_counter()
        if filled != case.n_depth:
            steps.truncate(0)
            filled = case.n_depth
        if warmup:
            _once(model, steps, case)
        warmup_seconds = time.perf_counter() - began
        samples, from_disk, (wanted, hits) = [], disk_bytes(), model.runner.hits
        for i in range(repetitions):
            yield case, i, None
            samples.append(_once(model, steps, case))
        totals, prompts = [round(1e9 * (p + g)) for p, g in samples], [round(1e9 * p) for p, _ in samples]
        from_disk = None if from_disk is None else (disk_bytes() or 0) - from_disk
        wanted, hits = (after - before for after, before in zip(model.runner.hits, (wanted, hits), strict=True))
        told, read = facts(model) | {"n_ubatch": case.n_ubatch}, model.weights.bytes_per_token
        told |= {} if draft == "off" else {"draft": draft}
        yield (
            case, repetitions,
            Result(case, told, test_time, totals, prompts, load_seconds, warmup_seconds, read, peak_memory(), from_disk,
                   hits / wanted if wanted else None),
        )  # fmt: skip


def _once(model: "Model", steps: Steps, case: Case) -> tuple[float, float]:
    """Seconds of one run: (of the prompt, of the tokens made). What stands at its depth is kept."""
    steps.truncate(case.n_depth)
    if steps.n_cached < case.n_depth:
        steps.prefill(_tokens(model, case.n_depth, seed=1))
    prompt = steps.prefill(_tokens(model, case.n_prompt, seed=2), case.n_ubatch) if case.n_prompt else 0.0
    return prompt, steps.decode(case.n_gen) if case.n_gen else 0.0


def _tokens(model: "Model", count: int, seed: int) -> list[int]:
    """Random token ids, the same in every run: experts are chosen as for any text."""
    return np.random.default_rng(seed).integers(0, model.config.vocab_size, count).tolist()


def facts(model: "Model") -> dict[str, Any]:
    """The file and the machine under llama-bench's names."""
    from glmrun import __version__
    from glmrun.tensors.weights import KV_TYPES

    tensors = model.file.tensors.values()
    cache = next(name for name, code in KV_TYPES.items() if code == model.weights.model["cache_type"])
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
        "n_batch": N_UBATCH,
        "n_ubatch": N_UBATCH,
        "n_threads": model.n_threads,
        **NO_PROCESSOR_CHOICE,
        "type_k": cache,
        "type_v": cache,
        **NO_GPU,
    }


def model_type(n_layers: int, file_type: int | None) -> str:
    """llama.cpp's description of a model: architecture, size, quantization; ?B for a size that has no name."""
    kind = _FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown"
    return f"deepseek2 {_SIZES.get(n_layers, '?B')} {kind}"
