"""Tool calls and what came of them on standard error, as blocks that can be taken in at a glance."""

import json
import sys
from typing import Any

from glmrun.terminal.console import shows_codes
from glmrun.terminal.sanitize import visible
from glmrun.terminal.tail import window

_LINES, _CHARACTERS = 8, 500  # of a value or a result; the rest is counted


def show_tool_call(call: dict[str, Any]) -> None:
    """`● get_weather(city="Bonn", days=3)`; arguments that do not fit into the line stand below it, each on its own."""
    text, arguments = call_text(call), _arguments(call)
    if len(text) + 2 <= window(sys.stderr)[0] or arguments is None:
        _show("● ", visible(text), "bold")
        return
    _show("● ", visible(call["function"]["name"]), "bold")
    for key, value in arguments.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        _show("    ", f"{visible(key)}: {_shortened(shown)}", "")


def show_tool_output(text: str) -> None:
    """What a tool printed, below its call."""
    _show("  │ ", _shortened(text), "dim", "  │ ")


def show_tool_result(text: str, failed: bool = False) -> None:
    """`└ 21 °C`, or `✗ ValueError: no such city`, below its call."""
    _show("  ✗ " if failed else "  └ ", _shortened(text) or "(nothing)", "red" if failed else "dim")


def call_text(call: dict[str, Any]) -> str:
    """A call as Python would write it, its arguments cut short: `get_weather(city="Rome")`."""
    name, arguments = call["function"]["name"], _arguments(call)
    if arguments is None:
        return f"{name}({_brief(call['function']['arguments'])})"
    return f"{name}({_brief(', '.join(f'{key}={json.dumps(value, ensure_ascii=False)}' for key, value in arguments.items()))})"


def _arguments(call: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments by name; None if they are no JSON object."""
    try:
        arguments = json.loads(call["function"]["arguments"] or "{}")
    except ValueError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _shortened(text: str) -> str:
    """The first lines, harmless."""
    lines = visible(text).strip("\n").split("\n")
    more = len(lines) - _LINES
    note = [f"… {more:,} more line{'s' if more > 1 else ''}"] if more > 0 else []
    return "\n".join([*map(_brief, lines[:_LINES]), *note])


def _brief(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def _show(first: str, text: str, style: str, others: str = "") -> None:
    others = others or " " * len(first)
    if shows_codes(sys.stderr):
        from glmrun.terminal.screen import print_lines

        print_lines(sys.stderr, text, style, first, others)
    else:
        print("\n".join(f"{others if i else first}{line}" for i, line in enumerate(text.split("\n"))), file=sys.stderr, flush=True)
