"""From logits to one token id.

The filters run in the order of llama.cpp's default chain: biases and penalties, top-k, top-p, min-p, temperature, draw. So top-p
and min-p look at the model's own distribution, and temperature only reshapes what they left.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from quant.errors import UserError, brief

if TYPE_CHECKING:
    from glmrun.engine.constraint import Constraint

# option: (type, lowest, highest, what it means); bounds are inclusive.
_LIMITS: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0.0, math.inf, "0 means always the likeliest token"),
    "top_k": (int, 0, 1 << 31, "0 means off"),
    "top_p": (float, 0.0, 1.0, "1 means off"),
    "min_p": (float, 0.0, 1.0, "0 means off"),
    "repeat_penalty": (float, 1e-6, 1e6, "1 means off"),
    "repeat_last_n": (int, 0, 1 << 31, "0 means off"),
    "presence_penalty": (float, -2.0, 2.0, "0 means off"),
    "frequency_penalty": (float, -2.0, 2.0, "0 means off"),
    "seed": (int, 0, (1 << 64) - 1, "leave it out for a new one each time"),
}

OPTIONS = (*_LIMITS, "logit_bias")
MAX_BIASES, MAX_BIAS = 1024, 100.0
MAX_LOWERED = 128  # tokens, while only the largest logits are exact: half of those (kernels/likely.py)

# The settings of the makers' evaluations: of most, of terminal and coding benchmarks, of long work with tools.
PRESETS: dict[str, dict[str, float]] = {
    "default": {"temperature": 1.0, "top_p": 0.95},
    "coding": {"temperature": 0.7, "top_p": 1.0},
    "agent": {"temperature": 0.0},
}


_ADVISED = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "repeat_penalty": "penalty_repeat"}


def advised(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """{option: value} that a model file advises; raises UserError for what the option can't be."""
    found = {}
    for name, key in _ADVISED.items():
        key = f"general.sampling.{key}"
        if (value := metadata.get(key)) is None:
            continue
        if name == "top_k" and (type(value) is int or (isinstance(value, float) and value.is_integer())):
            value = max(0, int(value))  # below 1 is off for others
        if not _is_legal(name, value):
            raise UserError(f"{key} is {brief(value)}; expected {_expected(name)}")
        found[name] = value
    return found


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of Python's or NumPy's."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_legal(name: str, value: Any) -> bool:
    kind, low, high, _ = _LIMITS[name]
    kinds = (int, np.integer) if kind is int else (int, float, np.integer, np.floating)
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(low <= value <= high) and value != math.inf


def _expected(name: str) -> str:
    kind, low, high, hint = _LIMITS[name]
    what = "a whole number" if kind is int else "a number"
    most = f"{high:,}" if kind is int else f"{high:g}"
    bound = f"of at least {low:g}" if high == math.inf else f"from {low:g} to {most}"
    return f"{what} {bound} ({hint})"


@dataclass
class Sampler:
    """Draws token ids; the same seed, logits and history give the same ids.

    temperature     0 takes the likeliest token (the lowest id among equals) and draws nothing
    top_k           keep the k likeliest tokens; 0 keeps all
    top_p           keep the likeliest tokens until their probabilities reach p, at least one; 1 keeps all
    min_p           keep tokens at least min_p times as probable as the likeliest; 0 keeps all
    repeat_penalty  positive logits of the last repeat_last_n tokens are divided by it, negative ones multiplied; 1 is off
    presence_penalty, frequency_penalty   are taken off the logits of tokens that were drawn, once and for each time; 0 is off
    logit_bias      {id: what is added to its logit}, of up to 1,024 ids
    forbidden       ids that are never drawn (undefined entries of the vocabulary), or None
    constraint      asked which tokens may come next and told which was drawn, or None
    Raises UserError (usage) for a value out of range, naming the option.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.01
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    forbidden: np.ndarray | None = None
    constraint: "Constraint | None" = None
    _random: np.random.Generator = field(init=False, repr=False)
    _drawn: Counter[int] = field(init=False, repr=False, default_factory=Counter)

    def __post_init__(self) -> None:
        for name in _LIMITS:
            value = getattr(self, name)
            if not (_is_legal(name, value) or (name == "seed" and value is None)):
                raise UserError(f"{name} is {value!r}; expected {_expected(name)}", "usage")
        biases = self.logit_bias.values() if isinstance(self.logit_bias, Mapping) else [math.inf]
        numbers = (int, float, np.integer, np.floating)
        if len(biases) > MAX_BIASES or not all(isinstance(b, numbers) and abs(b) <= MAX_BIAS for b in biases):
            raise UserError(
                f"logit_bias is {brief(self.logit_bias)}; expected up to {MAX_BIASES:,} token ids, each with a number of at most"
                f" {MAX_BIAS:g} in size",
                "usage",
            )
        if self.forbidden is not None and not len(self.forbidden):
            self.forbidden = None
        self._random = np.random.Generator(np.random.PCG64(self.seed))

    @property
    def reads_all(self) -> bool:
        """Whether it may draw what is far below the largest logits: then all of them must be exact, not only the largest.

        To forbid or lower a few tokens does not: those that come next are exact, too.
        """
        n_lowered = len(self.logit_bias) + (0 if self.forbidden is None else len(self.forbidden))
        n_lowered += self.repeat_last_n if self.repeat_penalty != 1.0 else 0
        raises = self.repeat_penalty < 1.0 or any(bias > 0.0 for bias in self.logit_bias.values())
        counts = self.presence_penalty != 0.0 or self.frequency_penalty != 0.0
        return raises or counts or n_lowered > MAX_LOWERED or self.constraint is not None or self.temperature > 2.0

    def sample(self, logits: np.ndarray, history: Sequence[int] = ()) -> int:
        """One token id from float32 logits (n_vocab,), given the ids that came before (for the repeat penalty).

        Raises UserError if the logits are not numbers or leave nothing to choose from.
        """
        token = self._draw(self._restricted(logits, history))
        self._drawn[token] += 1
        if self.constraint is not None:
            self.constraint.accept(token)
        return token

    def _draw(self, logits: np.ndarray) -> int:
        best = int(logits.argmax())  # the lowest id among equals; NaN counts as the largest
        top = float(logits[best])
        if math.isnan(top) or top == math.inf:
            raise UserError("the logits are not finite: the model's numbers overflowed, so there is no token to choose")
        if top == -math.inf:
            raise UserError("no token is left to choose from: every logit is minus infinity")
        if self.temperature == 0.0 or self.top_k == 1 or self.top_p == 0.0:
            return best
        ids = self._candidates(logits, top)
        with np.errstate(over="ignore", under="ignore"):  # a tiny temperature sends all but the likeliest to exp(-inf) = 0
            weights = np.exp((logits[ids].astype(np.float64) - top) / max(self.temperature, 1e-300))  # (n_kept,)
        cumulative = np.cumsum(weights)
        drawn = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return int(ids[drawn]) if drawn < len(ids) else best  # the product may round up to the sum itself

    def _restricted(self, logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """Logits with the penalty applied and ids that may not come at minus infinity; the caller's array stays as it is."""
        allowed = self.constraint.allowed() if self.constraint is not None else None  # bool (n_vocab,)
        penalize = self.repeat_penalty != 1.0 and self.repeat_last_n > 0 and len(history) > 0
        counted = bool(self._drawn) and (self.presence_penalty != 0.0 or self.frequency_penalty != 0.0)
        if self.forbidden is None and allowed is None and not (penalize or counted or self.logit_bias):
            return logits
        logits = logits.copy()  # (n_vocab,)
        for token, bias in self.logit_bias.items():
            logits[token] += bias
        if counted:
            drawn = np.fromiter(self._drawn, np.int64)  # int64 (n_drawn,)
            times = np.fromiter(self._drawn.values(), np.float32)  # float32 (n_drawn,)
            logits[drawn] -= self.presence_penalty + self.frequency_penalty * times
        if penalize:
            recent = np.unique(np.asarray(history[-self.repeat_last_n :], dtype=np.int64))
            values = logits[recent]
            logits[recent] = np.where(values > 0, values / self.repeat_penalty, values * self.repeat_penalty)
        if self.forbidden is not None:
            logits[self.forbidden] = -math.inf
        if allowed is not None:
            logits[~allowed] = -math.inf
        return logits

    def _candidates(self, logits: np.ndarray, top: float) -> np.ndarray:
        """The ids that pass top-k, top-p and min-p, in no particular but always the same order; top is the largest logit."""
        ids = _largest(logits, self.top_k) if 0 < self.top_k < len(logits) else None  # None: all of them
        if self.top_p == 1.0 and self.min_p == 0.0:
            return np.arange(len(logits)) if ids is None else ids
        below_top = top - (logits if ids is None else logits[ids])  # float32 (n_left,), 0 for the likeliest
        weights = np.exp(-below_top)
        target = self.top_p * weights.sum(dtype=np.float64)
        # Each filter keeps a head of the same sorted list, so the cheap one may come first: the shorter head is left.
        kept = np.flatnonzero(weights >= self.min_p)
        if self.top_p < 1.0:
            kept = kept[_nucleus(below_top[kept], weights[kept], target)]
        return kept if ids is None else ids[kept]


@dataclass
class ThinkBudget:
    """Draws as `sampler` does for `budget` tokens; if is_thinking() then still holds, it gives `close`, the tag that ends it."""

    sampler: Sampler
    budget: int
    close: int
    is_thinking: Callable[[], bool]
    _drawn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not is_whole(self.budget) or self.budget < 0:
            raise UserError(f"the thinking budget is {self.budget!r}; expected a whole number of at least 0 tokens", "usage")

    @property
    def reads_all(self) -> bool:
        """As Sampler's."""
        return self.sampler.reads_all

    def sample(self, logits: np.ndarray, history: Sequence[int] = ()) -> int:
        """One token id, as Sampler.sample()."""
        self._drawn += 1
        if self._drawn > self.budget and self.is_thinking():
            return self.close
        return self.sampler.sample(logits, history)


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest values, k < len(values); among equals the lower positions."""
    threshold = np.partition(values, len(values) - k)[len(values) - k]
    above = np.flatnonzero(values > threshold)
    return np.concatenate([above, np.flatnonzero(values == threshold)[: k - len(above)]])  # (k,)


def _nucleus(below_top: np.ndarray, weights: np.ndarray, target: float) -> np.ndarray:
    """Positions of the largest weights until their sum reaches target (all if it never does), among equals the lower positions.

    Sorting 154,880 tokens would take longer than anything else here. So they are counted into bins by distance from the top; whole
    bins are in or out, and only the one in which the sum reaches the target is sorted.
    """
    bins = np.minimum(below_top * 16, 2000).astype(np.int64)  # (n,)
    sums = np.cumsum(np.bincount(bins, weights))  # (n_bins,)
    last = int(np.searchsorted(sums, target))
    inside = np.flatnonzero(bins < last)
    edge = np.flatnonzero(bins == last)
    edge = edge[np.argsort(-weights[edge], kind="stable")]
    reached = np.cumsum(weights[edge]) + (sums[last - 1] if last else 0.0)
    return np.concatenate([inside, edge[: int(np.searchsorted(reached, target)) + 1]])


def logprobs(logits: np.ndarray, token: int, n_top: int) -> tuple[float, list[tuple[int, float]]]:
    """Log probability of a token by float32 logits (n_vocab,), and of the n_top likeliest tokens, best first: (id, logprob)."""
    top = float(logits.max())
    total = top + math.log(float(np.exp(logits - top).sum(dtype=np.float64)))
    ids = _largest(logits, n_top) if 0 < n_top < len(logits) else np.arange(len(logits) if n_top else 0)  # (n_top,)
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    return float(logits[token]) - total, [(int(i), float(logits[i]) - total) for i in ids]
