"""Write files that appear under their names only when they are complete, and continue where a killed process stopped.

The bytes of x.gguf go to .x.gguf.partial beside it; .x.gguf.journal lists what of it is finished, and is locked so that two
conversions never share a target. A piece of work enters the journal only after its data were synced to the disk, so whatever
happens (SIGKILL, power loss, a full disk), the final name is absent or complete, and nothing that the journal lists is lost.

    journal     one JSON object a line: {"identity": {...}}, then {"at": n, "records": [...]}, in the end {"finished": [inodes]}
"""

import contextlib
import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quant.errors import Interrupted, UserError
from quant.system import lock, sync_data

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SYNC_BYTES = 64 << 20  # how much may be lost: a disk that needs a second for it still lets Ctrl-C end in two
_SYNC_SECONDS = 2.0


def journal_path(path: Path) -> Path:
    """Where the journal of an unfinished `path` is; it exists if the same command can continue."""
    return path.with_name(f".{path.name}.journal")


def partial_path(path: Path) -> Path:
    """Where the bytes of an unfinished `path` are."""
    return path.with_name(f".{path.name}.partial")


def bytes_there(path: Path) -> int:
    """Bytes that an unfinished `path` takes of the disk."""
    partial = partial_path(path)
    return partial.stat().st_blocks * 512 if partial.exists() else 0


class Output:
    """Files being written, in a publish() block.

    records     what finish() was given, in order, by this process and by those before it that were interrupted
    note        what became of an earlier, unfinished attempt; None if there was none
    complete    an earlier process had finished it all and was killed while it tidied up: there is nothing to write
    """

    def __init__(self, journal: int, sizes: Mapping[Path, int], identity: Mapping[str, str] | None) -> None:
        self.records: list[Any] = []
        self.note: str | None = None
        self.complete = False
        self._journal, self._sizes, self._identity = journal, sizes, identity
        self._files: dict[Path, int] = {}  # descriptors of the partial files
        self._inodes: list[int] = []
        self._safe = 0  # the number of records in the journal
        self._unsynced, self._synced_at = 0, time.monotonic()
        self._sync_thread = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    def write(self, path: Path, offset: int, data: Any) -> None:
        """data at a byte of the file that will be `path`."""
        left = memoryview(data).cast("B")
        self._unsynced += len(left)
        while left:
            n = os.pwrite(self._files[path], left, offset)
            left, offset = left[n:], offset + n

    def read(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """Bytes that were written, perhaps by an earlier process; fewer if the file ends."""
        return os.pread(self._files[path], n_bytes, offset)

    def finish(self, record: Any) -> None:
        """All data of the next piece of work are written; record says what a later process must know of it."""
        self.records.append(record)
        if self._unsynced >= _SYNC_BYTES or time.monotonic() - self._synced_at >= _SYNC_SECONDS:
            self._wait()
            self._unsynced, self._synced_at = 0, time.monotonic()
            self._syncing = self._sync_thread.submit(self._sync, len(self.records))

    def forget(self, n: int) -> None:
        """Only the first n records are true, the others have to be done again."""
        del self.records[n:]
        self._safe = min(self._safe, n)
        self._append({"at": n, "records": []})

    def _sync(self, n: int) -> None:
        """Make the first n records durable: their data first."""
        for file in self._files.values():
            sync_data(file)
        self._append({"at": self._safe, "records": self.records[self._safe : n]})
        self._safe = n

    def _wait(self) -> None:
        if self._syncing is not None:
            syncing, self._syncing = self._syncing, None
            syncing.result()

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        if os.write(self._journal, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync_data(self._journal)

    def _resume(self) -> None:
        """Take over what an earlier process left, as far as it is of use."""
        lines = _read_lines(self._journal)
        found = lines[0].get("identity") if lines else None
        if isinstance(found, dict) and found == self._identity:
            for line in lines[1:]:
                self._inodes = line.get("finished", [])
                if "at" in line:
                    self.records[line["at"] :] = line["records"]
            if all(partial_path(path).is_file() or self._is_published(path) for path in self._sizes):
                self.complete = bool(self._inodes)
                self._safe = len(self.records)
                return
            self._inodes, self.note = [], "starting over: the unfinished file of an earlier attempt is gone"
        elif isinstance(found, dict) and self._identity:
            changed = [key for key, value in self._identity.items() if found.get(key) != value]
            self.note = f"starting over: {' and '.join(changed)} changed since the attempt that was interrupted"
        self._restart()

    def _is_published(self, path: Path) -> bool:
        """Whether an earlier process gave this file its final name before it was killed."""
        return path.exists() and path.stat().st_ino in self._inodes

    def _restart(self) -> None:
        self.records.clear()
        os.ftruncate(self._journal, 0)
        for path in self._sizes:
            partial_path(path).unlink(missing_ok=True)
        self._append({"identity": self._identity})

    def _open(self, path: Path, n_bytes: int) -> None:
        """The partial file at its full size; what was not written yet is a hole."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._files[path] = file = os.open(partial_path(path), flags, 0o666)
        os.ftruncate(file, n_bytes)

    def _publish(self, force: bool, sources: Iterable[Path]) -> None:
        """Everything is written: make it durable, then visible, the first file last."""
        if not self.complete:
            self._wait()
            self._sync(len(self.records))
            self._append({"finished": [os.fstat(file).st_ino for file in self._files.values()]})
        for path in reversed(list(self._sizes)):
            if partial_path(path).exists():
                try:
                    _check_target(path, force, sources)
                except UserError as error:
                    raise Interrupted(str(error)) from None
                os.replace(partial_path(path), path)
        _sync_folder(path.parent)

    def _close(self) -> None:
        self._sync_thread.shutdown(cancel_futures=True)
        for file in self._files.values():
            os.close(file)


@contextlib.contextmanager
def publish(
    path: Path,
    sizes: Mapping[Path, int],
    force: bool = False,
    sources: Iterable[Path] = (),
    identity: Mapping[str, str] | None = None,
    restart: bool = False,
) -> Iterator[Output]:
    """An Output that becomes the files `sizes` (name -> bytes) when the block ends without an error.

    path      names the journal: the only file, or what the files of a split are called after
    force     replace files that are there; they stay until the new ones are complete
    sources   files the bytes come from: none of them may be a target
    identity  what the bytes depend on, by the name a user knows it by. An unfinished attempt of the same identity is continued;
              None never leaves anything behind
    restart   discard an unfinished attempt
    Interruptions, full disks and OSErrors (as Interrupted) keep what is in the journal by then; another UserError removes it.
    Raises UserError before the first byte is written when a target is taken, the folder is missing or the disk is too small.
    """
    for target in sizes:
        _check_target(target, True, sources)
    journal = _open_journal(path)
    output = Output(journal, sizes, identity)
    try:
        try:
            if restart or identity is None:
                output._restart()
            else:
                output._resume()
            for target in sizes:
                if not output._is_published(target):
                    _check_target(target, force, sources, kept=bool(output._safe))
            if not output.complete:
                _check_space(path, sizes)
                for target, n_bytes in sizes.items():
                    output._open(target, n_bytes)
                _sync_folder(path.parent)  # so that it knows the journal and the partial files
            yield output
            output._publish(force, sources)
        finally:
            output._close()
    except BaseException as error:
        hopeless = isinstance(error, UserError) and not isinstance(error, Interrupted)
        if hopeless or identity is None or not (output._safe or output.complete):
            _remove(path, sizes)
            kept = "nothing was left behind"
        else:
            kept = "the finished part is kept, the same command continues from there"
        if isinstance(error, OSError):
            raise Interrupted(_writing_failed(error, path, sum(sizes.values()), kept)) from None
        raise
    else:
        with contextlib.suppress(OSError):  # the file is there, which is what counts
            journal_path(path).unlink()
    finally:
        os.close(journal)


def _open_journal(path: Path) -> int:
    """The journal, locked."""
    name = journal_path(path)
    try:
        journal = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}") from None
    try:
        # Its owner may have removed it between our open and our lock.
        ours = lock(journal) and os.path.samestat(os.fstat(journal), name.stat())
    except OSError:
        ours = False
    if not ours:
        os.close(journal)
        raise UserError(f"another process is writing {path}; wait for it or choose another output", "busy")
    return journal


def _read_lines(journal: int) -> list[dict[str, Any]]:
    """The journal's whole lines; a torn end is cut off."""
    lines, good = [], 0
    for line in os.pread(journal, os.fstat(journal).st_size, 0).splitlines(keepends=True):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(lines[-1], dict):
            lines.pop()
            break
        good += len(line)
    os.ftruncate(journal, good)
    return lines


def _remove(path: Path, sizes: Iterable[Path]) -> None:
    for name in (*map(partial_path, sizes), journal_path(path)):
        with contextlib.suppress(OSError):
            name.unlink()


def _check_target(path: Path, force: bool, sources: Iterable[Path], kept: bool = False) -> None:
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist; create it or choose another output", "missing")
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise UserError(f"the output {path} is {what}; give the name of a file")
    for source in sources:
        if os.path.samestat(found, source.stat()):
            raise UserError(f"the output {path} is one of the files it would be made from; choose another output")
    if not force:
        raise (Interrupted if kept else UserError)(
            f"{path} exists already; give another output, or have it replaced", "refused", "force"
        )


def _check_space(path: Path, sizes: Mapping[Path, int]) -> None:
    needed, free = sum(sizes.values()) - sum(map(bytes_there, sizes)), shutil.disk_usage(path.parent).free
    if free < needed:
        raise Interrupted(f"not enough disk space for {path}: {needed:,} bytes needed, {free:,} free; nothing was written")


def _sync_folder(folder: Path) -> None:
    """Make new names durable; a file system that cannot sync folders has the complete files all the same."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _writing_failed(error: OSError, path: Path, n_bytes: int, kept: str) -> str:
    if error.errno in _FULL:
        return f"no room to write {path}: {os.strerror(error.errno or 0)} ({n_bytes:,} bytes needed in all); {kept}"
    return f"cannot write {path}: {error.strerror or error}; {kept}"
