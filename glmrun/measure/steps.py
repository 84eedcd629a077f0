"""Steps of one sequence, timed: what `bench` and the comparisons measure."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from glmrun.engine.model import Model


class Steps:
    """A sequence of a model's that nobody else uses."""

    def __init__(self, model: "Model") -> None:
        self._model, self._runner, self._sequence = model, model.runner, model.latest

    @property
    def n_cached(self) -> int:
        """Positions of the cache in use."""
        return len(self._sequence.tokens)

    def truncate(self, n_tokens: int) -> None:
        """Keep the first n_tokens positions of the cache."""
        self._sequence.truncate(n_tokens)

    def prefill(self, tokens: Sequence[int], n_ubatch: int = 512) -> float:
        """Append tokens, n_ubatch in a step, computing the last one's logits; returns the seconds it took."""
        from glmrun.engine.passes import Run

        ids = self._model.checked(tokens, room=self._model.n_ctx - self.n_cached)  # int64 (tokens,)
        n_step = min(n_ubatch, self._runner.max_tokens)
        self._model.finite()
        start = time.perf_counter()
        for at in range(0, len(ids), n_step):
            logits = self._sequence.logits[: int(at + n_step >= len(ids))]
            self._runner.step([Run(self._sequence, ids[at : at + n_step], logits, ahead=True, likeliest=True)])
        return time.perf_counter() - start

    def decode(self, n: int, token: int = 0) -> float:
        """Append one token n times, one step each; returns the seconds it took.

        With a model that drafts: write n tokens behind that one, always the likeliest, ends of answers passed over.
        """
        from glmrun.engine.passes import Run

        if self._model.draft != "off":
            return self._write(n, token)
        ids: np.ndarray = self._model.checked([token] * n, room=self._model.n_ctx - self.n_cached)  # int64 (n,)
        start = time.perf_counter()
        for i in range(n):
            self._runner.step([Run(self._sequence, ids[i : i + 1], self._sequence.logits, likeliest=True)])
        return time.perf_counter() - start

    def _write(self, n: int, token: int) -> float:
        from glmrun.engine.generate import Limits, generate

        ids = self._model.checked([*self._sequence.tokens, token], room=self._model.n_ctx - n + 1)  # int64 (n_cached + 1,)
        limits = Limits(self._model.n_ctx, n, frozenset(), lambda: False, lambda _: True)
        drafter, sampler = self._model.drafter(self._sequence, ids), self._model.sampler(temperature=0)
        *_, last = generate(self._runner, nullcontext((self._sequence, drafter)), ids, sampler, limits)
        return last.stats.prompt_seconds + last.stats.generate_seconds
