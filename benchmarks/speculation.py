"""What passes of several tokens cost, and what drafts gain where an answer repeats its prompt and lose where nothing repeats.

python benchmarks/speculation.py FILE [--threads 2] [--tokens 200] [--rounds 5]

The model does all of its work; only its choices are replaced: by the prompt's own tokens, or by random ones. Everything in turns
in one run, as ratios of medians.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import glmrun
from glmrun.engine.generate import Limits, generate
from glmrun.engine.model import Model
from glmrun.engine.runner import Run
from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.speculative import EXACT, LENGTHS, Drafter


@dataclass
class Chosen:
    """A sampler whose tokens are given."""

    tokens: Sequence[int]
    n_prompt: int

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        return self.tokens[len(history) - self.n_prompt]


def costs(model: Model, sequence: Conversation, rounds: int) -> dict[int, float]:
    """{tokens of a pass: its cost in passes of one} behind what the sequence holds."""
    rng, vocabulary, depth = np.random.default_rng(0), model.config.vocab_size, len(sequence.tokens)
    logits = np.empty((1 + max(LENGTHS), vocabulary), np.float32)  # float32 (17, n_vocab)
    seconds: dict[int, list[float]] = {1 + n: [] for n in (0, *LENGTHS)}
    for _ in range(rounds):
        for n, samples in seconds.items():
            run = Run(sequence, rng.integers(0, vocabulary, n), logits[:n], exact=n <= 1 + EXACT)
            start = time.perf_counter()
            model.runner.step([run])
            samples.append(time.perf_counter() - start)
            sequence.truncate(depth)
    one = statistics.median(seconds[1])
    return {n: statistics.median(samples) / one for n, samples in seconds.items()}


def write(model: Model, sequence: Conversation, prompt: list[int], answer: list[int], kind: str) -> tuple[float, str]:
    """(seconds, what was drafted) of an answer whose tokens are given."""
    sequence.truncate(len(prompt) - 1)
    drafter = None if kind == "off" else Drafter(prompt, model.runner.costs, kind, exact=False)
    limits = Limits(model.n_ctx, len(answer), frozenset(), lambda: False, lambda _: True)
    ids = np.array(prompt, np.int64)  # int64 (n_prompt,)
    *_, last = generate(model.runner, sequence, ids, Chosen(answer, len(prompt)), limits, drafter)  # type: ignore[arg-type]
    stats = last.stats
    return stats.generate_seconds, f"{stats.n_accepted} of {stats.n_drafted} right, {stats.n_passes} passes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with glmrun.load(given.file, n_ctx=3 * given.tokens + 64, n_threads=given.threads, draft="off") as model:
        model.finite()
        c = model.config
        sequence = Conversation(c.num_hidden_layers, model.n_ctx, int(model.weights.model["row_bytes"]), c.vocab_size)
        rng = np.random.default_rng(1)
        text, other = (rng.integers(0, c.vocab_size, given.tokens).tolist() for _ in range(2))
        model.runner.step([Run(sequence, np.array(text, np.int64), sequence.logits)])
        print("cost of a pass, in passes of one token: ", end="")
        print(", ".join(f"{n} tokens {ratio:.2f}" for n, ratio in costs(model, sequence, given.rounds).items()), flush=True)
        for name, prompt, answer, kinds in (
            ("an answer that repeats its prompt", text + text[:8], text[8:], ("off", "ngram", "auto")),
            ("an answer that repeats nothing", text, other, ("off", "auto")),
        ):
            write(model, sequence, prompt, answer[:2], "off")
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            for _ in range(given.rounds):
                for kind, samples in seconds.items():
                    taken, drafted = write(model, sequence, prompt, answer, kind)
                    samples.append(taken)
            off = statistics.median(seconds["off"])
            speeds = [f"{kind} {off / statistics.median(samples):.2f}" for kind, samples in seconds.items() if kind != "off"]
            print(f"{name}, times as fast as off: {', '.join(speeds)} (auto: {drafted})", flush=True)


if __name__ == "__main__":
    main()
