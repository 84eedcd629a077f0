"""Tool calls in the terminal: shown, asked for, carried out, their results on the way back to the model."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from glmrun.chat.tool_loop import MAX_ROUNDS
from glmrun.terminal.console import note, question
from glmrun.terminal.interrupt import ask_key, quiet_keyboard
from glmrun.terminal.tool_blocks import show_tool_call, show_tool_output, show_tool_result
from quant.errors import UserError

# Key -> what it says; Enter, Esc and Ctrl-D, and the end of the input, say no.
_ANSWERS = {"y": "yes", "Y": "yes", "a": "always", "A": "always"} | dict.fromkeys(("n", "N", "\r", "\n", "\x1b", "\x04", ""), "no")
TOO_MANY_ROUNDS = f"(stopped after {MAX_ROUNDS} rounds of tool calls without an answer)"


Approve = Literal["auto", "ask", "never"]  # whether a call is carried out: always, after a question, or never
APPROVE: tuple[Approve, ...] = get_args(Approve)


class ToolCalls:
    """Carries out the calls of answers with the functions of a file.

    ask     asks a question and gives the key that answers it
    draft   what is being typed while a function runs
    Raises UserError if the file offers none, or if it is to ask where nobody can be asked.
    """

    def __init__(self, path: Path, approve: Approve) -> None:
        from glmrun.chat.tools import Tools

        if approve == "ask" and not (sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()):
            raise UserError("nobody can be asked about tool calls here; say --approve auto or --approve never", "usage")
        self.tools, self.approve, self.ask = Tools(path), approve, ask_key
        self.draft: Callable[[], str] = str
        self._always: set[str] = set()  # functions that need no asking any more
        for why in self.tools.left_out:
            note(f"no tool: {why}")

    def __enter__(self) -> "ToolCalls":
        return self

    def __exit__(self, *_: object) -> None:
        self.tools.close()

    def results(self, calls: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
        """(a message with the result of each call, in order; whether the user stopped them with Ctrl-C)."""
        messages, stopped = [], False
        for call in calls:
            try:
                content = "error: the user stopped this call" if stopped else self._result(call)
            except KeyboardInterrupt:
                content, stopped = "error: the user stopped this call", True
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": content})
        return messages, stopped

    def _result(self, call: dict[str, Any]) -> str:
        show_tool_call(call)
        if not self._may_run(call):
            show_tool_result("not carried out", failed=True)
            return "error: the user did not allow this call"
        from glmrun.terminal.progress import waiting  # Rich, which --help does without

        with quiet_keyboard(), waiting(f"running {call['function']['name']}, Ctrl+C stops it", self.draft):
            result = self.tools.run(call)
        if result.printed.strip():
            show_tool_output(result.printed)
        show_tool_result(result.text, failed=not result.worked)
        return result.text

    def _may_run(self, call: dict[str, Any]) -> bool:
        name = call["function"]["name"]
        if self.approve != "ask" or name in self._always or name not in self.tools.names:
            return self.approve != "never"
        pressed = self.ask(question(f"  run it? y: yes, N: no, a: always {name} [y/N/a]"))
        while pressed not in _ANSWERS:
            pressed = self.ask("\n" + question(f"  press y, n or a, not {pressed!r} [y/N/a]"))
        said = _ANSWERS[pressed]
        print(said, file=sys.stderr, flush=True)
        if said == "always":
            self._always.add(name)
        return said != "no"
