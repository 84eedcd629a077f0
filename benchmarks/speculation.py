"""What passes of several tokens cost, what drafts gain and lose, and how often nano's prediction layer is right.

python benchmarks/speculation.py FILE [--threads 2] [--tokens 200] [--rounds 5]
python benchmarks/speculation.py --skills [--questions 12]

FILE: the model does all of its work; only its choices are replaced: by the prompt's own tokens, or by random ones. With a
next-token-prediction layer the guesses, too: after its work is done they are what comes in 75 % of the places, else something
else. Everything in turns in one run, as ratios of medians. --skills: questions of each of nano's skills, answered at temperature
0 and 1; no time is measured.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

import glmrun
from glmrun.engine.generate import Limits, generate
from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.speculative import EXACT, LENGTHS, Drafter
from glmrun.gguf.architecture import open_model_file
from glmrun.measure.evaluation import read_suite
from glmrun.store.nano import CHECKPOINT

RIGHT = 0.75  # of the oracle's guesses


@dataclass
class Chosen:
    """A sampler whose tokens are given."""

    tokens: Sequence[int]
    n_prompt: int
    reads_all: bool = False  # as Sampler's

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        return self.tokens[len(history) - self.n_prompt]


class Oracle:
    """The prediction layer's guesses: it does its work, and then most of them are what comes."""

    def __init__(self, model: Model, sequence: Conversation, text: list[int]) -> None:
        self._model, self._sequence, self._text, self._rng = model, sequence, text, np.random.default_rng(3)

    def __call__(self, token: int, n: int) -> list[int]:
        found, at = self._model.runner.guess(self._sequence, token, n), len(self._sequence.tokens) + 1
        coming = (self._text[at : at + len(found)] + found)[: len(found)]
        return [right if self._rng.random() < RIGHT else (right + 1) % self._model.config.vocab_size for right in coming]


def costs(model: Model, sequence: Conversation, rounds: int) -> dict[int, float]:
    """{tokens of a pass: its cost in passes of one} behind what the sequence holds."""
    rng, vocabulary, depth = np.random.default_rng(0), model.config.vocab_size, len(sequence.tokens)
    logits = np.empty((1 + max(LENGTHS), vocabulary), np.float32)  # float32 (17, n_vocab)
    seconds: dict[int, list[float]] = {1 + n: [] for n in (0, *LENGTHS)}
    for _ in range(rounds):
        for n, samples in seconds.items():
            run = Run(sequence, rng.integers(0, vocabulary, n), logits[:n], exact=n <= 1 + EXACT, likeliest=True, draft=True)
            start = time.perf_counter()
            model.runner.step([run])
            samples.append(time.perf_counter() - start)
            sequence.truncate(depth)
    one = statistics.median(seconds[1])
    return {n: statistics.median(samples) / one for n, samples in seconds.items()}


def write(model: Model, sequence: Conversation, prompt: list[int], answer: list[int], kind: str) -> tuple[float, str]:
    """(seconds, what was drafted) of an answer whose tokens are given."""
    sequence.truncate(len(prompt) - 1)
    guess = None if sequence.states is None else Oracle(model, sequence, prompt + answer)
    drafter = None if kind == "off" else Drafter(prompt, model.runner.costs, kind, exact=False, guess=guess)
    limits = Limits(model.n_ctx, len(answer), frozenset(), lambda: False, lambda _: True)
    ids = np.array(prompt, np.int64)  # int64 (n_prompt,)
    *_, last = generate(model.runner, nullcontext((sequence, drafter)), ids, Chosen(answer, len(prompt)), limits)  # type: ignore[arg-type]
    stats = last.stats
    return stats.generate_seconds, f"{stats.n_accepted} of {stats.n_drafted} right, {stats.n_passes} passes"


def compare(file: str, threads: int, n_tokens: int, rounds: int) -> None:
    """Print what passes of one file cost and what drafts come to."""
    has_layer = open_model_file(file).config.num_nextn_predict_layers > 0
    draft = "mtp" if has_layer else "off"
    with glmrun.load(file, n_ctx=3 * n_tokens + 64, n_threads=threads, draft=draft) as model:
        model.finite()
        c, shape = model.config, model.weights.cache_shape(model.n_ctx)
        plain, ahead = Conversation(c.num_hidden_layers, *shape[1:5]), Conversation(*shape)
        rng = np.random.default_rng(1)
        text, other = (rng.integers(0, c.vocab_size, n_tokens).tolist() for _ in range(2))
        model.runner.step([Run(plain, np.array(text, np.int64), plain.logits)])
        print("cost of a pass, in passes of one token: ", end="")
        print(", ".join(f"{n} tokens {ratio:.2f}" for n, ratio in costs(model, plain, rounds).items()), flush=True)
        oracle = ("off", "mtp", "mtp:2", "mtp:3", "auto") if has_layer else ()
        for name, prompt, answer, kinds, drafted_in in (
            ("an answer that repeats its prompt", text + text[:8], text[8:], ("off", "ngram", "auto"), plain),
            ("an answer that repeats nothing", text, other, ("off", "auto"), plain),
            (f"a layer that is right {RIGHT:.0%} of the time", text, other, oracle, ahead),
        ):
            seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
            told = {}
            for i in range(rounds + 1 if kinds else 0):  # the first one is not counted
                for kind, samples in seconds.items():
                    sequence = plain if kind == "off" else drafted_in
                    taken, told[kind] = write(model, sequence, prompt, answer if i else answer[:2], kind)
                    samples += [taken] if i else []
            for kind, samples in seconds.items():
                if kind != "off":
                    ratio = statistics.median(seconds["off"]) / statistics.median(samples)
                    print(f"{name}: {kind} {ratio:.2f} times as fast as off ({told[kind]})", flush=True)


def skills(n_questions: int) -> None:
    """Print how often nano's prediction layer guesses the token that is drawn, by skill, and tokens per pass with three guesses."""
    suite, chosen = read_suite(CHECKPOINT / "skills.jsonl"), defaultdict(list)
    for question in suite:
        if len(chosen[question.skill]) < n_questions:
            chosen[question.skill].append(question)
    counts: dict[str, dict[tuple[str, float], list[int]]] = {skill: {} for skill in [*sorted(chosen), "all"]}
    for kind in ("mtp", "mtp:3"):
        with glmrun.load(n_ctx=2048, draft=kind) as model:
            for skill, questions in sorted(chosen.items()):
                for temperature in (0.0, 1.0):
                    sums = [0, 0, 0, 0]
                    for question in questions:
                        options = {"tools": question.tools, "thinking": question.thinking, "max_tokens": 200}
                        chunks = list(model.chat(question.messages, temperature=temperature, seed=1, **options))
                        stats = chunks[-1].stats
                        counted = stats.n_guessed_right, stats.n_guessed, stats.n_generated, stats.n_passes + 1
                        sums = [a + b for a, b in zip(sums, counted, strict=True)]
                    for name in (skill, "all"):
                        before = counts[name].setdefault((kind, temperature), [0, 0, 0, 0])
                        counts[name][kind, temperature] = [a + b for a, b in zip(before, sums, strict=True)]
    print("| skill | right at 0 | right at 1 | tokens a pass, three guesses, at 0 | at 1 |\n|---|---|---|---|---|")
    for name, found in counts.items():
        right = [f"{found['mtp', t][0]} of {found['mtp', t][1]}: {found['mtp', t][0] / found['mtp', t][1]:.1%}" for t in (0.0, 1.0)]
        per_pass = [f"{found['mtp:3', t][2] / found['mtp:3', t][3]:.2f}" for t in (0.0, 1.0)]
        print(f"| {name} | {' | '.join([*right, *per_pass])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--skills", action="store_true")
    parser.add_argument("--questions", type=int, default=12)
    given = parser.parse_args()
    if given.skills:
        skills(given.questions)
    elif given.file:
        compare(given.file, given.threads, given.tokens, given.rounds)
    else:
        parser.error("a FILE or --skills is expected")


if __name__ == "__main__":
    main()
