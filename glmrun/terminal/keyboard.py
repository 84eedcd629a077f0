"""The keyboard between two lines of a chat: keys run actions, answer a question, or grow a draft that nothing sends by itself."""

import os
import queue
import select
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from glmrun.terminal.interrupt import in_foreground, quiet_keyboard

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.key_binding import KeyPress

_ESCAPE_SECONDS = 0.1  # an Esc with nothing behind it for so long is the key, not the beginning of another one
_PASTES_ON, _PASTES_OFF = "\x1b[?2004h", "\x1b[?2004l"  # a paste comes in brackets: as one text, not as keys


class Keyboard:
    """Reads a terminal's keys while no line is being typed. Ctrl-C stays a signal.

    source    prompt_toolkit's input
    shown     what a paste looks like in the draft
    n_end     how many characters at a draft's end Backspace takes away at once
    draft     what was typed and pasted since it was last taken; Enter is a line break in it
    """

    def __init__(
        self, source: "Input", shown: Callable[[str], str] = lambda text: text, n_end: Callable[[str], int] = lambda text: 1
    ) -> None:
        self._source, self._shown, self._n_end = source, shown, n_end
        self.draft = ""
        self._actions: Mapping[str, Callable[[], None]] = {}
        self._answer: queue.SimpleQueue[str] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Read keys on a thread of its own; what the last line left unread comes first."""
        if not in_foreground():
            yield
            return
        from prompt_toolkit.input.typeahead import get_typeahead

        for press in get_typeahead(self._source):
            self._type(press)
        ended, end = os.pipe()
        listener = threading.Thread(target=self._listen, args=(ended,), name="keys", daemon=True)
        try:
            with quiet_keyboard():
                _send(_PASTES_ON)
                listener.start()
                try:
                    yield
                finally:
                    os.write(end, b".")
                    listener.join()
                    _send(_PASTES_OFF)
        finally:
            os.close(end)
            os.close(ended)

    @contextmanager
    def acting(self, actions: Mapping[str, Callable[[], None]]) -> Iterator[None]:
        """Run actions at their keys, named as prompt_toolkit names them ("escape", "c-o"), on the thread that reads the keys."""
        before, self._actions = self._actions, actions
        try:
            yield
        finally:
            self._actions = before

    def ask(self, question: str) -> str:
        """Ask on standard error; the key that is pressed then, as a character. What was typed before is no answer."""
        answer: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._answer = answer
        try:
            print(question, end="", file=sys.stderr, flush=True)
            return answer.get()
        except KeyboardInterrupt:
            print(file=sys.stderr, flush=True)  # what follows would overwrite the question
            raise
        finally:
            self._answer = None

    def take_draft(self) -> str:
        """The draft, which begins anew."""
        draft, self.draft = self.draft, ""
        return draft

    def _listen(self, ended: int) -> None:
        waiting = False  # for what belongs to an escape character
        while not self._source.closed:
            ready, _, _ = select.select([self._source.fileno(), ended], [], [], _ESCAPE_SECONDS if waiting else None)
            if ended in ready:
                break
            waiting = bool(ready)
            pressed = self._source.read_keys() if ready else self._source.flush_keys()
            for press in pressed:
                name = getattr(press.key, "value", press.key)
                alone = name != "escape" or (not ready and len(pressed) == 1)  # Alt+key begins with an escape, too
                if self._answer is not None and len(press.data) == 1 and alone:
                    self._answer.put(press.data)
                elif name in self._actions and alone:
                    self._actions[name]()
                else:
                    self._type(press)

    def _type(self, press: "KeyPress") -> None:
        """Let one key change the draft; keys that move about in a line do nothing to it."""
        from prompt_toolkit.keys import Keys

        key, draft = press.key, self.draft
        if key is Keys.BracketedPaste:
            self.draft += self._shown(press.data)
        elif key in (Keys.ControlM, Keys.ControlJ):
            self.draft += "\n"
        elif key is Keys.ControlI:
            self.draft += "\t"
        elif key is Keys.ControlH:
            self.draft = draft[: len(draft) - self._n_end(draft)] if draft else ""
        elif key is Keys.ControlU:
            self.draft = draft[: draft.rfind("\n") + 1]
        elif not isinstance(key, Keys):
            self.draft += key


def _send(codes: str) -> None:
    sys.stdout.write(codes)
    sys.stdout.flush()
