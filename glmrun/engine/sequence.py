"""The ids of one conversation and, in every layer, their cached rows; and the sequences that wait for their next turn."""

import mmap
import threading
from math import prod
from typing import NamedTuple, Protocol

import numpy as np

from glmrun.kernels.attention.columns import BLOCK
from quant.errors import UserError
from quant.system import GIVE_BACK, NORESERVE

KEPT = 32  # sequences that are kept while nobody uses them
LITTLE = 64  # tokens at the end of one that are given up rather than kept by a copy
_GIVE_BACK = getattr(mmap, GIVE_BACK, None)


def reserve(n_bytes: int, what: str) -> mmap.mmap:
    """Zeros that take up memory page by page, when they are first written. Raises UserError if the system refuses."""
    try:
        return mmap.mmap(-1, max(n_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NORESERVE)
    except (OSError, OverflowError, ValueError) as why:
        raise UserError(
            f"the system refuses {n_bytes / 2**30:,.1f} GiB of address space for {what}; ask for a smaller context"
        ) from why


class Cache(NamedTuple):
    """What attention reads of a sequence."""

    rows: np.ndarray  # uint8 (layers, n_ctx, row_bytes): cached rows (kernels/attention/cached_row.py)
    columns: np.ndarray  # uint8 (layers, blocks of n_ctx, block_bytes): the same in int8 (kernels/attention/columns.py)
    rounded: np.ndarray  # int64 (layers,): how many positions have their columns; kernels fill in what is missing


class Sequence:
    """Address space for up to n_ctx positions, which fills as the conversation grows.

    tokens     in order; len(tokens) is the position of the next one
    cache      valid for tokens; rows: of that, what is copied and saved
    logits     float32 (1, n_vocab): after the last token, once a step has computed them
    n_ahead    positions whose row of the prediction layer is there: that of p is computed when token p + 1 is known
    states     float32 (n, n_state): the trunk's, of the positions from n_ahead on; None: the layer does not run
    saved_by   the mark of the file that holds the first n_saved rows, or all that it has, as they are (saved_cache.py)
    """

    def __init__(self, n_layers: int, n_ctx: int, row_bytes: int, block_bytes: int, n_vocab: int, n_state: int = 0) -> None:
        """n_layers      with the prediction layer, where it runs; n_state is the width of a state then, else 0
        block_bytes   of a block of columns; 0: attention reads the rows
        """
        shapes = (n_layers, n_ctx, row_bytes), (n_layers, -(-n_ctx // BLOCK), block_bytes)
        self._memories = [reserve(prod(shape), f"the cache of {n_ctx:,} positions") for shape in shapes]
        self.rows, columns = (
            np.frombuffer(memory, np.uint8)[: prod(shape)].reshape(shape)
            for memory, shape in zip(self._memories, shapes, strict=True)
        )
        self.cache = Cache(self.rows, columns, np.zeros(n_layers, np.int64))
        self.logits = np.empty((1, n_vocab), np.float32)  # float32 (1, n_vocab)
        self.tokens: list[int] = []
        self.saved_by: object = None
        self.n_saved = 0
        self.n_ahead = 0
        self.states = np.empty((0, n_state), np.float32) if n_state else None  # float32 (n, n_state)

    def truncate(self, n_tokens: int) -> None:
        """Keep the first n_tokens positions."""
        if n_tokens >= len(self.tokens):
            return
        del self.tokens[n_tokens:]
        self.n_saved = min(self.n_saved, n_tokens)
        np.minimum(self.cache.rounded, n_tokens // BLOCK * BLOCK, out=self.cache.rounded)
        if self.states is not None:
            self.states = self.states[: max(0, n_tokens - self.n_ahead)]  # float32 (n, n_state)
            self.n_ahead = min(self.n_ahead, max(0, n_tokens - 1))  # the row of the last position took in a token that is gone

    @property
    def n_whole(self) -> int:
        """How many of the tokens have all that the prediction layer needs for the next ones; without the layer all of them."""
        if self.states is None or self.n_ahead + len(self.states) == len(self.tokens):
            return len(self.tokens)
        return max(0, min(self.n_ahead, len(self.tokens) - 1))

    @property
    def n_kept(self) -> int:
        """How many tokens a copy may keep that has no states: with the prediction layer's row of each but the last."""
        return len(self.tokens) if self.states is None else min(len(self.tokens), self.n_ahead + 1)

    @property
    def n_lasting(self) -> int:
        """Of those, how many have rows that nothing changes any more."""
        return self.n_kept if self.states is None else max(0, self.n_kept - 1)

    def give_up_rest(self) -> None:
        """Keep the first n_whole tokens: those behind them are run again, and give the states that are missing."""
        if (n := self.n_whole) < len(self.tokens):
            del self.tokens[n:]
            self.n_saved, self.n_ahead = min(self.n_saved, n), n
            self.states = None if self.states is None else self.states[:0]

    def share(self, other: "Sequence", n_tokens: int) -> None:
        """Begin with the first n_tokens positions of another sequence: a copy of their rows, bit for bit."""
        self.rows[:, :n_tokens] = other.rows[:, :n_tokens]
        self.cache.rounded[:] = 0
        self.tokens[:] = other.tokens
        self.saved_by, self.n_saved, self.n_ahead, self.states = other.saved_by, other.n_saved, other.n_ahead, other.states
        self.truncate(n_tokens)

    def extend(self, tokens: list[int], states: np.ndarray | None = None) -> None:
        """Take for cached what has been written into rows behind the last token; states, float32 (len(tokens), n_state)."""
        if self.states is not None:
            if states is None or self.n_whole < len(self.tokens):
                states, self.states = self.states[:0], self.states[:0]
            self.states = np.concatenate((self.states, states))  # float32 (n, n_state)
        self.tokens += tokens

    def close(self) -> None:
        """Give the memory back; the sequence is empty then."""
        self.truncate(0)
        self._give_back(*self._memories)

    def give_columns_back(self) -> None:
        """Keep the rows alone: half of the memory. The next step rounds them again."""
        self.cache.rounded[:] = 0
        self._give_back(self._memories[1])

    @staticmethod
    def _give_back(*memories: mmap.mmap) -> None:
        if _GIVE_BACK is not None:
            for memory in memories:
                memory.madvise(_GIVE_BACK)


class Idle:
    """Sequences that nobody uses at the moment, the last used one at the end. Safe to use from several threads.

    room   positions that all of them may hold; at least one context. Beyond that, what two conversations share is copied

    Only the last used one keeps its columns.
    """

    def __init__(self, n_layers: int, n_ctx: int, row_bytes: int, block_bytes: int, n_vocab: int, n_state: int = 0) -> None:
        self._shape = n_layers, n_ctx, row_bytes, block_bytes, n_vocab, n_state
        self._lock = threading.RLock()  # a signal's handler may close all this in the thread that holds it
        self._sequences: list[Sequence] = []
        self.room = n_ctx

    @property
    def latest(self) -> Sequence:
        """The one that was used last; a new one if there is none."""
        with self._lock:
            kept = self._sequences
            if not kept:
                kept.append(Sequence(*self._shape))
            return kept[-1]

    def take(self, ids: list[int]) -> Sequence:
        """A sequence that holds the longest beginning of ids that any of them has, and nothing else: that one or a copy."""
        with self._lock:
            kept = self._sequences
            found = max(kept, key=lambda s: common_prefix(s.tokens, ids), default=None)
            if found is None:
                return Sequence(*self._shape)
            n = common_prefix(found.tokens, ids)
            lost = len(found.tokens) - n
            if lost <= min(n, LITTLE) or (lost <= n and _n_tokens(kept) + n > self.room - self._shape[1]):
                kept.remove(found)
                found.truncate(n)
                return found
            taken = kept.pop(0) if len(kept) >= KEPT else Sequence(*self._shape)
            if taken is found:
                taken.truncate(n)
            else:
                taken.close()
                taken.share(found, n)
            return taken

    def new(self) -> Sequence:
        """An empty sequence, which is not kept yet."""
        return Sequence(*self._shape)

    def longest(self, ids: list[int]) -> int:
        """How many tokens at the beginning of ids one of them holds."""
        with self._lock:
            return max((common_prefix(kept.tokens, ids) for kept in self._sequences), default=0)

    def give_back(self, sequence: Sequence) -> None:
        """Keep a sequence for the next turn of its conversation; those that have waited longest go.

        All that are kept take no more memory than the room: what `plan` says of the cache stays true.
        """
        with self._lock:
            kept = self._sequences
            if kept:
                kept[-1].give_columns_back()
            kept.append(sequence)
            while len(kept) > KEPT or _n_tokens(kept) > self.room:
                kept.pop(0).close()

    def close(self) -> None:
        """Give all memory back."""
        with self._lock:
            kept, self._sequences = self._sequences, []  # another list: perhaps this thread stands in the middle of that one
            for sequence in kept:
                sequence.close()


def _n_tokens(sequences: list[Sequence]) -> int:
    return sum(len(sequence.tokens) for sequence in sequences)


class Shelf(Protocol):
    """Where rows are kept beside memory."""

    def fetch(self, ids: list[int], idle: Idle) -> None:
        """Make what it holds of ids, from their beginning on, a new one of the idle sequences, if none of them holds as much."""

    def save_soon(self, sequence: Sequence) -> None:
        """Have a sequence kept that has just been given back."""

    def close(self) -> None:
        """End, with what was given."""


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many leading tokens two lists share."""
    n = min(len(a), len(b))
    if a[:n] == b[:n]:
        return n
    return next(i for i in range(n) if a[i] != b[i])
