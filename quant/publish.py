"""Write a file that appears under its name only when it is complete.

The bytes go to a hidden partial file beside the target, locked so that two conversions never share it; fsync and an atomic
rename make it the target. Any error removes the partial file, and a partial file of a killed process is simply taken over.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from quant.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def publish(path: Path, n_bytes: int, force: bool = False, sources: Iterable[Path] = ()) -> Iterator[BinaryIO]:
    """A binary file to write exactly n_bytes to; when the block ends without an error, the file is at `path`.

    force     replace a file that is there; it stays until the new one is complete
    sources   files the bytes come from: none of them may be the target
    Raises UserError before the first byte is written when the target is taken, the folder is missing or the disk is too
    small, and for every error of the file system while writing.
    """
    path = Path(path)
    _check_target(path, force, sources)
    partial = path.with_name(f".{path.name}.partial")
    try:
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot write in {path.parent}: {error.strerror}") from None
    with open(fd, "wb", buffering=1 << 20) as file:
        _lock(fd, partial, path)
        try:
            os.ftruncate(fd, 0)
            _check_space(path, n_bytes)
            yield file
            file.flush()
            if file.tell() != n_bytes:
                raise RuntimeError(f"{file.tell()} bytes were written to {path}, {n_bytes} were planned")
            os.fsync(fd)
            _check_target(path, force, sources)
            os.replace(partial, path)
            _sync_folder(path.parent)
        except BaseException as error:
            # Empty the file first: closing would otherwise try to write what is still in the buffer to a full disk.
            with contextlib.suppress(OSError):
                partial.unlink()
            with contextlib.suppress(OSError):
                file.close()
            if isinstance(error, OSError):
                raise UserError(_writing_failed(error, path, n_bytes)) from None
            raise


def _check_target(path: Path, force: bool, sources: Iterable[Path]) -> None:
    if not path.parent.is_dir():
        raise UserError(f"the folder {path.parent} does not exist; create it or choose another output", 3)
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
            raise UserError(f"the output {path} is one of the model's own files; choose another output")
    if not force:
        raise UserError(f"{path} exists already; give another output, or --force to replace it")


def _lock(fd: int, partial: Path, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The file may have been renamed to its final name between our open and our lock: then it is not ours.
        ours = os.path.samestat(os.fstat(fd), partial.stat())
    except OSError:
        ours = False
    if not ours:
        raise UserError(f"another process is writing {path}; wait for it or choose another output")


def _check_space(path: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise UserError(f"not enough disk space for {path}: {n_bytes:,} bytes needed, {free:,} free; nothing was written")


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; a file system that cannot sync folders has the complete file all the same."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _writing_failed(error: OSError, path: Path, n_bytes: int) -> str:
    if error.errno in _FULL:
        return f"no room to write {path}: {os.strerror(error.errno or 0)} ({n_bytes:,} bytes needed); nothing was left behind"
    return f"cannot write {path}: {error.strerror or error}; nothing was left behind"
