"""Logits of which only the largest are exact, beside exact ones: is the same token chosen, how far are the others, what is won?

    python benchmarks/likeliest.py MODEL.gguf [--positions 10000]

Random tokens in sequences of their own, sixteen in a step, each step once with all logits exact and once with the largest alone.
Prints for how many positions the likeliest token, the ten likeliest and their order differ, the largest error of a logit in
deviations of the logits, the mean KL divergence (nats) of the probabilities, and the time of a step of one token, in turns.
"""

import argparse
import statistics
import time

import numpy as np

from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence

SEQUENCES = 16


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of float32 (n, n_vocab) in float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))  # float64 (n, n_vocab)
    return weights / weights.sum(-1, keepdims=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--positions", type=int, default=10000)
    args = parser.parse_args()
    model = Model(args.model, 256, draft="off")
    model.prefault.wait(600)
    rng, n_vocab = np.random.default_rng(1), model.config.vocab_size
    sequences = [Sequence(*model.weights.cache_shape(256)) for _ in range(SEQUENCES)]
    first = different = order = 0
    worst, divergence = 0.0, []
    for step in range(-(-args.positions // SEQUENCES)):
        tokens, found = rng.integers(0, n_vocab, SEQUENCES), []
        for likeliest in (False, True):
            for sequence in sequences:
                sequence.truncate(step % 200)
            logits = np.empty((SEQUENCES, 1, n_vocab), np.float32)  # float32 (SEQUENCES, 1, n_vocab)
            runs = [Run(s, tokens[i : i + 1], logits[i], likeliest=likeliest) for i, s in enumerate(sequences)]
            model.runner.step(runs)
            found.append(logits[:, 0])
        exact, near = found
        first += np.count_nonzero(exact.argmax(-1) != near.argmax(-1))
        for a, b in zip(exact, near, strict=True):
            tens = [ids[np.argsort(-x[ids])] for x in (a, b) for ids in [np.argpartition(-x, 10)[:10]]]
            different += set(tens[0]) != set(tens[1])
            order += list(tens[0]) != list(tens[1])
        worst = max(worst, float((np.abs(exact - near).max(-1) / exact.std(-1)).max()))
        if step % 50 == 0:
            p, q = probabilities(exact), probabilities(near)
            divergence.extend(np.sum(p * np.log(p / q), -1))
    n = SEQUENCES * (step + 1)
    print(f"{n:,} positions: the likeliest token differs in {first}, the ten likeliest in {different}, their order in {order}")
    print(f"largest error of a logit {worst:.4f} deviations; KL divergence {np.mean(divergence):.2e} nats")
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(40):
        for likeliest in (0, 1):
            sequences[0].truncate(16)
            start = time.perf_counter()
            for _ in range(4):
                model.runner.step([Run(sequences[0], np.array([77]), sequences[0].logits, likeliest=bool(likeliest))])
            times[likeliest].append((time.perf_counter() - start) / 4 * 1e3)
    print(f"a token: {statistics.median(times[0]):.2f} ms with all exact, {statistics.median(times[1]):.2f} with the largest alone")
    model.close()


if __name__ == "__main__":
    main()
