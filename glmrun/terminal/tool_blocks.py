"""Tool calls and their results on standard error, as blocks that can be taken in at a glance."""

import json
import sys
from typing import Any

from glmrun.terminal.console import shows_codes
from glmrun.terminal.sanitize import visible
from glmrun.terminal.tail import window

_LINES = 8  # of a value or a result; the rest is counted


def show_tool_call(call: dict[str, Any]) -> None:
    """`● get_weather(city="Bonn", days=3)`; arguments that do not fit into the line stand below it, each on its own."""
    name, arguments = call["function"]["name"], call["function"]["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {"arguments": arguments}
    if not isinstance(arguments, dict):
        arguments = {"arguments": arguments}
    width = window(sys.stderr)[0]
    values = {visible(key): visible(json.dumps(value, ensure_ascii=False)) for key, value in arguments.items()}
    line = f"{visible(name)}({', '.join(f'{key}={value}' for key, value in values.items())})"
    if len(line) + 2 <= width:
        _show("● ", line, "bold")
        return
    _show("● ", visible(name), "bold")
    for key, value in arguments.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        _show("    ", f"{visible(key)}: {_shortened(visible(text))}", "")


def show_tool_result(text: str, failed: bool = False) -> None:
    """`└ 21 °C`, or `✗ ValueError: no such city` in red, below its call."""
    _show("  ✗ " if failed else "  └ ", _shortened(visible(text)) or "(nothing)", "red" if failed else "dim")


def _shortened(text: str) -> str:
    lines = text.strip("\n").split("\n")
    more = len(lines) - _LINES
    return "\n".join([*lines[:_LINES], *([f"… {more:,} more line{'s' if more > 1 else ''}"] if more > 0 else [])])


def _show(first: str, text: str, style: str) -> None:
    others = " " * len(first)
    if shows_codes(sys.stderr):
        from glmrun.terminal.screen import print_lines

        print_lines(sys.stderr, text, style, first, others)
    else:
        print("\n".join(f"{others if i else first}{line}" for i, line in enumerate(text.split("\n"))), file=sys.stderr, flush=True)
