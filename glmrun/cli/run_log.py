"""What `glmrun run` keeps of a call: its question and answers, as a journal that the next call can go on from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from glmrun.chat.request import ChatModel
from glmrun.repl import sessions
from glmrun.terminal.console import note


@dataclass
class RunLog:
    """earlier   the messages of the call that goes on, its journal at path, the model it was held with"""

    wanted: bool
    system: str | None
    earlier: list[dict[str, Any]]
    path: Path | None = None
    model: str = ""

    @classmethod
    def begin(cls, wanted: bool, go_on: bool, system: str | None) -> Self:
        """For a new call, or (go_on) for one that goes on from the last; raises UserError if there is none."""
        if not go_on:
            return cls(wanted, system, [])
        path = sessions.find(None, sessions.RUNS)
        saved = sessions.read(path)
        return cls(wanted, saved.system if system is None else system, saved.messages, path, saved.model)

    def asked(self, text: str) -> list[dict[str, Any]]:
        """The messages that ask a question."""
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *self.earlier, {"role": "user", "content": text}]

    def model_name(self, url: str | None) -> str | None:
        """The model of the call that goes on, if it is still there and no server is asked."""
        from glmrun.machine import cache_folder

        if url is not None or not self.model:
            return None
        if Path(self.model).parent.parent == cache_folder() / "nano":
            return "nano"  # whose file has another place in each version
        return self.model if Path(self.model).exists() else None

    def write(self, model: ChatModel, messages: list[dict[str, Any]]) -> None:
        """Keep the messages, if that is wanted; a disk that refuses costs a line."""
        from glmrun.repl.kept import model_path, unkept

        if not self.wanted:
            return
        said = messages[self.system is not None :]
        try:
            if self.path is None:
                sessions.create(model_path(model), self.system, said, sessions.RUNS).close()
                return
            session, saved, _ = sessions.reopen(self.path)
            if self.system != saved.system:
                session.append("system", text=self.system)
            if (path := model_path(model)) != saved.model:
                session.append("model", path=path)
            for message in said[len(saved.messages) :]:
                session.append("message", message=message)
            session.close()
        except OSError as why:
            note(f"this call could not be kept: {unkept(why)} (--no-log keeps none)")
