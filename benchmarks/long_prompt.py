"""A running stream beside a long prompt: its longest gap, a short prompt's first token, and how soon a closed answer ends.

python benchmarks/long_prompt.py FILE [--tokens 4096] [--threads 2] [--closes 8]
"""

import argparse
import statistics
import threading
import time

import numpy as np

import glmrun
from glmrun.engine.model import Model


def gaps(model: Model, prompt: list[int]) -> tuple[list[float], float, float]:
    """(gaps of a stream while the prompt is read, seconds of that, a short prompt's first token in its middle)."""
    options = {"temperature": 0.0, "logit_bias": dict.fromkeys(model.tokenizer.eog_ids, -100.0)}
    stream = model.generate(prompt[:20], **options)
    next(chunk for chunk in stream if chunk.token is not None)
    read = threading.Event()

    def reader() -> None:
        list(model.generate(prompt, max_tokens=1))
        read.set()

    def short() -> None:
        time.sleep(5)
        start = time.perf_counter()
        list(model.generate(prompt[100:150], max_tokens=1))
        first.append(time.perf_counter() - start)

    first: list[float] = []
    threads = [threading.Thread(target=work) for work in (reader, short)]
    for thread in threads:
        thread.start()
    found, begin = [], time.perf_counter()
    last = begin
    for chunk in stream:
        if chunk.token is not None:
            found.append(time.perf_counter() - last)
            last = time.perf_counter()
        if read.is_set():
            break
    seconds = time.perf_counter() - begin
    stream.close()  # type: ignore[attr-defined]
    for thread in threads:
        thread.join()
    return found, seconds, first[0]


def closes(model: Model, prompt: list[int], n: int) -> list[float]:
    """Seconds until an answer that is closed at a random moment of its prompt has ended."""
    rng, found = np.random.default_rng(1), []
    for i in range(n):
        answer = model.generate([i, *prompt], max_tokens=1)
        moment = time.perf_counter() + rng.uniform(0.5, 3.0)
        for _ in answer:
            if time.perf_counter() > moment:
                break
        start = time.perf_counter()
        answer.close()  # type: ignore[attr-defined]
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--closes", type=int, default=8)
    options = parser.parse_args()
    prompt = np.random.default_rng(0).integers(100, 20_000, options.tokens).tolist()
    with glmrun.load(options.model, n_ctx=options.tokens + 512, n_threads=options.threads, draft="off") as model:
        model.finite()
        model.measure()
        found, seconds, first = gaps(model, prompt)
        print(f"{options.tokens:,} tokens read in {seconds:.1f} s beside a stream: {len(found)} tokens of it meanwhile,")
        print(f"longest gap {max(found):.2f} s, median {statistics.median(found):.2f} s")
        print(f"a short prompt's first token after {first:.2f} s")
        ended = closes(model, prompt, options.closes)
        print(f"closed in a prompt: ended after {statistics.median(ended):.3f} s, at most {max(ended):.3f} s")


if __name__ == "__main__":
    main()
