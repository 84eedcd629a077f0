"""The chat loop: a line editor in a terminal, plain lines in a pipe."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from glmrun.machine import state_folder
from glmrun.repl.commands import Leave, is_command, run_command
from glmrun.repl.conversation import Conversation, Typing
from glmrun.repl.flags import in_words
from glmrun.repl.quotes import open_quotes, without_quotes
from glmrun.repl.values import show, show_last_thinking
from glmrun.terminal.answer import draft_line, fitted
from glmrun.terminal.console import note, show_error
from glmrun.terminal.interrupt import quiet_keyboard
from glmrun.terminal.keyboard import Keyboard
from glmrun.terminal.tail import window
from quant.errors import UserError
from quant.text import decode_text

_TWICE_SECONDS = 2.0  # two Ctrl-C within this time on an empty line leave


def chat_in_terminal(conversation: Conversation) -> int:
    """Read messages with history and several lines, answer each; returns the exit code.

    What is typed meanwhile stands in the next line as a draft: only Enter pressed there sends it.
    """
    from glmrun.repl.editor import Editor

    conversation.surface.typing = typing = conversation.surface.typing or Typing()
    history = _history_path() if typing.history else None

    bottom: list[tuple[str, str]] = []

    def other_thinking() -> None:
        nonlocal bottom
        conversation.thinking = not conversation.thinking  # its limit stays
        show(conversation, "thinking")
        bottom = conversation.bottom()

    actions: dict[str, Callable[[], None]] = {"s-tab": other_thinking, "c-o": partial(show_last_thinking, conversation)}

    def toolbar() -> Any:
        changing = "" if typing.edited is None else "changing an earlier message, Ctrl+C leaves it · "
        return [("", changing), *fitted(bottom, window(sys.stdout)[0] - len(changing))]

    editor = Editor(typing, history, toolbar, actions, lambda: not conversation.messages)
    conversation.surface.keyboard = keyboard = Keyboard(editor.source, editor.pastes.shown, editor.pastes.length_at_end)
    if conversation.tools is not None:
        conversation.tools.ask, conversation.tools.draft = keyboard.ask, lambda: draft_line(keyboard.draft)
    interrupted = -_TWICE_SECONDS
    with quiet_keyboard():  # between the lines, too
        while True:
            bottom = conversation.bottom()
            typing.draft += keyboard.take_draft().rstrip("\n")  # the last Enter was meant to send it: it will, pressed again
            try:
                text = editor.read()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if time.monotonic() - interrupted < _TWICE_SECONDS:
                    return 130
                interrupted = time.monotonic()
                note("(Ctrl-C again, Ctrl-D or /bye leaves)")
                continue
            if text.strip() in ("exit", "quit"):  # nobody means the model
                return 0
            try:
                with keyboard.listening():
                    if is_command(text):
                        run_command(conversation, text.strip())
                    elif text.strip():
                        conversation.say(without_quotes(text))
            except Leave:
                return 0
            except UserError as why:
                show_error(in_words(why))
                typing.draft = "" if is_command(text) else editor.pastes.shown(text)
            except KeyboardInterrupt:  # pressed twice during an answer
                note("(stopped)")
            print(file=sys.stderr, flush=True)


def chat_in_pipe(conversation: Conversation, lines: Iterable[bytes]) -> int:
    """Take each line (or block in triple quotes) as a message; returns the exit code: 2 if a command could not be done.

    A message that the model refuses ends it.
    """
    code = 0
    try:
        for text in _messages(lines):
            if is_command(text):
                code = code if run_command(conversation, text.strip()) else 2
            elif text.strip() and conversation.say(without_quotes(text)).finish_reason == "cancelled":
                return 130
    except Leave:
        pass
    return code


def _messages(lines: Iterable[bytes]) -> Iterator[str]:
    block: list[str] = []
    for number, raw in enumerate(lines, 1):
        block.append(decode_text(raw, f"standard input, line {number},").rstrip("\r\n"))
        if not open_quotes("\n".join(block)):
            yield "\n".join(block)
            block.clear()
    if block:
        yield "\n".join(block)


def _history_path() -> Path | None:
    """The file of earlier messages, readable by its owner only; None if there can be none."""
    path = state_folder() / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    except OSError as why:
        note(f"{path}: {why.strerror}; messages are not remembered")
        return None
    return path


def interactive() -> bool:
    """Whether both ends are a terminal; otherwise lines are read as they come."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
