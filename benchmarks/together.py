"""Several sequences written together against one alone, tokens a second in all; llama.cpp's batched decode of as many beside it.

python benchmarks/together.py FILE [--threads 2] [--counts 1,2,4,8] [--tokens 24] [--rounds 3] [--depth 16]

All counts in turns in one run, the median of the rounds. llama.cpp (with the dev extras) decodes one batch of as many sequences.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import glmrun
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence


def ours(path: str, threads: int, most: int, depth: int) -> Callable[[int, int], float]:
    """A function (sequences, tokens of each) -> tokens a second in all, on sequences of `depth` tokens."""
    model = glmrun.load(path, n_ctx=1024, n_threads=threads)
    model.finite()
    sequences = [Sequence(*model.weights.cache_shape(1024)) for _ in range(most)]
    prompt = np.arange(100, 100 + depth)  # int64 (depth,)

    def write(count: int, n_tokens: int) -> float:
        for i, sequence in enumerate(sequences[:count]):
            sequence.truncate(0)
            model.runner.step([Run(sequence, prompt + i, sequence.logits)])
        start = time.perf_counter()
        for step in range(n_tokens):
            runs = [Run(s, np.array([500 + 37 * i + step]), s.logits, likeliest=True) for i, s in enumerate(sequences[:count])]
            model.runner.step(runs)
        return count * n_tokens / (time.perf_counter() - start)

    return write


def theirs(path: str, threads: int, most: int, depth: int) -> Callable[[int, int], float] | None:
    """The same with llama.cpp; None where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_seq_max, parameters.n_threads, parameters.n_threads_batch = 1024 * most, most, threads, threads
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, None)
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    context = llama_cpp.llama_init_from_model(model, parameters)

    def decode(tokens: list[tuple[int, int, int]]) -> None:
        """One batch of (token, position, sequence), the logits of all."""
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, 1
            batch.seq_id[i][0] = sequence
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_batch_free(batch)

    def write(count: int, n_tokens: int, kept: object = silent) -> float:  # the library calls what nobody else holds
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        for i in range(count):
            decode([(100 + i + p, p, i) for p in range(depth)])
        start = time.perf_counter()
        for step in range(n_tokens):
            decode([(500 + 37 * i + step, depth + step, i) for i in range(count)])
        return count * n_tokens / (time.perf_counter() - start)

    return write


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--counts", default="1,2,4,8")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    engines = {
        "glmrun": ours(options.model, options.threads, max(counts), options.depth),
        "llama.cpp": theirs(options.model, options.threads, max(counts), options.depth),
    }
    samples: dict[str, dict[int, list[float]]] = {name: {n: [] for n in counts} for name, write in engines.items() if write}
    for _ in range(options.rounds):
        for count in counts:
            for name, write in engines.items():
                if write:
                    samples[name][count].append(write(count, options.tokens))
    medians = {name: {n: statistics.median(values) for n, values in rows.items()} for name, rows in samples.items()}
    print("| sequences | " + " | ".join(f"{name}, tokens a second | times one" for name in medians) + " |")
    print("|---|" + "---|---|" * len(medians))
    for count in counts:
        cells = [f"{rows[count]:.1f} | {rows[count] / rows[counts[0]]:.2f}" for rows in medians.values()]
        print(f"| {count} | " + " | ".join(cells) + " |")
    if options.out:
        options.out.write_text(json.dumps({"model": Path(options.model).stem, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
