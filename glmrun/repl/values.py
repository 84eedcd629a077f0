"""The slash commands that set and show how answers are made and shown: set, show, system, think, stats."""

from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from glmrun.chat.answer import Answer
from glmrun.engine.sampling import PRESETS, Sampler
from glmrun.repl.conversation import SETTINGS, Conversation, Typing
from glmrun.terminal.answer import Thinking, counted, show_thinking
from glmrun.terminal.console import note, say
from glmrun.terminal.sizes import size_of
from quant.errors import UserError

_PEERS_NAMES = {
    "temperature": "temp", "num-predict": "max-tokens", "n-predict": "max-tokens", "num-ctx": "context", "ctx": "context",
    "parameters": "settings",
}  # fmt: skip
OTHERS = ("context", "preset", "format", "vi", "history")  # of /set


def set_value(conversation: Conversation, rest: str) -> None:
    name, _, text = rest.removeprefix("parameter ").partition(" ")
    name, text = name.replace("_", "-"), text.strip()
    name = _PEERS_NAMES.get(name, name)
    if name in _SWITCHES:
        _SWITCHES[name](conversation, text)
        return
    if name and name not in SETTINGS:
        raise UserError(f"/set NAME VALUE, where NAME is one of {', '.join([*SETTINGS, *OTHERS])}")
    if name and text == "none":
        conversation.settings.pop(SETTINGS[name][0], None)
    elif text:
        _set_number(conversation, name, text)
    say("\n".join(_in_force(conversation, (name,) if name else SETTINGS)))


def _set_number(conversation: Conversation, name: str, text: str) -> None:
    argument, kind = SETTINGS[name]
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f"{name} takes {'a whole number' if kind is int else 'a number'}, or none, not {text!r}") from None
    if argument != "max_tokens":
        try:
            Sampler(**{argument: value})
        except UserError as why:  # with the name that it has here
            raise UserError(str(why).replace(argument, name, 1)) from None
    elif value < 1:
        raise UserError("max-tokens is at least 1")
    conversation.settings[argument] = value
    conversation.origins[argument] = "/set"


def _in_force(conversation: Conversation, names: dict[str, tuple[str, type]] | tuple[str, ...]) -> list[str]:
    """`  temp            0.7   the model file`: values, and where each comes from."""
    advice = getattr(conversation.model, "advice", None)  # a server has its own, and keeps it to itself
    lines = []
    for name in names:
        argument, _ = SETTINGS[name]
        if argument in conversation.settings:
            value, origin = str(conversation.settings[argument]), conversation.origins.get(argument, "given at the start")
        elif argument == "max_tokens":
            value, origin = "-", "no limit"
        elif argument == "seed":
            value, origin = "-", "another one each time"
        elif advice is None:
            value, origin = "-", "as the server decides"
        else:
            value = f"{advice.get(argument, getattr(Sampler, argument)):g}"
            origin = "the model file" if argument in advice else "default"
        lines.append(f"  {name:<14}  {value:<6}  {origin}")
    return lines


def _set_context(conversation: Conversation, text: str) -> None:
    model = conversation.model
    if text:
        size = size_of(text)
        if conversation.surface.open_model is None or not isinstance(model.path, Path):
            raise UserError("this model's context cannot be changed: the server decides about it")
        if size > model.n_ctx_train:
            raise UserError(f"this model takes at most {model.n_ctx_train:,} tokens, not {size:,}")
        if (used := conversation.used()) > size:
            raise UserError(f"the conversation has {used:,} tokens already; /compact shortens it")
        conversation.change_model(conversation.surface.open_model(str(model.path), ctx=size))
    again = "; the conversation is read again with the next message" if text and conversation.messages else ""
    say(f"  context  {conversation.model.n_ctx:,} of at most {conversation.model.n_ctx_train:,} tokens{again}")


def take_preset(conversation: Conversation, name: str) -> dict[str, float]:
    """Put the makers' settings of a name in force, and return them. Raises UserError."""
    if name not in PRESETS:
        raise UserError(f"/set preset takes {', '.join(PRESETS)}" + (f", not {name!r}" if name else ""))
    conversation.settings |= PRESETS[name]
    conversation.origins |= dict.fromkeys(PRESETS[name], f"preset {name}")
    if name == "agent":
        conversation.preserve_thinking = True
    return PRESETS[name]


def _set_preset(conversation: Conversation, name: str) -> None:
    take_preset(conversation, name)
    say("\n".join(_in_force(conversation, SETTINGS)))


def _set_format(conversation: Conversation, text: str) -> None:
    if text not in ("json", "text", ""):
        raise UserError("/set format takes json or text")
    if text == "json" and conversation.tools is not None:
        raise UserError("a JSON answer and tools exclude each other; start the chat without --tools")
    if text:
        conversation.settings.pop("json_schema", None)
    if text == "json":
        conversation.settings["json_schema"] = {"type": "object"}
    say("answers are " + ("JSON objects" if "json_schema" in conversation.settings else "as the model writes them"))


def _set_vi(conversation: Conversation, text: str) -> None:
    typing = line(conversation)
    if text:
        typing.vi = on("/set vi", text)
    say(f"keys as in {'vi' if typing.vi else 'emacs'}")


def _set_history(conversation: Conversation, text: str) -> None:
    typing = line(conversation)
    if text:
        typing.history = conversation.kept.saving = on("/set history", text)
    if text == "off":
        conversation.close()
    say("messages and the conversation are " + ("remembered" if typing.history else "remembered no longer; what was stays on disk"))


def show(conversation: Conversation, rest: str) -> None:
    c, rest = conversation, _PEERS_NAMES.get(rest.replace("_", "-"), rest.replace("_", "-"))
    if rest in SETTINGS:
        say("\n".join(_in_force(c, (rest,))))
        return
    session = c.kept.session.id if c.kept.session else "nothing is saved yet"
    limit = "" if c.think_budget is None else f", at most {counted(c.think_budget, 'token')}"
    shown = {"fold": "thinking is folded into a line", "show": "thinking is shown", "hide": "thinking is hidden"}
    earlier = "kept in the prompt" if c.preserve_thinking else "left out of the prompt"
    pairs = {
        "model": str(c.model.path),
        "context": f"{c.used():,} of {c.model.n_ctx:,} tokens; this model takes {c.model.n_ctx_train:,}",
        "threads": str(c.model.n_threads or "the server's"),
        "system": c.system or "-",
        "thinking": f"on{limit}" if c.thinking else "off",
        "shown": shown[c.surface.show_thinking],
        "earlier": f"the thinking of earlier answers is {earlier}",
        "files": ", ".join(map(str, c.attached)) or "-",
        "format": "JSON objects" if "json_schema" in c.settings else "text",
        "session": session + (", with its cache" if c.kept.session and c.kept.keep_cache else ""),
    }  # fmt: skip
    if rest == "settings":
        say("\n".join(_in_force(c, SETTINGS)))
        return
    if rest and rest not in pairs:
        raise UserError(f"/show takes one of {', '.join([*pairs, 'settings', *SETTINGS])}, or nothing")
    lines = [f"  {name:<14}  {value}" for name, value in pairs.items() if rest in ("", name)]
    say("\n".join(lines + ([] if rest else _in_force(c, SETTINGS))))


def system(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.set_system(None if rest == "none" else rest)
    say(f"system prompt: {conversation.system}" if conversation.system else "no system prompt; /system TEXT sets one")


def think(conversation: Conversation, rest: str) -> None:
    name = "thinking"
    if rest in ("on", "off"):
        conversation.thinking, conversation.think_budget = rest == "on", None
    elif rest in ("keep", "forget"):
        conversation.preserve_thinking, name = rest == "keep", "earlier"
    elif rest in get_args(Thinking):
        conversation.surface.show_thinking, name = cast(Thinking, rest), "shown"
        if rest == "show" and conversation.messages:
            show_last_thinking(conversation)
    elif rest:
        budget = whole(rest, "/think takes on or off, show, fold or hide, keep or forget, or a number of tokens", least=0)
        conversation.thinking, conversation.think_budget = True, budget
    show(conversation, name)


def show_last_thinking(conversation: Conversation) -> None:
    """Print the thinking behind the last answer, once."""
    thinking = next((m.get("reasoning_content", "") for m in reversed(conversation.messages) if m["role"] == "assistant"), "")
    last = conversation.last
    if thinking and thinking == conversation.surface.shown:
        note("the thinking is shown above")
        return
    conversation.surface.shown = thinking
    show_thinking(last if last is not None and last.reasoning == thinking else Answer(reasoning=thinking))


def stats(conversation: Conversation, rest: str) -> None:
    if rest:
        conversation.surface.show_stats = on("/stats", rest)
    totals = conversation.totals
    speed = f", {totals.tokens / totals.seconds:.1f} tok/s" if totals.seconds > 0 else ""
    state = "on" if conversation.surface.show_stats else "off"
    say(f"{counted(totals.answers, 'answer')}, {counted(totals.tokens, 'token')}{speed}; the line after each answer is {state}")


def whole(text: str, what: str, least: int = 1) -> int:
    """A whole number; raises UserError that begins with what is expected."""
    if not (text.isascii() and text.isdigit() and least <= int(text) <= 1 << 31):
        raise UserError(f"{what}, not {text!r}")
    return int(text)


def on(name: str, text: str) -> bool:
    """Whether a switch is to be on; raises UserError that names it."""
    if text not in ("on", "off"):
        raise UserError(f"{name} takes on or off, not {text!r}")
    return text == "on"


def line(conversation: Conversation) -> Typing:
    """The line editor; raises UserError in a pipe."""
    if conversation.surface.typing is None:
        raise UserError("that needs a terminal to type in")
    return conversation.surface.typing


_SWITCHES: dict[str, Callable[[Conversation, str], None]] = {
    "context": _set_context,
    "preset": _set_preset,
    "format": _set_format,
    "noformat": lambda conversation, _: _set_format(conversation, "text"),
    "vi": _set_vi,
    "history": _set_history,
    "nohistory": lambda conversation, _: _set_history(conversation, "off"),
    "system": system,
    "settings": lambda conversation, _: show(conversation, "settings"),
    "think": lambda conversation, text: think(conversation, text or "on"),
    "nothink": lambda conversation, _: think(conversation, "off"),
    "stats": stats,
    "verbose": lambda conversation, _: stats(conversation, "on"),
    "quiet": lambda conversation, _: stats(conversation, "off"),
}
