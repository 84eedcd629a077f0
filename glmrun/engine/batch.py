"""Which requests are run in one step."""

from collections.abc import Sequence
from typing import NamedTuple


class Size(NamedTuple):
    """What a request takes of a step."""

    n_tokens: int
    n_runs: int = 1
    n_read: int = 0  # of the tokens, those of prompts
    alone: bool = False  # nothing else may be in its step


def next_batch(waiting: Sequence[Size], max_tokens: int, max_runs: int, of_prompts: int | None = None) -> list[int]:
    """Which of the requests that wait, in the order in which they came, are run in one step of so many tokens and runs.

    The oldest one always, so that each has its turn; then those who write, since somebody reads along; then what still fits.
    of_prompts   at most so many tokens are of prompts, if the oldest alone has not more
    """
    order = sorted(range(len(waiting)), key=lambda i: (i > 0, waiting[i].n_read > 0))
    batch: list[int] = []
    n_tokens = n_runs = n_read = 0
    for i in order:
        size = waiting[i]
        if batch and (size.alone or waiting[batch[0]].alone):
            continue
        if batch and (n_tokens + size.n_tokens > max_tokens or n_runs + size.n_runs > max_runs):
            continue
        if batch and size.n_read and of_prompts is not None and n_read + size.n_read > of_prompts:
            continue
        batch.append(i)
        n_read += size.n_read
        n_tokens, n_runs = n_tokens + size.n_tokens, n_runs + size.n_runs
    return batch
