"""Conversations' caches in a folder: what an earlier server left there, and what memory has given up since.

A file a conversation (saved_cache.py). A server appends only to files that it has begun, and only reads those of others: several
may use one folder, and one that is killed leaves files whose last segment is left aside.
"""

import os
import queue
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from glmrun.engine.saved_cache import SavedCache, fingerprint
from glmrun.engine.sequence import LITTLE, Idle, Sequence, common_prefix
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.engine.model import Model

LEAST = 64  # tokens of a conversation that is worth a file
_SUFFIX = ".rows"


class DiskCache:
    """The folder, for one open model. Safe to use from several threads.

    room   bytes that all files in it may take, those of other models, too; the ones used longest ago go
    """

    def __init__(self, folder: Path, room: int, model: "Model", say: Callable[[str], None]) -> None:
        """say() is given a line for what the user should know. Raises UserError for a folder in which nothing can be written."""
        self._folder, self.room, self._model, self._say = folder, room, model, say
        self._fingerprint = fingerprint(model)
        self._reading = threading.Lock()  # held by who looks for a file and reads it
        self._files: list[SavedCache] = []  # those that are there, with what they hold
        self._own: list[SavedCache] = []  # of them, those that may be written
        self._wrong = ""  # what was said last of a disk that takes nothing
        self._given: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(0, "nothing can be written there")
            paths = sorted(folder.glob(f"*{_SUFFIX}"))
        except OSError as why:
            raise UserError(f"{folder}: {why.strerror}; name a folder for the cache that can be written", "refused") from None
        ignored = [wrong for path in paths for wrong in self._take_stock(path)]
        if ignored:
            say(f"{folder}: {len(ignored)} of {len(paths)} files are left aside, whole or in part; {ignored[0]}")
        n_tokens = sum(len(file.tokens) for file in self._files)
        say(f"{folder}: {len(self._files)} conversations of {n_tokens:,} tokens are cached there")
        self._writer = threading.Thread(target=self._write, name="glmrun-disk-cache", daemon=True)
        self._writer.start()

    def _take_stock(self, path: Path) -> list[str]:
        """Know a file; what is wrong with it, if anything is."""
        file = SavedCache(path, self._model, self._fingerprint)
        file.look()
        if file.tokens:
            self._files.append(file)
        return [f"{path.name}: {file.ignored}"] if file.ignored else []

    def fetch(self, ids: list[int], idle: Idle) -> None:
        """Read the file that holds most of ids, from their beginning on, into a new idle sequence, if none there holds as much."""
        with self._reading:
            n = idle.longest(ids)
            files = [(common_prefix(file.tokens.copy(), ids), file) for file in self._files.copy()]
            n_there, found = max(files, key=lambda one: one[0], default=(0, None))
            if found is None or n_there <= n + LITTLE:
                return
            sequence = idle.new()
            file = SavedCache(found.path, self._model, self._fingerprint)
            if file.load(sequence, n_there) < n_there:
                self._say(f"{found.path.name}: {file.ignored or 'it is gone'}; the rest is read again")
                found.tokens = file.tokens
            with suppress(OSError):
                os.utime(found.path)
            sequence.truncate(n_there)
            idle.give_back(sequence)

    def save_soon(self, sequence: Sequence) -> None:
        """Have a sequence written that has just been given back, unless it is taken before."""
        self._given.put(sequence)

    def close(self) -> None:
        """Write what was given, and end the thread."""
        self._given.put(None)
        self._writer.join()

    def _write(self) -> None:
        while (sequence := self._given.get()) is not None:
            try:
                self._save(sequence)
            except OSError as why:
                if self._wrong != (wrong := f"{self._folder}: a conversation could not be cached there: {why.strerror}"):
                    self._say(wrong)
                self._wrong = wrong

    def _save(self, sequence: Sequence) -> None:
        tokens = sequence.tokens.copy()
        if len(tokens) < LEAST:
            return
        file = next((own for own in self._own if own.holds(sequence) and _continues(tokens, own.tokens)), None)
        if file is None:
            file = SavedCache(self._folder / f"{secrets.token_hex(8)}{_SUFFIX}", self._model, self._fingerprint)
        if not self._make_room(file.needs(sequence), file.path):
            return
        file.save(sequence)
        if file not in self._own and file.tokens:
            self._own.append(file)
            self._files.append(file)
        for other in [o for o in self._files if o is not file and common_prefix(o.tokens, file.tokens) == len(o.tokens)]:
            self._drop(other.path)

    def _make_room(self, n_bytes: int, path: Path) -> bool:
        """Delete what was used longest ago until so many bytes more have room; False if they have none."""
        there = {}
        for found in self._folder.glob(f"*{_SUFFIX}"):
            with suppress(OSError):  # another server has deleted it
                there[found] = found.stat()
        total = sum(status.st_size for status in there.values()) + n_bytes
        if n_bytes + (there[path].st_size if path in there else 0) > self.room:
            return False
        for oldest in sorted(there.keys() - {path}, key=lambda found: there[found].st_mtime_ns):
            if total <= self.room:
                break
            total -= there[oldest].st_size
            self._drop(oldest)
        return True

    def _drop(self, path: Path) -> None:
        with suppress(OSError):
            path.unlink()
        self._files = [file for file in self._files if file.path != path]
        self._own = [file for file in self._own if file.path != path]


def _continues(tokens: list[int], saved: list[int]) -> bool:
    """Whether no more than the end of an answer is lost of what is saved where tokens take its place."""
    n = common_prefix(tokens, saved)
    return len(saved) - n <= min(n, LITTLE)
