"""The slash commands: one table, and what each does to the conversation."""

import re
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast, get_args

from glmrun.chat.answer import Answer
from glmrun.engine.sampling import PRESETS, Sampler
from glmrun.repl import saving
from glmrun.repl.attachments import read_text
from glmrun.repl.conversation import SETTINGS, Conversation, Typing
from glmrun.repl.flags import in_words
from glmrun.repl.tool_calls import Approve
from glmrun.terminal.answer import Thinking, counted, show_thinking
from glmrun.terminal.console import note, say, show_error
from quant.errors import UserError

_PEERS_NAMES = {"temperature": "temp", "num-predict": "max-tokens", "n-predict": "max-tokens"}
_KEYS = """\
  Enter            sends                       Up, Down      earlier messages that begin like this one
  Alt+Enter        new line (also Ctrl+J)      Ctrl+R        searches earlier messages
  Tab              completes commands, @files  Ctrl+X Ctrl+E opens $EDITOR (also Ctrl+G)
  Esc, Ctrl+C      stops an answer             Ctrl+O        all of the answer's thinking
  Shift+Tab        thinking on or off          Ctrl+L        clears the screen
  Ctrl+C Ctrl+C    leaves, on an empty line    Ctrl+D        leaves
  A text in triple quotes may have many lines; @path puts a file into the message."""


class Leave(Exception):
    """The user wants to go."""


_COLUMN = 24  # where the list of commands tells what they do


def is_command(text: str) -> bool:
    """Whether a line is a command: a slash and a word; a path is not."""
    return re.match(r"/[\w?-]*(\s|$)", text) is not None


def run_command(conversation: Conversation, line: str) -> None:
    """Run one line that begins with a slash; raises Leave for /bye."""
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        show_error(f"there is no command /{name}; /help lists them (a space in front sends the line as a message)")
        return
    try:
        command.run(conversation, rest.strip())
    except UserError as why:
        show_error(in_words(why))
    except OSError as why:
        show_error(f"{why.filename or line}: {why.strerror}")


def _help(conversation: Conversation, rest: str) -> None:
    if rest in ("keys", "shortcuts"):
        say(_KEYS)
        return
    say("\n".join([_usage(name, command) for name, command in COMMANDS.items()] + ["", _KEYS]))


def _usage(name: str, command: "Command") -> str:
    """What a command takes and does, with the names that other programs have for it, folded for the terminal."""
    others = ", ".join(f"/{other}" for other, ours in _ALIASES.items() if ours == name)
    text = command.help + (f" (also {others})" if others else "")
    indent = " " * (_COLUMN + 2)
    width = max(_COLUMN + 30, min(shutil.get_terminal_size().columns, 120) - 1)
    lines = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    if len(command.usage) >= _COLUMN:
        return "\n".join([f"  {command.usage}", *lines])
    return "\n".join([f"  {command.usage:<{_COLUMN}}{lines[0].lstrip()}", *lines[1:]])


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


def _clear(conversation: Conversation, rest: str) -> None:
    kept = f"; the last one is {conversation.kept.session.id}" if conversation.kept.session else ""
    conversation.start_over()
    say("a new conversation" + (" (the system prompt stays)" if conversation.system else "") + kept)


def _regen(conversation: Conversation, rest: str) -> None:
    conversation.answer_again()


def _undo(conversation: Conversation, rest: str) -> None:
    count = _whole(rest or "1", "/undo takes a number of exchanges")
    say(f"taken back: {saving.brief(conversation.take_back(count))}")


def _edit(conversation: Conversation, rest: str) -> None:
    line, place = _line(conversation), conversation.last_question()
    line.draft, line.edited = conversation.messages[place].get("typed", conversation.messages[place]["content"]), place
    say("change the message and send it: it replaces the last one and its answer; Ctrl+C leaves both as they are")


def _system(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.set_system(None if rest == "none" else rest)
    say(f"system prompt: {conversation.system}" if conversation.system else "no system prompt; /system TEXT sets one")


def _think(conversation: Conversation, rest: str) -> None:
    if rest in ("on", "off"):
        conversation.thinking, conversation.think_budget = rest == "on", None
    elif rest in ("keep", "forget"):
        conversation.preserve_thinking = rest == "keep"
    elif rest in get_args(Thinking):
        conversation.surface.show_thinking = cast(Thinking, rest)
        if rest == "show" and conversation.messages:
            show_last_thinking(conversation)
    elif rest:
        budget = _whole(rest, "/think takes on or off, show or hide, keep or forget, or a number of tokens", least=0)
        conversation.thinking, conversation.think_budget = True, budget
    say(f"thinking is {_thinking(conversation)}")


def show_last_thinking(conversation: Conversation) -> None:
    """Print the thinking behind the last answer."""
    thinking = next((m.get("reasoning_content", "") for m in reversed(conversation.messages) if m["role"] == "assistant"), "")
    last = conversation.last
    if thinking and thinking == conversation.surface.shown:
        note("the thinking is shown above")
        return
    conversation.surface.shown = thinking
    show_thinking(last if last is not None and last.reasoning == thinking else Answer(reasoning=thinking))


def _thinking(conversation: Conversation) -> str:
    budget = conversation.think_budget
    limit = "" if budget is None else f", at most {counted(budget, 'token')}"
    earlier = "kept in the prompt" if conversation.preserve_thinking else "left out of the prompt"
    shown = {"fold": "folded into a line", "show": "shown", "hide": "hidden"}[conversation.surface.show_thinking]
    return f"{'on' + limit if conversation.thinking else 'off'}, {shown}; that of earlier answers is {earlier}"


def _set(conversation: Conversation, rest: str) -> None:
    name, _, text = rest.removeprefix("parameter ").partition(" ")
    name, text = name.replace("_", "-"), text.strip()
    name = _PEERS_NAMES.get(name, name)
    if name in _SWITCHES:
        _SWITCHES[name](conversation, text)
        return
    if name not in SETTINGS:
        raise UserError(f"/set NAME VALUE, where NAME is one of {', '.join([*SETTINGS, *_OTHERS])}")
    argument, kind = SETTINGS[name]
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} takes {what}, not {text!r}") from None
    if argument != "max_tokens":
        Sampler(**{argument: value})  # raises UserError for a value that makes no sense
    elif value < 1:
        raise UserError("max-tokens is at least 1")
    conversation.settings[argument] = value
    say(f"{name} = {value}")


def _set_preset(conversation: Conversation, name: str) -> None:
    if name not in PRESETS:
        raise UserError(f"there are the presets {', '.join(PRESETS)}")
    conversation.settings |= PRESETS[name]
    if name == "agent":
        conversation.preserve_thinking = True
    _show(conversation, "")


def _set_format(conversation: Conversation, text: str) -> None:
    if text not in ("json", "text"):
        raise UserError("/set format takes json or text")
    if text == "json" and conversation.tools is not None:
        raise UserError("a JSON answer and tools exclude each other; start the chat without --tools")
    conversation.settings.pop("json_schema", None)
    if text == "json":
        conversation.settings["json_schema"] = {"type": "object"}
    say("answers are " + ("JSON objects" if text == "json" else "as the model writes them"))


def _set_vi(conversation: Conversation, text: str) -> None:
    line = _line(conversation)
    line.vi = _on(text)
    say(f"keys as in {'vi' if line.vi else 'emacs'}")


def _set_history(conversation: Conversation, text: str) -> None:
    line = _line(conversation)
    line.history = conversation.kept.saving = _on(text)
    if not line.history:
        conversation.close()
    say("messages and the conversation are " + ("remembered" if line.history else "remembered no longer; what was stays on disk"))


def _show(conversation: Conversation, rest: str) -> None:
    changed = ["format json"] if "json_schema" in conversation.settings else []
    changed += [f"{name} {conversation.settings[key]}" for name, (key, _) in SETTINGS.items() if key in conversation.settings]
    session = conversation.kept.session.id if conversation.kept.session else "-"
    pairs = {
        "model": conversation.model.path,
        "context": f"{conversation.model.n_ctx:,} tokens",
        "threads": conversation.model.n_threads,
        "system": conversation.system or "-",
        "thinking": _thinking(conversation),
        "settings": ", ".join([*changed, "all others as the model file says"]),
        "session": session + (", with its cache" if conversation.kept.session and conversation.kept.keep_cache else ""),
    }
    if rest and rest not in pairs:
        raise UserError(f"/show takes one of {', '.join(pairs)}, or nothing")
    say("\n".join(f"  {name:<9} {value}" for name, value in pairs.items() if rest in ("", name)))


def _stats(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.surface.show_stats = _on(rest)
    c = conversation
    speed = f", {c.totals.tokens / c.totals.seconds:.1f} tok/s" if c.totals.seconds > 0 else ""
    state = "on" if c.surface.show_stats else "off"
    say(f"{counted(c.totals.answers, 'answer')}, {counted(c.totals.tokens, 'token')}{speed}; the line after each answer is {state}")


def _tools(conversation: Conversation, rest: str) -> None:
    if conversation.tools is None:
        raise UserError("no tools are offered; glmrun chat --tools FILE.py offers the functions of a file")
    if rest and rest not in list(Approve):
        raise UserError(f"/tools takes {', '.join(Approve)}, not {rest!r}")
    if rest:
        conversation.tools.approve = Approve(rest)
    told = {Approve.auto: "are carried out", Approve.ask: "are asked about", Approve.never: "are refused"}
    say(f"{', '.join(conversation.tools.tools.names)}; calls {told[conversation.tools.approve]}")


def _context(conversation: Conversation, rest: str) -> None:
    used, size = conversation.used(), conversation.model.n_ctx
    bar = "█" * min(30, round(30 * used / size))
    say(f"{bar:░<30} {used:,} of {size:,} tokens ({used / size:.0%}), {counted(len(conversation.messages), 'message')}")


def _read(conversation: Conversation, rest: str) -> None:
    if not rest:
        raise UserError("/read FILE puts a file into the next message")
    path = Path(rest).expanduser()
    text = read_text(path)
    if path not in conversation.attached:
        conversation.attached.append(path)
    say(f"{path}: {counted(len(text.splitlines()), 'line')}, with the next message")


def _model(conversation: Conversation, rest: str) -> None:
    if rest and conversation.surface.open_model is None:
        raise UserError("this conversation cannot change its model")
    if rest and conversation.surface.open_model is not None:
        conversation.change_model(conversation.surface.open_model(rest))
    say(f"{conversation.model.path} · context {conversation.model.n_ctx:,} tokens")


def _prompt(conversation: Conversation, rest: str) -> None:
    request = conversation.request()
    if not request.messages:
        raise UserError("nothing has been asked yet")
    say(conversation.model.prompt_text(request))


def _multiline(conversation: Conversation, rest: str) -> None:
    line = _line(conversation)
    line.multiline = _on(rest) if rest else not line.multiline
    say("Enter begins a new line, Alt+Enter sends" if line.multiline else "Enter sends, Alt+Enter begins a new line")


def _whole(text: str, what: str, least: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1 << 31):
        raise UserError(f"{what}, not {text!r}")
    return int(text)


def _on(text: str) -> bool:
    if text not in ("", "on", "off"):
        raise UserError(f"it takes on or off, not {text!r}")
    return text != "off"


def _line(conversation: Conversation) -> Typing:
    if conversation.surface.typing is None:
        raise UserError("that needs a terminal to type in")
    return conversation.surface.typing


@dataclass(frozen=True)
class Command:
    """completes   what may follow: these words, or the kind of it: file, session, model"""

    run: Callable[[Conversation, str], None]
    usage: str
    help: str
    completes: tuple[str, ...] | str = ()


_ON_OFF = ("on", "off")
_OTHERS = ("preset", "format", "vi", "history")  # of /set
COMMANDS = {
    "help": Command(_help, "/help [keys]", "this list", ("keys",)),
    "clear": Command(_clear, "/clear", "begin a new conversation, keep the system prompt"),
    "regen": Command(_regen, "/regen", "answer the last message again"),
    "undo": Command(_undo, "/undo [N]", "take back the last message and its answer, or the last N"),
    "edit": Command(_edit, "/edit", "take the last message back into the line, to change it"),
    "system": Command(_system, "/system [TEXT|none]", "show or set the system prompt"),
    "think": Command(
        _think, "/think [on|off|N|show|fold|hide|keep|forget]", "think first, N tokens at most; show it; keep it in the prompt",
        ("on", "off", *get_args(Thinking), "keep", "forget"),
    ),
    "set": Command(_set, "/set NAME VALUE", ", ".join([*SETTINGS, *_OTHERS]), (*SETTINGS, *_OTHERS)),
    "show": Command(_show, "/show [NAME]", "model and settings"),
    "stats": Command(_stats, "/stats [on|off]", "this session's counts; the line after each answer", _ON_OFF),
    "tools": Command(_tools, "/tools [auto|ask|never]", "what the model can call; whether calls are carried out", tuple(Approve)),
    "context": Command(_context, "/context", "how full the context is"),
    "read": Command(_read, "/read FILE", "put a file into the next message (as @FILE in its text does)", "file"),
    "sessions": Command(saving.list_sessions, "/sessions [rm ID]", "list the saved conversations, or delete one", ("rm",)),
    "load": Command(saving.load, "/load ID|FILE", "go on with a saved conversation", "session"),
    "save": Command(saving.save, "/save FILE", "write a copy of the conversation that /load reads", "file"),
    "export": Command(saving.export_to, "/export FILE", "write it as Markdown (.md) or JSON (.json)", "file"),
    "copy": Command(saving.copy, "/copy [code]", "the last answer, or its last code block, to the clipboard", ("code",)),
    "model": Command(_model, "/model [NAME]", "show or change the model", "model"),
    "prompt": Command(_prompt, "/prompt", "what the model is given to read"),
    "multiline": Command(_multiline, "/multiline [on|off]", "let Enter begin a new line and Alt+Enter send", _ON_OFF),
    "bye": Command(_leave, "/bye", "leave"),
}  # fmt: skip
_ALIASES = {
    "exit": "bye", "quit": "bye", "q": "bye", "?": "help", "new": "clear", "reset": "clear", "retry": "regen", "backtrack": "undo",
    "file": "read", "add": "read", "editor": "edit", "tokens": "context", "usage": "context", "reasoning": "think",
    "system-prompt": "system", "settings": "show", "multiline-mode": "multiline", "resume": "load",
}  # fmt: skip
_SWITCHES: dict[str, Callable[[Conversation, str], None]] = {
    "preset": _set_preset,
    "format": _set_format,
    "vi": _set_vi,
    "history": _set_history,
    "nohistory": lambda conversation, _: _set_history(conversation, "off"),
    "system": _system,
    "think": lambda conversation, text: _think(conversation, text or "on"),
    "nothink": lambda conversation, _: _think(conversation, "off"),
    "stats": _stats,
    "verbose": lambda conversation, _: _stats(conversation, "on"),
    "quiet": lambda conversation, _: _stats(conversation, "off"),
}
