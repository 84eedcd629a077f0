"""How many of the team's threads write: fewer while other programs take their cores, if that is measured to be faster.

Behind each matrix a step waits for its slowest thread, and one whose core is taken is away for milliseconds: as long as many
matrices. Memory often gives fewer threads nearly as much. A prompt shares out so much work that all threads pay in any case.
"""

from collections import deque

STEPS = 6  # that are measured before a decision
STAYS = 96  # steps until another number is tried again
GAIN = 0.95  # of the time: what fewer threads must reach to be chosen
TAKEN = 0.04  # of its threads' time spent without a core: then cores were taken in a step; 0.001 is usual, 0.25 beside a busy core
HOPELESS = 1.15  # of the time before: a trial of fewer threads that takes so much longer ends after two steps


class Crew:
    """n   how many threads the next step of this kind has, from 1 to n_threads; what they compute is the same with any number."""

    def __init__(self, n_threads: int) -> None:
        self.n = self._n_threads = n_threads
        self._before = 0  # the number of threads that this one is tried instead of; 0: nothing is tried
        self._stays = 0  # steps until something may be tried
        self._reference = 0.0  # seconds of a step before the trial
        self._seconds: deque[float] = deque(maxlen=STEPS)
        self._taken: deque[bool] = deque(maxlen=STEPS)

    def add(self, seconds: float, waited: float) -> None:
        """A step has taken so long; its threads had no core for `waited` seconds, in all."""
        self._seconds.append(seconds)
        self._taken.append(waited > TAKEN * self.n * seconds)
        self._stays -= 1
        n = len(self._seconds)
        if 1 < n < STEPS and self.n < self._before and sum(self._seconds) > HOPELESS * n * self._reference:
            self._end(self._before)
        elif n < STEPS:
            return
        elif self._before:
            limit = self._reference * n * (GAIN if self.n < self._before else 1.0)
            self._end(self.n if sum(self._seconds) < limit else self._before)
        elif self._stays <= 0 and self.n > 1 and sum(self._taken) >= STEPS // 2:
            self._try(self.n - 1)
        elif self._stays <= 0 and self.n < self._n_threads:
            self._try(self.n + 1)

    def _try(self, n: int) -> None:
        self._before, self._reference = self.n, sum(self._seconds) / len(self._seconds)
        self._begin(n)

    def _end(self, n: int) -> None:
        self._before, self._stays = 0, STAYS
        self._begin(n)

    def _begin(self, n: int) -> None:
        self.n = n
        self._seconds.clear()
        self._taken.clear()
