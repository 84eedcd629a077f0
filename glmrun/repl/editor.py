"""The line that messages are typed into: history, several lines, pastes, completion and keys, with prompt_toolkit."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.filters import Condition, is_searching
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import ConditionalKeyBindings, KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.styles import Style

from glmrun.repl import sessions
from glmrun.repl.commands import COMMANDS, is_command
from glmrun.repl.conversation import Typing
from glmrun.repl.quotes import open_quotes
from glmrun.store import prompts
from glmrun.terminal.console import note
from glmrun.terminal.sanitize import one_line

if TYPE_CHECKING:
    from prompt_toolkit.formatted_text import AnyFormattedText

LONG_PASTE = 10, 1000  # lines, characters: from here on a paste is shown as a few words
_REMEMBERED = 1 << 16  # characters: a longer message is not written into the history
_MENTION = re.compile(r'(?<!\S)@(?P<quote>")?(?P<path>(?(quote)[^"\n]*|[^\s"]*))$')
_SHIFT_ENTER = ("\x1b[13;2u", "\x1b[27;2;13~")  # from terminals that tell it from Enter


class Editor:
    """Reads messages from a terminal.

    typing     what commands change about it
    toolbar    text of the bottom line
    actions    {key: what it does while nothing is being answered}; it runs above the line, which is drawn again afterwards
    is_new     whether an empty line should say what it is for
    pastes     what stands for long pastes in the line
    """

    def __init__(
        self,
        typing: Typing,
        history: Path | None,
        toolbar: "Callable[[], AnyFormattedText] | None" = None,
        actions: dict[str, Callable[[], None]] | None = None,
        is_new: Callable[[], bool] = lambda: False,
    ) -> None:
        self._typing, self.pastes = typing, _Pastes()
        for sequence in _SHIFT_ENTER:
            ANSI_SEQUENCES[sequence] = Keys.ControlJ
        menu = Condition(lambda: _menu_belongs(get_app().current_buffer.document))
        self._session: PromptSession[str] = PromptSession(
            history=_Remembering(history, typing, self.pastes) if history else InMemoryHistory(),
            key_bindings=self._keys(actions or {}),
            multiline=True,
            completer=_Completer(),
            complete_while_typing=menu,
            enable_history_search=~menu,  # Up finds what begins like the line; beside a menu it moves in that
            enable_suspend=True,
            tempfile_suffix=".md",
            bottom_toolbar=toolbar,
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}),
            reserve_space_for_menu=6,
            placeholder=lambda: [("ansibrightblack", _invitation())] if is_new() else "",
        )
        self.source = self._session.app.input

    def read(self) -> str:
        """The next message; raises EOFError at Ctrl-D and KeyboardInterrupt at Ctrl-C on an empty line."""
        self._session.editing_mode = EditingMode.VI if self._typing.vi else EditingMode.EMACS
        draft, self._typing.draft = self._typing.draft, ""
        self._typing.reading = True
        try:
            typed = self._session.prompt([("bold", ">>> ")], default=draft, prompt_continuation=_continuation)
        finally:
            self._typing.reading = False
        text = _as_utf8(self.pastes.expanded(typed))
        self.pastes.clear()
        return f" {text}" if text.startswith("/") and not typed.startswith("/") else text  # a pasted path is no command

    def _keys(self, actions: dict[str, Callable[[], None]]) -> ConditionalKeyBindings:
        keys = KeyBindings()

        def send_or_break(event: KeyPressEvent, send: bool) -> None:
            buffer = event.current_buffer
            before = buffer.document.text_before_cursor
            if send and before.endswith("\\") and not before.endswith("\\\\") and buffer.document.is_cursor_at_the_end:
                buffer.delete_before_cursor()
                buffer.insert_text("\n")
            elif send and not open_quotes(buffer.text):
                buffer.validate_and_handle()
            else:
                buffer.insert_text("\n")

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            send_or_break(event, send=not self._typing.multiline or is_command(event.current_buffer.text))

        @keys.add("escape", "enter")
        def _(event: KeyPressEvent) -> None:
            send_or_break(event, send=self._typing.multiline)

        @keys.add("c-j")
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c")
        def _(event: KeyPressEvent) -> None:
            if event.current_buffer.text or self._typing.edited is not None:
                event.current_buffer.append_to_history()  # Up brings it back
                event.current_buffer.reset()
                self._typing.edited = None
            else:
                event.app.exit(exception=KeyboardInterrupt())

        @keys.add(Keys.BracketedPaste)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text(self.pastes.shown(event.data))

        @keys.add("tab")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            found = list(_Completer().get_completions(buffer.document, CompleteEvent(completion_requested=True)))
            if len(found) == 1:  # it is taken; in a folder there is more
                buffer.complete_state = None
                buffer.apply_completion(found[0])
                buffer.start_completion()
            elif buffer.complete_state is not None:
                buffer.complete_next()
            else:
                buffer.start_completion(insert_common_part=True)

        @keys.add("backspace")
        def _(event: KeyPressEvent) -> None:
            before = event.current_buffer.document.text_before_cursor
            event.current_buffer.delete_before_cursor(self.pastes.length_at_end(before))

        @keys.add("c-x", "c-e")
        @keys.add("c-g")
        def _(event: KeyPressEvent) -> None:
            buffer = event.current_buffer
            buffer.document = Document(self.pastes.expanded(buffer.text))
            buffer.open_in_editor()

        for key, action in actions.items():
            keys.add(key)(lambda event, action=action: _above(action))
        return ConditionalKeyBindings(keys, ~is_searching)  # Ctrl+R has its own Enter


class _Pastes:
    """Long pastes by the words that stand for them in the line."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """What a paste looks like in the line: itself, or [pasted 84 lines]."""
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        n_lines = text.count("\n") + (not text.endswith("\n"))
        if n_lines < LONG_PASTE[0] and len(text) < LONG_PASTE[1]:
            return text
        what = f"pasted {n_lines:,} lines" if n_lines > 1 else f"pasted {len(text):,} characters"
        words = next(words for n in range(1, 1 << 30) if (words := f"[{what}{f', {n}' if n > 1 else ''}]") not in self._texts)
        self._texts[words] = text
        return words

    def expanded(self, text: str) -> str:
        """A line with the pastes in it."""
        if not self._texts:
            return text
        return re.sub("|".join(map(re.escape, self._texts)), lambda found: self._texts[found[0]], text)

    def length_at_end(self, text: str) -> int:
        """Length of the words for a paste that a text ends with, else 1: what is deleted at once."""
        return next((len(words) for words in self._texts if text.endswith(words)), 1)

    def clear(self) -> None:
        self._texts.clear()


class _Remembering(FileHistory):
    """Earlier messages in a file, with their pastes; a full disk must not end a conversation."""

    def __init__(self, path: Path, typing: Typing, pastes: _Pastes) -> None:
        self._typing, self._pastes = typing, pastes
        super().__init__(str(path))

    def append_string(self, string: str) -> None:
        History.append_string(self, _as_utf8(self._pastes.expanded(string)))

    def store_string(self, string: str) -> None:
        if not self._typing.history or len(string) > _REMEMBERED:
            return
        try:
            super().store_string(string)
        except OSError as why:
            note(f"{self.filename!s}: {why.strerror}; this message is not remembered")


class _Completer(Completer):
    """Commands at the beginning, what may follow them, and files behind @."""

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        before = document.text_before_cursor
        if before.startswith("/") and "\n" not in before:
            name, space, rest = before[1:].partition(" ")
            yield from _arguments(name, rest) if space else _commands(name)
        elif mention := _MENTION.search(before):
            yield from _files(mention["path"], len(mention[0]) - 1, quotes='"')


def _commands(begun: str) -> Iterator[Completion]:
    for name, command in COMMANDS.items():
        if name.startswith(begun):
            yield Completion(f"/{name}", -len(begun) - 1, display_meta=command.help)


def _arguments(name: str, begun: str) -> Iterator[Completion]:
    kinds = COMMANDS[name].completes if name in COMMANDS else ()
    if kinds == "file":
        yield from _files(begun, len(begun))
        return
    for word, meaning in _known(kinds):
        if word.casefold().startswith(begun.casefold()):
            yield Completion(word, -len(begun), display=one_line(word), display_meta=one_line(meaning))


def _known(kinds: tuple[str, ...] | str) -> Iterable[tuple[str, str]]:
    if kinds == "session":
        return [(path.stem, saved.title()) for path, saved in sessions.listed(20)]
    if kinds == "prompt":
        return prompts.listed()
    if kinds == "model":
        from glmrun.store.local import local_models

        return [("nano", ""), *((model.name, "") for model in local_models() if model.kind != "checkpoint")]
    return [(word, "") for word in kinds]


def _files(begun: str, n_replaced: int, quotes: str = "") -> Iterator[Completion]:
    """Files and folders whose path goes on from what was begun; quotes go around a path with white space in it."""
    folder, _, start = begun.rpartition("/")
    folder += "/" if "/" in begun else ""
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    for entry in entries:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start) or not entry.name.isprintable():
            continue
        is_folder = False
        with contextlib.suppress(OSError):
            is_folder = entry.is_dir()
        path = folder + entry.name + ("/" if is_folder else "")
        text = f"{quotes}{path}{'' if is_folder else quotes}" if quotes and " " in path else path
        yield Completion(text, -n_replaced, display=one_line(entry.name + ("/" if is_folder else "")))


def _menu_belongs(document: Document) -> bool:
    """Whether completions open by themselves here: for a command, its argument, or a file behind @."""
    before = document.text_before_cursor
    return (before.startswith("/") and "\n" not in before) or _MENTION.search(before) is not None


def _invitation() -> str:
    """What stands in the first line before anything is typed; never folded."""
    long, short = "Ask something, or /help", "Ask, or /help"
    return long if get_app().output.get_size().columns > len(f">>> {long}") else short


def _above(action: Callable[[], None]) -> Any:
    return run_in_terminal(action)


def _continuation(width: int, line: int, wraps: int) -> str:
    return "" if wraps else "... "


def _as_utf8(text: str) -> str:
    """Keys that were not UTF-8, which the terminal gives as half surrogate pairs, become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
