"""How many of the team's threads write: fewer while other programs take their cores, if that is measured to be faster.

Behind each matrix a step waits for its slowest thread, and one whose core is taken is away for milliseconds: as long as many
matrices. Memory often gives fewer threads nearly as much. A prompt shares out so much work that all threads pay in any case.
"""

from collections import deque

STEPS = 6  # that are measured before a decision
STAYS = 96  # steps until another number is tried again
GAIN = 0.95  # of the time: what fewer threads must reach to be chosen


class Crew:
    """n   how many threads the next step that writes has, from 1 to n_threads; what they compute is the same with any number."""

    def __init__(self, n_threads: int) -> None:
        self.n = self._n_threads = n_threads
        self._tokens = 0  # of a step; steps of another number of tokens are not compared with these
        self._before = 0  # the number of threads that this one is tried instead of; 0: nothing is tried
        self._stays = 0  # steps until something may be tried
        self._reference = 0.0  # seconds of STEPS steps before the trial
        self._seconds: deque[float] = deque(maxlen=STEPS)
        self._displaced: deque[bool] = deque(maxlen=STEPS)

    def add(self, n_tokens: int, seconds: float, displaced: int) -> None:
        """A step of so many tokens, one of each sequence, has taken so long, and threads were displaced so often."""
        if n_tokens != self._tokens:
            self._end(self._before or self.n, 0)
            self._tokens = n_tokens
        self._seconds.append(seconds)
        self._displaced.append(displaced > 0)
        self._stays -= 1
        if len(self._seconds) < STEPS:
            return
        if self._before:
            limit = self._reference * (GAIN if self.n < self._before else 1.0)
            self._end(self.n if sum(self._seconds) < limit else self._before, STAYS)
        elif self._stays <= 0 and self.n > 1 and sum(self._displaced) >= STEPS // 2:
            self._try(self.n - 1)
        elif self._stays <= 0 and self.n < self._n_threads:
            self._try(self.n + 1)

    def _try(self, n: int) -> None:
        self._before, self._reference = self.n, sum(self._seconds)
        self._begin(n)

    def _end(self, n: int, stays: int) -> None:
        self._before, self._stays = 0, stays
        self._begin(n)

    def _begin(self, n: int) -> None:
        self.n = n
        self._seconds.clear()
        self._displaced.clear()
