"""Calls of forward() inside a step: the model's, and those that give the prediction layer what it reads."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from glmrun.engine.crew import Crew
from glmrun.engine.sequence import Sequence as Conversation
from glmrun.engine.workspace import Part, Workspace
from glmrun.forward import CANCELLED, FAILED, forward
from glmrun.kernels.team import Team
from glmrun.tensors.weights import Stack, Weights


@dataclass(frozen=True)
class Run:
    """New tokens of one sequence, int64 (n,), checked; logits, float32 (n_logits, n_vocab), takes those after the last of them.

    exact      each token computes, bit for bit, what it would in a step of its own; all logits are wanted then
    ahead      the prediction layer, where it runs, reads the tokens, too
    likeliest  of a token's logits only the largest need be exact (kernels/likely.py)
    draft      the tokens behind the first are guesses, and somebody waits for them; else several tokens are a piece of a prompt
    """

    sequence: Conversation
    tokens: np.ndarray
    logits: np.ndarray
    exact: bool = False
    ahead: bool = False
    likeliest: bool = False
    draft: bool = False

    @property
    def n_read(self) -> int:
        """How many of the tokens are of a prompt."""
        return len(self.tokens) if len(self.tokens) > 1 and not self.draft else 0

    def parts(self) -> list[Part]:
        """What the step computes: for an exact run a part for each token, on the same rows; a layer writes all before it reads."""
        cache, position = self.sequence.cache, len(self.sequence.tokens)
        if self.exact:
            return [Part(cache, position + i, 1, 1, self.likeliest) for i in range(len(self.tokens))]
        return [Part(cache, position, len(self.tokens), len(self.logits), self.likeliest)]


class DiskFailed(Exception):
    """Some of the weights could not be read from their disk."""


class Passes:
    """What a team computes with a workspace. What returns None was cancelled. Raises DiskFailed."""

    def __init__(self, weights: Weights, workspace: Workspace, team: Team) -> None:
        self.weights, self.workspace, self._team = weights, workspace, team
        self._model = Stack(weights.model, weights.layers)
        self._crews = defaultdict[int, Crew](lambda: Crew(team.n_threads))  # by the number of sequences that each get a token
        self._n_done = 0

    @property
    def n_layers_done(self) -> int:
        """How far the running step is."""
        return max(self._n_done, self._team.parts)

    def begin(self) -> None:
        """From now on no layer of a step is done."""
        self._n_done = self._team.parts = 0

    def run(self, stack: Stack, parts: Sequence[Part], x: np.ndarray, logits: np.ndarray) -> list[int] | None:
        """forward() over x, float32 (tokens, hidden_size), in the parts' order.

        logits   float32 (sum of n_logits or 0, rows of the stack's matrix): takes what that gives for the tokens that are wanted
        Returns for each part its first row in logits and in the workspace's x, which holds those tokens behind the last layer.
        """
        space = self.workspace
        rows = space.begin(parts, x, logits)
        # What a step takes that waits for a disk says nothing about cores.
        writes = stack is self._model and len(x) == len(parts) and not space.step["from_disk"]
        self._team.n_active, start = self._crews[len(x)].n if writes else self._team.n_threads, time.perf_counter()
        result = self._team.run(forward, stack.model, stack.layers, space.step, space.workers)
        if result == FAILED:
            raise DiskFailed
        if result == CANCELLED:
            return None
        if writes:  # whole steps alone: one that was cancelled looks fast
            self._crews[len(x)].add(time.perf_counter() - start, self._team.waited)
        return rows

    def step(self, runs: Sequence[Run]) -> float | None:
        """Run the tokens behind those of their sequences: how many seconds that took. Cancelled, every sequence is as before."""
        logits = np.empty((sum(len(run.logits) for run in runs), self.weights.config.vocab_size), np.float32)
        if len(runs) == 1:
            logits = runs[0].logits  # float32 (n_logits, n_vocab)
        parts = [run.parts() for run in runs]
        every = [part for these in parts for part in these]
        x = self.weights.embed(np.concatenate([run.tokens for run in runs]))  # float32 (n_tokens, hidden_size)
        with_states, start = any(run.ahead and run.sequence.states is not None for run in runs), time.perf_counter()
        if with_states and any(part.n_logits < part.n_tokens for part in every):
            found = self._run_twice(every, x, logits)
        else:
            rows = self.run(self._model, every, x, logits)
            found = None if rows is None else (rows, self._states(every, rows) if with_states else [])
        if found is None:
            return None
        (rows, states), seconds, first = found, time.perf_counter() - start, 0
        for run, these in zip(runs, parts, strict=True):
            for i, part in enumerate(these if len(runs) > 1 else ()):
                row = rows[first + i]
                run.logits[i : i + part.n_logits] = logits[row : row + part.n_logits]
            own = np.concatenate(states[first : first + len(these)]) if states and run.ahead else None
            first += len(these)
            run.sequence.extend(run.tokens.tolist(), own)
        return seconds

    def _run_twice(self, parts: Sequence[Part], x: np.ndarray, logits: np.ndarray) -> tuple[list[int], list[np.ndarray]] | None:
        """run() of the model, and each part's states: what the output matrix reads, float32 (n_tokens, hidden_size).

        A prompt passes the last layer twice for its states: all its tokens, and then, as without states, those whose logits are
        wanted, since their numbers depend on how many pass with them.
        """
        layer, rest = self.weights.next_token, [i for i, part in enumerate(parts) if part.n_logits < part.n_tokens]
        assert layer is not None
        whole = [part._replace(n_logits=part.n_tokens) for part in parts]
        if (rows := self.run(layer.lower, whole, x, logits[:0])) is None:
            return None
        self._n_done = len(self.weights.layers) - 1
        below = self._behind(whole, rows)
        these = [whole[i] for i in rest]
        if (rows := self.run(layer.last, these, np.concatenate([below[i] for i in rest]), logits[:0])) is None:
            return None
        states = dict(zip(rest, self._states(these, rows), strict=True))
        if (rows := self.run(layer.last, parts, np.concatenate(below), logits)) is None:
            return None
        others = self._states(parts, rows)
        return rows, [states.get(i, other) for i, other in enumerate(others)]

    def _behind(self, parts: Sequence[Part], rows: list[int]) -> list[np.ndarray]:
        """Of each part what the last pass left of its wanted tokens, float32 (n_logits, hidden_size)."""
        return [self.workspace.x[row : row + part.n_logits].copy() for part, row in zip(parts, rows, strict=True)]

    def _states(self, parts: Sequence[Part], rows: list[int]) -> list[np.ndarray]:
        layer = self.weights.next_token
        assert layer is not None
        return [self.norm(x, layer.output_norm) for x in self._behind(parts, rows)]

    def norm(self, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """RMSNorm of float32 (n, hidden_size) rows."""
        eps = np.float32(self.weights.config.rms_norm_eps)
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True, dtype=np.float32) + eps) * weight  # float32 (n, hidden_size)
