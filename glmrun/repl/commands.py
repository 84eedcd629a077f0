"""The slash commands: one table, and what each does to the conversation."""

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import get_args

from glmrun.repl import saving, values
from glmrun.repl.attachments import found_by, names, read_text
from glmrun.repl.compact import compact
from glmrun.repl.conversation import SETTINGS, Conversation
from glmrun.repl.flags import in_words
from glmrun.repl.tool_calls import APPROVE
from glmrun.store import prompts
from glmrun.terminal.answer import Thinking, counted
from glmrun.terminal.console import say, show_error
from glmrun.terminal.tail import window
from quant.errors import UserError

_KEYS = """\
  Enter            sends; during an answer it begins a new line
  Alt+Enter        new line (also Ctrl+J, or a \\ at the end of the line)
  Tab              completes commands, @files
  Esc, Ctrl+C      stops an answer, and keeps what was said
  Shift+Tab        thinking on or off
  Ctrl+O           all of the answer's thinking
  Up, Down         earlier messages that begin like this one
  Ctrl+R           searches earlier messages
  Ctrl+X Ctrl+E    opens $EDITOR (also Ctrl+G)
  Ctrl+L           clears the screen
  Ctrl+D           leaves (also Ctrl+C twice on an empty line)
  \"\"\"              begins and ends a text of many lines
  @path            puts a file into the message; a folder or @*.py puts several"""
_GROUPS = {
    "answers": "regen undo edit think system set preset persona prompt",
    "context": "context compact read tools clear",
    "kept": "sessions rename load save export copy",
    "program": "show stats model multiline help bye",
}


class Leave(Exception):
    """The user wants to go."""


def is_command(text: str) -> bool:
    """Whether a line is a command: a slash and a word; a path is not."""
    return re.match(r"/[\w?-]*(\s|$)", text) is not None


def run_command(conversation: Conversation, line: str) -> bool:
    """Run one line that begins with a slash; returns whether it could be done. Raises Leave for /bye."""
    name, _, rest = line[1:].partition(" ")
    command = COMMANDS.get(_ALIASES.get(name, name))
    if command is None:
        nearest = _nearest(name) or "; /help lists them"
        show_error(f"there is no command /{name}{nearest} (a space in front sends the line as a message)")
        return False
    try:
        command.run(conversation, rest.strip())
        return True
    except UserError as why:
        show_error(in_words(why))
    except OSError as why:
        show_error(f"{why.filename or line}: {why.strerror}")
    return False


def _help(conversation: Conversation, rest: str) -> None:
    name = rest.removeprefix("/")
    name = _ALIASES.get(name, name)
    if not rest:
        groups = {group: [f"/{name}" for name in names.split() if name in COMMANDS] for group, names in _GROUPS.items()}
        lines = [f"  {group:<9}  {' '.join(names)}" for group, names in groups.items()]
        say("\n".join([*lines, "", "  /help NAME tells what one does, /help all what all do, /help keys the keys"]))
    elif rest in ("keys", "shortcuts"):
        say(_KEYS)
    elif rest == "all":
        say("\n".join([*map(_usage, COMMANDS), "", _KEYS]))
    elif name in COMMANDS:
        say(_usage(name))
    else:
        raise UserError(f"there is no command /{name}{_nearest(name)}")


def _usage(name: str) -> str:
    """What a command takes and does, with the names that other programs have for it."""
    others = ", ".join(f"/{other}" for other, ours in _ALIASES.items() if ours == name)
    return f"  {COMMANDS[name].usage:<24}  {COMMANDS[name].help}" + (f" (also {others})" if others else "")


def _nearest(name: str) -> str:
    """`; do you mean /help?`, if a command has a name like that."""
    found = get_close_matches(name, [*COMMANDS, *_ALIASES], 1) or [known for known in COMMANDS if name and known.startswith(name)]
    return f"; do you mean /{found[0]}?" if found else ""


def _leave(conversation: Conversation, rest: str) -> None:
    raise Leave


def _clear(conversation: Conversation, rest: str) -> None:
    kept = f"; the last one is {conversation.kept.session.id}" if conversation.kept.session else ""
    conversation.start_over()
    say("a new conversation" + (" (the system prompt stays)" if conversation.system else "") + kept)


def _regen(conversation: Conversation, rest: str) -> None:
    conversation.answer_again()


def _undo(conversation: Conversation, rest: str) -> None:
    count = values.whole(rest or "1", "/undo takes a number of exchanges")
    say(f"taken back: {saving.brief(conversation.take_back(count))}")


def _edit(conversation: Conversation, rest: str) -> None:
    line, place = values.line(conversation), conversation.last_question()
    line.draft, line.edited = conversation.messages[place].get("typed", conversation.messages[place]["content"]), place
    say("change the message and send it: it replaces the last one and its answer; Ctrl+C leaves both as they are")


def _tools(conversation: Conversation, rest: str) -> None:
    if conversation.tools is None:
        raise UserError("no tools are offered; glmrun chat --tools FILE.py offers the functions of a file")
    if rest and rest not in APPROVE:
        raise UserError(f"/tools takes {', '.join(APPROVE)}, not {rest!r}")
    conversation.tools.approve = next((approve for approve in APPROVE if approve == rest), conversation.tools.approve)
    told = {"auto": "are carried out", "ask": "are asked about", "never": "are refused"}
    say(f"{', '.join(conversation.tools.tools.names)}; calls {told[conversation.tools.approve]}")


def _context(conversation: Conversation, rest: str) -> None:
    used, size = conversation.used(), conversation.model.n_ctx
    cells = min(30, window(sys.stderr)[0])
    bar = "█" * min(cells, round(cells * used / size))
    say(f"{bar:░<{cells}} {used:,} of {size:,} tokens ({used / size:.0%}), {counted(len(conversation.messages), 'message')}")
    for path in conversation.attached:
        say(f"  + {path}, with the next message")


def _read(conversation: Conversation, rest: str) -> None:
    attached = conversation.attached
    if rest == "none":
        say(f"{counted(len(attached), 'file')} taken back")
        attached.clear()
        return
    found = dict.fromkeys(path for name in names(rest) for path in found_by(name))
    for path in found:
        read_text(path)
    attached += [path for path in found if path not in attached]
    if not attached:
        say("no file waits; /read FILE puts one into the next message, a folder or *.py several")
        return
    for path in attached:
        say(f"  + {path}, {counted(len(read_text(path).splitlines()), 'line')}")
    say("with the next message; /read none takes them back")


def _model(conversation: Conversation, rest: str) -> None:
    if rest and conversation.surface.open_model is None:
        raise UserError("this conversation cannot change its model")
    if rest and conversation.surface.open_model is not None:
        conversation.change_model(conversation.surface.open_model(rest))
    say(f"{conversation.model.path} · context {conversation.model.n_ctx:,} tokens")


def _prompt(conversation: Conversation, rest: str) -> None:
    if rest:
        name, *words = _split(rest)
        values_given, others = prompts.values_of(words)
        if others:
            raise UserError(f"/prompt takes a name and key=value, not {others[0]!r}")
        values.line(conversation).draft = prompts.filled(name, values_given)
        return
    request = conversation.request()
    if not request.messages:
        raise UserError("nothing has been asked yet; /prompt NAME puts a prompt that you keep into the line")
    say(conversation.model.prompt_text(request))


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as why:
        raise UserError(f"{text}: {why}") from None


def _persona(conversation: Conversation, rest: str) -> None:
    if conversation.surface.persona is None:
        raise UserError("this conversation takes no persona")
    if not rest:
        raise UserError("/persona takes the name of a persona; glmrun prompts lists those that you keep")
    found = dict(conversation.surface.persona(rest))
    preset = found.pop("preset", None)
    fixed = {} if preset is None else values.take_preset(conversation, preset)  # beats the numbers beside it, as at the start
    for name, (argument, kind) in SETTINGS.items():
        given = found.pop(name if name == "temp" else argument, None)
        if given is not None and argument not in fixed:
            conversation.settings[argument], conversation.origins[argument] = kind(given), f"persona {rest}"
    conversation.thinking = bool(found.pop("think", conversation.thinking))
    conversation.preserve_thinking = bool(found.pop("preserve_thinking", conversation.preserve_thinking))
    if (budget := found.pop("think_budget", None)) is not None:
        conversation.think_budget = int(budget)
    if "system" in found:
        conversation.set_system(found.pop("system"))
    values.system(conversation, "")
    if found:  # tools, the context
        say(f"its other settings count only from the start: glmrun chat --persona {rest}")


def _multiline(conversation: Conversation, rest: str) -> None:
    line = values.line(conversation)
    line.multiline = values.on("/multiline", rest) if rest else not line.multiline
    say("Enter begins a new line, Alt+Enter sends" if line.multiline else "Enter sends, Alt+Enter begins a new line")


@dataclass(frozen=True)
class Command:
    """completes   what may follow: these words, or the kind of it: file, session, model"""

    run: Callable[[Conversation, str], None]
    usage: str
    help: str
    completes: tuple[str, ...] | str = ()


_ON_OFF = ("on", "off")
_SETTABLE = (*SETTINGS, *values.OTHERS)
COMMANDS = {
    "help": Command(_help, "/help [NAME|all|keys]", "what there is", ("keys", "all")),
    "clear": Command(_clear, "/clear", "begin a new conversation, keep the system prompt"),
    "regen": Command(_regen, "/regen", "answer the last message again"),
    "undo": Command(_undo, "/undo [N]", "take back the last message and its answer, or the last N"),
    "edit": Command(_edit, "/edit", "take the last message back into the line, to change it"),
    "system": Command(values.system, "/system [TEXT|none]", "show or set the system prompt"),
    "think": Command(
        values.think, "/think [on|off|N|show|fold|hide|keep|forget]", "think first, at most N tokens; show it; keep it in prompts",
        ("on", "off", *get_args(Thinking), "keep", "forget"),
    ),
    "set": Command(
        values.set_value, "/set [NAME [VALUE|none]]", f"show or set {', '.join(_SETTABLE)}", _SETTABLE
    ),
    "show": Command(values.show, "/show [NAME]", "what is in force: model, context, settings and where each comes from"),
    "stats": Command(values.stats, "/stats [on|off]", "this session's counts; the line after each answer", _ON_OFF),
    "tools": Command(_tools, "/tools [auto|ask|never]", "what the model can call; whether calls are carried out", APPROVE),
    "context": Command(_context, "/context", "how full the context is"),
    "compact": Command(compact, "/compact [N]", "have the model summarize all but the last exchange, or the last N"),
    "read": Command(_read, "/read [FILE|none]", "put files into the next message, as @FILE in it does; take them back", "file"),
    "sessions": Command(
        saving.list_sessions, "/sessions [WORDS|rm ID]", "list the saved conversations, or those with words; delete one", ("rm",)
    ),
    "rename": Command(saving.rename, "/rename [TITLE]", "give the conversation a title; without one the model finds it"),
    "load": Command(saving.load, "/load ID|FILE", "go on with a saved conversation", "session"),
    "save": Command(saving.save, "/save FILE [--force]", "write a copy that /load reads; --force replaces a file", "file"),
    "export": Command(saving.export_to, "/export FILE [--force]", "write it as Markdown (.md) or JSON (.json)", "file"),
    "copy": Command(saving.copy, "/copy [code]", "the last answer, or its last code block, to the clipboard", ("code",)),
    "model": Command(_model, "/model [NAME]", "show or change the model", "model"),
    "prompt": Command(
        _prompt, "/prompt [NAME KEY=VALUE...]", "a prompt that you keep, into the line; else what the model is given to read",
        "prompt",
    ),
    "persona": Command(_persona, "/persona NAME", "take a persona's system prompt and settings"),
    "multiline": Command(_multiline, "/multiline [on|off]", "let Enter begin a new line and Alt+Enter send", _ON_OFF),
    "bye": Command(_leave, "/bye", "leave"),
}  # fmt: skip
_ALIASES = {
    "exit": "bye", "quit": "bye", "q": "bye", "?": "help", "new": "clear", "reset": "clear", "retry": "regen", "backtrack": "undo",
    "file": "read", "add": "read", "editor": "edit", "tokens": "context", "usage": "context", "reasoning": "think",
    "system-prompt": "system", "settings": "show", "multiline-mode": "multiline", "resume": "load",
}  # fmt: skip
