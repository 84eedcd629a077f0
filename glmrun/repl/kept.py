"""What of a conversation is kept on disk: its journal (sessions.py), and the model's cache beside it."""

import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmrun.chat.request import ChatModel
from glmrun.repl import sessions
from glmrun.terminal.console import note
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.engine.saved_cache import SavedCache


@dataclass
class Kept:
    """A journal and a cache, from the first message on. A disk that refuses does not end the conversation: a line says so.

    saving       whether there is to be a journal
    keep_cache   whether there is to be a cache beside it
    """

    saving: bool = False
    keep_cache: bool = False
    session: sessions.Session | None = None
    cache: "SavedCache | None" = None
    told: str = ""  # why it could not be saved: said once

    def write(self, model: ChatModel, system: str | None, messages: list[dict[str, Any]], kind: str, **fields: Any) -> None:
        """Write a change to the journal, or begin one with all that there is."""
        if not self.saving:
            return
        try:
            whole = self.session is None and kind != "title"  # then create() writes the change, too
            self.session = self.session or sessions.create(model_path(model), system, messages)
            if not whole:
                self.session.append(kind, **fields)
        except OSError as why:
            if why.strerror != self.told:
                note(f"this conversation could not be saved: {unkept(why)}; each message tries again")
            self.told = why.strerror or ""
            self.close()  # a journal that lacks a line tells another story: the next one begins with all messages

    def reopen(self, path: Path) -> sessions.Saved:
        """Leave this journal for another one; one outside our folder is only read. Raises UserError."""
        if self.saving and sessions.is_ours(path):
            if self.session is not None and path.resolve() == self.session.path.resolve():
                raise UserError(f"{self.session.id} is this conversation")
            session, saved, lost = sessions.reopen(path)
            self.close()
            self.session = session
        else:
            saved, lost = sessions.read(path), None
            if saved.n_good < saved.n_bytes:
                lost = f"{path.name}: its last {saved.n_bytes - saved.n_good:,} bytes are damaged and left out"
            self.close()
        if lost:
            note(lost)
        return saved

    def close(self) -> None:
        """Leave the journal; what is on disk stays."""
        if self.session is not None:
            self.session.close()
        self.session = self.cache = None

    def load_cache(self, model: ChatModel) -> None:
        """Take what was kept of the cache into the model."""
        cache = self._cache_of(model)
        if cache is None:
            return
        self.keep_cache = True  # it was asked for when this conversation began
        self.cache, count = cache, cache.load()
        if cache.ignored:
            note(f"{cache.path.name}: {cache.ignored}; {'the rest' if count else 'the conversation'} is read again")

    def save_cache(self, model: ChatModel) -> None:
        """Keep what the model has cached, if that is wanted."""
        if not self.keep_cache or self.session is None:
            return
        try:
            self.cache = self.cache or self._cache_of(model, new=True)
            if self.cache is not None:
                self.cache.save()
        except OSError as why:
            note(f"the cache could not be kept: {why.strerror}")

    def _cache_of(self, model: ChatModel, new: bool = False) -> "SavedCache | None":
        """The saved cache of this session, if there is one or a new one is wanted, and the model is one that has a cache here."""
        if self.session is None or not hasattr(model, "latest") or not (new or self.session.cache_path.exists()):
            return None
        from glmrun.engine.saved_cache import SavedCache

        return SavedCache(self.session.cache_path, model)  # type: ignore[arg-type]


def unkept(why: OSError) -> str:
    """Why something could not be kept, and what helps where the folder is the reason."""
    advice = (
        ", XDG_STATE_HOME names another folder" if why.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOENT) else ""
    )
    return f"{why.strerror}{advice}"


def model_path(model: ChatModel) -> str:
    """What --continue opens."""
    return str(model.path.absolute() if isinstance(model.path, Path) else model.path)
