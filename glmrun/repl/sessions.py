"""Conversations on disk: each is a journal in the user's state directory, and a line is added and synced with every message.

    {"crc32":"5f3a0c11","record":{"type":"message", ...}}

A line counts if its checksum, of the record's bytes, is right and so were all before it; so a crash, a full disk or a damaged
block costs the damaged end and nothing else. Records: session (the first), model, system, title, message, cut (the
first `keep` messages stay).
"""

import codecs
import contextlib
import errno
import glob
import json
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from glmrun.machine import state_folder
from quant.errors import UserError
from quant.system import lock
from quant.text import without_mark

_LINE = re.compile(rb'\{"crc32":"([0-9a-f]{8})","record":(\{.*\})\}\n', re.DOTALL)
_MAX_FILE = 256 << 20  # bytes: no conversation is that long
_ROLES = ("user", "assistant", "tool")


@dataclass
class Saved:
    """What a journal says: the conversation as it was left."""

    model: str = ""
    created: str = ""
    name: str = ""
    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    n_good: int = 0  # bytes up to the end of the last good line
    n_bytes: int = 0

    def title(self) -> str:
        """What the user or the model called it, else the beginning of the first question."""
        if self.name:
            return self.name
        first = next((m.get("typed", m["content"]) for m in self.messages if m["role"] == "user"), "")
        return " ".join(first.split())[:48]

    def holds(self, words: Sequence[str]) -> bool:
        """Whether all of these words, in lower case, stand in the title or in messages."""
        text = "\n".join([self.name, *(message["content"] for message in self.messages)]).casefold()
        return all(word in text for word in words)


class Session:
    """An open journal, locked for this process; made by create() and reopen(). append() never loses what was written before."""

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.path, self._descriptor, self._size = path, descriptor, size

    @property
    def id(self) -> str:
        """What --resume and /load take."""
        return self.path.stem

    @property
    def cache_path(self) -> Path:
        """Where the model's cache of this conversation may stand (saved_cache.py)."""
        return self.path.with_suffix(".cache")

    def append(self, kind: str, **fields: Any) -> None:
        """Write one record and wait for the disk; raises OSError, and then the journal is as it was."""
        data = _line({"type": kind, **fields})
        try:
            os.lseek(self._descriptor, self._size, os.SEEK_SET)
            _write_all(self._descriptor, data)
            os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


CHATS, RUNS = "sessions", "runs"  # folders of conversations, and of the calls of `glmrun run`


def folder(kind: str = CHATS) -> Path:
    """Where journals stand; made if it is missing, for its owner only. Raises OSError."""
    path = state_folder() / kind
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def create(model: str, system: str | None = None, messages: list[dict[str, Any]] | tuple[()] = (), kind: str = CHATS) -> Session:
    """A new journal, named by the time, that begins with these messages; raises OSError."""
    now = datetime.now().astimezone()
    for n in range(1, 1000):
        path = folder(kind) / f"{now:%Y%m%d-%H%M%S}{'' if n == 1 else f'-{n}'}.jsonl"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            continue
    session = Session(path, descriptor, 0)
    try:
        lock(descriptor)
        session.append("session", version=1, created=now.isoformat(timespec="seconds"), model=model)
        if system is not None:
            session.append("system", text=system)
        for message in messages:
            session.append("message", message=message)
        _sync_folder(path.parent)
    except OSError:
        session.close()
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return session


def reopen(path: Path) -> tuple[Session, Saved, str | None]:
    """A journal to go on with, what it says, and a line about what was lost, if something was.

    A damaged end is cut off; the file as it was stays beside it as `.damaged-TIME`. Raises UserError: not a journal, or in use.
    """
    descriptor = _open(path, os.O_RDWR)
    if not lock(descriptor):
        os.close(descriptor)
        raise UserError(f"{path.stem} is open in another terminal; close it there, or take another session (/sessions)", "busy")
    try:
        saved = _replay(path, _read(path, descriptor))
        lost = None
        if saved.n_good < saved.n_bytes:
            aside = path.with_name(f"{path.stem}.damaged-{datetime.now():%Y%m%d%H%M%S}")
            write_new(aside, _read(path, descriptor))
            os.ftruncate(descriptor, saved.n_good)
            os.fsync(descriptor)
            lost = f"{path.name}: its last {saved.n_bytes - saved.n_good:,} bytes are damaged and left out (kept in {aside.name})"
        return Session(path, descriptor, saved.n_good), saved, lost
    except BaseException:
        os.close(descriptor)
        raise


def read(path: Path) -> Saved:
    """What a journal says, also while another process writes it; raises UserError if it is none."""
    descriptor = _open(path, os.O_RDONLY)
    try:
        return _replay(path, _read(path, descriptor))
    finally:
        os.close(descriptor)


def listed(limit: int = 50, words: Sequence[str] = (), kind: str = CHATS) -> list[tuple[Path, Saved]]:
    """The newest journals with at least one message that hold all the words, in any case; the last one used first."""
    wanted = [word.casefold() for word in words]
    try:
        paths = sorted(folder(kind).glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []
    found = []
    for path in paths:
        with contextlib.suppress(UserError):
            saved = read(path)
            if saved.messages and (not wanted or saved.holds(wanted)):
                found.append((path, saved))
        if len(found) == limit:
            break
    return found


def find(name: str | None, kind: str = CHATS) -> Path:
    """The journal that a name means: an ID or a part of one, or a file's path; None is the last one used. Raises UserError."""
    if name is None:
        newest = listed(1, kind=kind)
        if not newest:
            raise UserError("there is no earlier session to go on with", "missing")
        return newest[0][0]
    path = Path(os.path.expanduser(name))
    if os.sep in name or name.endswith(".jsonl") or path.is_file():
        return path
    paths = sorted(folder(kind).glob("*.jsonl"))
    exact = [path for path in paths if path.stem == name]
    found = exact or [path for path in paths if name and name in path.stem]
    if not found:
        raise UserError(f"no session and no file is called {name}; /sessions lists them, outside a chat glmrun sessions", "missing")
    if len(found) > 1:
        raise UserError(f"{name} can mean {', '.join(path.stem for path in found[-5:])}; write more of it", "usage")
    return found[0]


def is_ours(path: Path, kind: str = CHATS) -> bool:
    """Whether a journal stands in our folder, and not somewhere that a user saved it to."""
    return path.parent.resolve() == folder(kind).resolve()


def remove(path: Path) -> None:
    """Delete a journal and what belongs to it; raises UserError while it is in use, and for a file that a user saved."""
    if not (is_ours(path) or is_ours(path, RUNS)):  # beside it stand files of the same stem that are none of ours
        raise UserError(f"{path} is a file and no kept session; only an ID is deleted here", "usage")
    session, _, _ = reopen(path)
    try:
        for other in path.parent.glob(f"{glob.escape(path.stem)}.*"):
            other.unlink(missing_ok=True)
    finally:
        session.close()


def write_copy(path: Path, model: str, system: str | None, messages: list[dict[str, Any]], replace: bool = False) -> None:
    """Write a conversation as a journal under a name of the user's choice, as write_new() does."""
    records: list[dict[str, Any]] = [
        {"type": "session", "version": 1, "created": datetime.now().astimezone().isoformat(timespec="seconds"), "model": model}
    ]
    if system is not None:
        records.append({"type": "system", "text": system})
    records += [{"type": "message", "message": message} for message in messages]
    write_new(path, b"".join(map(_line, records)), replace)


def write_new(path: Path, data: bytes, replace: bool = False) -> None:
    """A file, whole or not at all, in the place of another one only with `replace`. Raises UserError if there is one, OSError."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file in it", "usage")
    part = path.with_name(f".{os.getpid()}.part")
    mode = stat.S_IMODE(path.stat().st_mode) if replace and path.exists() else 0o666
    try:
        _write_part(part, data, mode)
        (os.replace if replace else _link)(part, path)
    except FileExistsError:
        raise UserError(f"{path} exists; choose another name", "refused", "replace") from None
    except OSError as why:
        raise OSError(why.errno, why.strerror, str(path)) from None  # the name that the user wrote
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _link(part: Path, path: Path) -> None:
    """Give a file its name; unlike a rename that takes no other file's place."""
    try:
        os.link(part, path)
    except OSError as why:
        if why.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))  # a disk without hard links
        os.replace(part, path)


def _write_part(part: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(record: dict[str, Any]) -> bytes:
    data = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    return b'{"crc32":"%08x","record":%s}\n' % (zlib.crc32(data), data)


def _replay(path: Path, data: bytes) -> Saved:
    saved = Saved(n_bytes=len(data))
    for record, end in _records(data):
        if not _apply(record, saved):
            break
        saved.n_good = end
    if not saved.n_good:
        without_mark(data, str(path))  # says so of another encoding
        raise UserError(f"{path}: not a saved session of glmrun, or damaged from its first line on")
    return saved


def _records(data: bytes) -> Iterator[tuple[Any, int]]:
    """(record, byte behind its line) of the good lines up to the first bad one."""
    at = len(codecs.BOM_UTF8) * data.startswith(codecs.BOM_UTF8)  # an editor's
    while at < len(data):
        end = data.find(b"\n", at) + 1
        found = _LINE.fullmatch(data, at, end) if end else None
        if found is None or int(found[1], 16) != zlib.crc32(found[2]):
            return
        try:
            yield json.loads(found[2].decode("utf-8", "surrogatepass")), end
        except (ValueError, RecursionError):
            return
        at = end


def _apply(record: Any, saved: Saved) -> bool:
    """Let one record change what is saved; False if it is none that we write."""
    kind = record.get("type")
    if not saved.n_good:
        if kind != "session" or record.get("version") != 1:
            return False
        saved.model, saved.created = str(record.get("model", "")), str(record.get("created", ""))
    elif kind == "system" and isinstance(record.get("text"), str | None):
        saved.system = record["text"]
    elif kind == "model" and isinstance(record.get("path"), str):
        saved.model = record["path"]
    elif kind == "title" and isinstance(record.get("text"), str):
        saved.name = record["text"]
    elif kind == "message" and _is_message(record.get("message")):
        saved.messages.append(record["message"])
    elif kind == "cut" and isinstance(record.get("keep"), int) and 0 <= record["keep"] <= len(saved.messages):
        del saved.messages[record["keep"] :]
    else:
        return False
    return True


def _is_message(message: Any) -> bool:
    """Whether it is one that we write: whoever shows it need not look again. token_ids are looked at where they are used."""
    if not isinstance(message, dict) or message.get("role") not in _ROLES or "content" not in message:
        return False
    texts = ("content", "typed", "reasoning_content", "finish_reason", "tool_call_id")
    calls = message.get("tool_calls", [])
    return all(isinstance(message.get(key, ""), str) for key in texts) and isinstance(calls, list) and all(map(_is_call, calls))


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    parts = (call.get("id"), function.get("name"), function.get("arguments")) if isinstance(function, dict) else (None,)
    return all(isinstance(part, str) for part in parts)


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", "missing") from None
    except OSError as why:
        raise UserError(f"{path}: {why.strerror}") from None


def _read(path: Path, descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > _MAX_FILE:
        raise UserError(f"{path}: {size:,} bytes are too many for a saved session")
    parts, at = [], 0
    try:
        while part := os.pread(descriptor, 1 << 20, at):
            parts.append(part)
            at += len(part)
    except OSError as why:
        raise UserError(f"{path}: {why.strerror}") from None
    return b"".join(parts)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(descriptor, view) :]


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
