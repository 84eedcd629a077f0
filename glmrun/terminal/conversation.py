"""A conversation in the terminal: its messages, its settings, and the slash commands that change them."""

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glmrun.sampling import Sampler
from glmrun.terminal.console import note, show_error
from glmrun.terminal.interrupt import interruptible
from glmrun.terminal.sanitize import visible
from glmrun.terminal.stream import Answer, counted, finish_note, show_answer, stats_line
from glmrun.terminal.tool_blocks import show_tool_call
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.engine import Model


class Leave(Exception):
    """The user wants to go."""


# Name in /set -> (argument of Model.chat, type).
SETTINGS: dict[str, tuple[str, type]] = {
    "temp": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "min-p": ("min_p", float),
    "repeat-penalty": ("repeat_penalty", float),
    "seed": ("seed", int),
    "max-tokens": ("max_tokens", int),
}

_KEYS = """\
  Enter sends; Alt+Enter or Ctrl+J starts a new line; a text in triple quotes
  may have many lines. Ctrl+C stops an answer; twice on an empty line it leaves,
  as does Ctrl+D. Up and Ctrl+R find earlier messages."""


@dataclass
class Conversation:
    """Messages without the system prompt, which stands apart so that /clear keeps it."""

    model: "Model"
    settings: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    thinking: bool = True
    show_stats: bool = True
    messages: list[dict[str, Any]] = field(default_factory=list)
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def say(self, text: str) -> Answer:
        """Send one message and show the answer; a message that the model refuses (UserError) is not kept."""
        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            return self._answer()
        except UserError:
            del self.messages[before:]
            raise

    def _answer(self) -> Answer:
        answer = Answer()
        chunks = self.model.chat(self._all_messages(), thinking=self.thinking, **self.settings)
        try:
            with closing(interruptible(self.model, chunks)) as stream:
                show_answer(stream, answer)
            for call in answer.tool_calls:
                show_tool_call(call)
        finally:  # an interrupted answer is part of the conversation, as far as it came
            if answer.text or answer.reasoning or answer.tool_calls:
                self.messages.append(answer.message())
        self._count(answer)
        return answer

    def _count(self, answer: Answer) -> None:
        stats = answer.stats
        if ending := finish_note(answer, self.model.n_ctx):
            note(ending)
        if stats is None:
            return
        self.answers += 1
        self.tokens += stats.n_generated
        self.seconds += stats.generate_seconds
        if self.show_stats:
            note(stats_line(stats))
        if (used := self._context_used()) >= 0.9 * self.model.n_ctx:
            size = self.model.n_ctx
            note(f"{min(used, size):,} of {size:,} tokens of context used; /clear starts over, /undo takes the last exchange back")

    def _context_used(self) -> int:
        """Tokens of the conversation as the next prompt will repeat it; earlier thinking is not part of that."""
        messages = self._all_messages()
        return len(self.model.chat_format.encode(messages, thinking=self.thinking, add_generation_prompt=False)) if messages else 0

    def _all_messages(self) -> list[dict[str, Any]]:
        return ([] if self.system is None else [{"role": "system", "content": self.system}]) + self.messages

    # -- slash commands -----------------------------------------------------------------------------------------------

    def command(self, line: str) -> None:
        """Run one line that begins with a slash; raises Leave for /bye."""
        name, _, rest = line[1:].partition(" ")
        action = _COMMANDS.get(_ALIASES.get(name, name))
        if action is None:
            show_error(f"there is no command /{name}; /help lists them (a space in front sends the line as a message)")
            return
        try:
            action[0](self, rest.strip())
        except UserError as why:
            show_error(str(why))

    def _help(self, rest: str) -> None:
        width = max(len(usage) for _, usage, _ in _COMMANDS.values())
        lines = [f"  {usage:<{width}}  {text}" for _, usage, text in _COMMANDS.values()]
        _say("\n".join([*lines, "", _KEYS]))

    def _leave(self, rest: str) -> None:
        raise Leave

    def _clear(self, rest: str) -> None:
        self.messages.clear()
        _say("a new conversation" + (" (the system prompt stays)" if self.system else ""))

    def _regen(self, rest: str) -> None:
        last = self._last_question()
        del self.messages[last + 1 :]
        self._answer()

    def _undo(self, rest: str) -> None:
        last = self._last_question()
        text = self.messages[last]["content"]
        del self.messages[last:]
        _say(f"taken back: {text.splitlines()[0][:60] if text else ''}")

    def _last_question(self) -> int:
        """Index of the last message of the user; raises UserError if there is none."""
        places = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise UserError("nothing has been asked yet")
        return places[-1]

    def _set_system(self, rest: str) -> None:
        if rest:
            self.system = rest
        _say(f"system prompt: {self.system}" if self.system else "no system prompt; /system TEXT sets one")

    def _think(self, rest: str) -> None:
        if rest in ("on", "off"):
            self.thinking = rest == "on"
        elif rest:
            raise UserError(f"/think takes on or off, not {rest!r}")
        _say(f"thinking is {'on' if self.thinking else 'off'}")

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        name = {"temperature": "temp"}.get(name, name).replace("_", "-")
        if name not in SETTINGS:
            raise UserError(f"/set NAME VALUE, where NAME is one of {', '.join(SETTINGS)}")
        argument, kind = SETTINGS[name]
        try:
            value = kind(text.strip())
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise UserError(f"{name} takes {what}, not {text.strip()!r}") from None
        if argument != "max_tokens":
            Sampler(**{argument: value})  # raises UserError for a value that makes no sense
        elif value < 1:
            raise UserError("max-tokens is at least 1")
        self.settings[argument] = value
        _say(f"{name} = {value}")

    def _show(self, rest: str) -> None:
        changed = [f"{name} {self.settings[argument]}" for name, (argument, _) in SETTINGS.items() if argument in self.settings]
        pairs = {
            "model": self.model.path,
            "context": f"{self.model.n_ctx:,} tokens",
            "threads": self.model.n_threads,
            "system": self.system or "-",
            "thinking": "on" if self.thinking else "off",
            "settings": ", ".join([*changed, "all others as the model file says"]),
        }
        _say("\n".join(f"  {name:<9} {value}" for name, value in pairs.items()))

    def _stats(self, rest: str) -> None:
        if rest in ("on", "off"):
            self.show_stats = rest == "on"
        elif rest:
            raise UserError(f"/stats takes on or off, not {rest!r}")
        speed = f", {self.tokens / self.seconds:.1f} tok/s" if self.seconds > 0 else ""
        state = "on" if self.show_stats else "off"
        _say(f"{counted(self.answers, 'answer')}, {counted(self.tokens, 'token')}{speed}; the line after each answer is {state}")

    def _context(self, rest: str) -> None:
        used, size = self._context_used(), self.model.n_ctx
        bar = "█" * min(30, round(30 * used / size))
        _say(f"{bar:░<30} {used:,} of {size:,} tokens ({used / size:.0%}), {counted(len(self.messages), 'message')}")


_ALIASES = {"exit": "bye", "quit": "bye", "?": "help", "new": "clear", "retry": "regen"}
_COMMANDS: dict[str, tuple[Callable[[Conversation, str], None], str, str]] = {
    "help": (Conversation._help, "/help", "this list"),
    "clear": (Conversation._clear, "/clear", "forget the conversation, keep the system prompt"),
    "regen": (Conversation._regen, "/regen", "answer the last message again"),
    "undo": (Conversation._undo, "/undo", "take back the last message and its answer"),
    "system": (Conversation._set_system, "/system [TEXT]", "show or set the system prompt"),
    "think": (Conversation._think, "/think on|off", "let the model think before it answers"),
    "set": (Conversation._set, "/set NAME VALUE", ", ".join(SETTINGS)),
    "show": (Conversation._show, "/show", "model and settings"),
    "stats": (Conversation._stats, "/stats [on|off]", "this session's counts; the line after each answer"),
    "context": (Conversation._context, "/context", "how full the context is"),
    "bye": (Conversation._leave, "/bye", "leave (also /exit, /quit)"),
}
COMMAND_NAMES = [f"/{name}" for name in _COMMANDS]


def _say(text: str) -> None:
    """What a command has to tell, on standard error: standard output carries answers only."""
    print(visible(text), file=sys.stderr, flush=True)
