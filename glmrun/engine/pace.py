"""How fast prompts are read, as steps have shown, and how long a piece of one may be beside somebody's reading."""

import math

STEP_SECONDS = 1.0  # that a step may last beside somebody's reading
LEAST_PIECE = 32  # tokens of a prompt in one step: fewer cost as much, since all weights are read
_DEPTH = 4096  # positions: those that a token sees and what it costs besides are weighed against each other in this unit


class Pace:
    """Seconds that a token of a prompt takes, and seconds more for each _DEPTH positions that it sees.

    Both follow what steps take: each step moves them, along its own mixture of the two, half of the way to what it took. So the
    next piece, at nearly the same depth, is sized by what this one has shown. Steps of a few tokens cost more for each of them.
    """

    def __init__(self) -> None:
        self._token = self._depth = 0.0
        self.known = False

    def add(self, n_tokens: int, depth: float, seconds: float) -> None:
        """A step has read so many tokens, which see `depth` positions on average."""
        if n_tokens < LEAST_PIECE:
            return
        x = depth / _DEPTH
        if not self.known:
            self._token = seconds / n_tokens
        missed = (seconds / n_tokens - self._token - x * self._depth) / 2 / (1 + x * x)
        self._token, self._depth = max(self._token + missed, 0.0), max(self._depth + x * missed, 0.0)
        self.known = True

    def seconds(self, n_tokens: int, first: int) -> float:
        """What a step of so many tokens behind `first` positions should last."""
        return n_tokens * (self._token + (first + n_tokens / 2) / _DEPTH * self._depth)

    def piece(self, first: int, most: int) -> int:
        """How many tokens behind `first` positions last for about STEP_SECONDS."""
        one, growth = self._token + first / _DEPTH * self._depth, self._depth / (2 * _DEPTH)  # n (one + growth n) = STEP_SECONDS
        root = one + math.sqrt(one * one + 4 * growth * STEP_SECONDS)
        return most if root * most <= 2 * STEP_SECONDS else min(max(int(2 * STEP_SECONDS / root), LEAST_PIECE), most)
