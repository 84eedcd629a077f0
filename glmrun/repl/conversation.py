"""A conversation in the terminal: its messages, how they are answered."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from glmrun.chat.answer import Answer
from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatModel, ChatRequest
from glmrun.chat.tool_loop import Rounds
from glmrun.repl.attachments import mentioned, read_text, with_files
from glmrun.repl.disk_rate import DiskRate
from glmrun.repl.kept import Kept, model_path
from glmrun.repl.tool_calls import TOO_MANY_ROUNDS, ToolCalls
from glmrun.terminal.answer import AnswerView, Thinking, bottom_parts, counted, finish_note, fitted, stats_line
from glmrun.terminal.console import note
from glmrun.terminal.interrupt import interruptible, quiet_keyboard
from glmrun.terminal.keyboard import Keyboard
from glmrun.terminal.tail import window
from glmrun.terminal.tool_blocks import show_tool_call
from quant.errors import UserError

# Name in /set -> (field of a request or setting of its sampling, type).
SETTINGS: dict[str, tuple[str, type]] = {
    "temp": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "min-p": ("min_p", float),
    "repeat-penalty": ("repeat_penalty", float),
    "seed": ("seed", int),
    "max-tokens": ("max_tokens", int),
}
_NO_ROOM = 0.9  # of the context: from here on it is said what can be done


@dataclass
class Typing:
    """What commands change about the line editor; in a pipe there is none."""

    vi: bool = False
    multiline: bool = False  # Enter begins a new line, Alt+Enter sends
    history: bool = True  # remember messages for the next start
    draft: str = ""  # what stands in the next line before anything is typed
    edited: int | None = None  # index of the message that the line replaces when it is sent
    reading: bool = False  # a line is being typed: all that was said is on disk


@dataclass
class Surface:
    """Where a conversation is shown, and what the program around it offers.

    open_model   opens another model by its name, or the same one with another context (ctx)
    get_ready    waits for what a model needs before it answers
    persona      the values of a persona, by its name
    keyboard     what is typed while no line is read
    shown        the thinking that was printed last
    """

    typing: Typing | None = None
    show_thinking: Thinking = "fold"
    show_stats: bool = True
    open_model: Callable[..., Any] | None = None
    get_ready: Callable[[Any], None] = lambda model: None
    persona: Callable[[str], dict[str, Any]] | None = None
    keyboard: Keyboard | None = None
    shown: str = ""


@dataclass
class Totals:
    """Of all answers of this run."""

    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0

    def add(self, stats: Stats) -> None:
        """Count an answer."""
        self.answers += 1
        self.tokens += stats.n_generated
        self.seconds += stats.generate_seconds


@dataclass
class Conversation:
    """Messages without the system prompt, which stands apart so that /clear keeps it, and how they are answered.

    settings   max_tokens, json_schema and sampling's, as ChatRequest.of() takes them
    origins    where a setting comes from
    attached   files that wait for the next message
    tools      what the model can call
    last       the last answer of this run
    """

    model: ChatModel
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    system: str | None = None
    thinking: bool = True
    preserve_thinking: bool = True
    think_budget: int | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    attached: list[Path] = field(default_factory=list)
    tools: ToolCalls | None = None
    last: Answer | None = None
    surface: Surface = field(default_factory=Surface)
    kept: Kept = field(default_factory=Kept)
    totals: Totals = field(default_factory=Totals)
    disk: DiskRate = field(default_factory=DiskRate)

    @property
    def model_name(self) -> str:
        """The model's name for people."""
        if isinstance(self.model.path, Path):
            return self.model.path.name
        name, _, server = str(self.model.path).rpartition(" at ")
        return f"{name.rsplit('/', 1)[-1]} at {server}"

    def request(self, *more: dict[str, Any]) -> ChatRequest:
        """What the conversation, and more messages, ask of the model."""
        return ChatRequest.of(
            [*self.all_messages(), *more],
            tools=self.tools.tools.declarations if self.tools is not None else None,
            thinking=self.thinking, clear_thinking=not self.preserve_thinking, think_budget=self.think_budget, **self.settings,
        )  # fmt: skip

    def say(self, text: str) -> Answer:
        """Send one message, with the files that it mentions or that wait, and show the answer.

        A message that the model refuses (UserError) is not kept. If it replaces an earlier one, that one and what followed go.
        """
        place = len(self.messages) if self.edited is None else self.edited
        files = self.attached + [path for path in mentioned(text) if path not in self.attached]
        contents = {path: read_text(path) for path in files}
        message = {"role": "user", "content": with_files(text, contents)}
        if files:
            message["typed"] = text
        replaced, self.messages[place:] = self.messages[place:], [message]
        try:
            chunks = self._chunks()
        except UserError:
            self.messages[place:] = replaced
            raise
        self.messages[place:] = replaced
        edited = self.edited
        self.cut(place)
        self._append(message)
        waiting, self.attached = self.attached, []
        for path, text in contents.items():
            note(f"+ {path}, {counted(len(text.splitlines()), 'line')}")
        try:
            return self._answer(chunks)
        except UserError:  # a server refuses only now
            if self.messages[-1] is message:
                self.cut(place)
                self._append(*replaced)
                self.attached, self.edited = waiting, edited
            raise

    def answer_again(self) -> Answer:
        """Another answer to the last message of the user; the one before stays if none comes."""
        place = self.last_question() + 1
        replaced = self.messages[place:]
        self.cut(place)
        try:
            return self._answer(self._chunks())
        finally:
            if len(self.messages) == place:
                self._append(*replaced)

    def take_back(self, count: int = 1) -> str:
        """Remove the last questions and all that followed; returns the first of them as it was typed."""
        place = self.last_question(count)
        text = self.messages[place].get("typed", self.messages[place]["content"])
        self.cut(place)
        return text

    def last_question(self, count: int = 1) -> int:
        """Index of the last message of the user, or of the last but count - 1; raises UserError if there are fewer."""
        places = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise UserError("nothing has been asked yet")
        if count > len(places):
            there = f"there {'is' if len(places) == 1 else 'are'} only {counted(len(places), 'exchange')}"
            raise UserError(f"{there}, not {count}; nothing has changed")
        return places[-count]

    def last_answer(self) -> dict[str, Any]:
        """The last message of the model; raises UserError if there is none."""
        for message in reversed(self.messages):
            if message["role"] == "assistant":
                return message
        raise UserError("nothing has been answered yet")

    def cut(self, keep: int) -> None:
        """Leave only the first `keep` messages."""
        self.edited = None
        if keep < len(self.messages):
            del self.messages[keep:]
            self._keep("cut", keep=keep)

    def all_messages(self) -> list[dict[str, Any]]:
        """The system prompt, if there is one, and the messages."""
        return ([] if self.system is None else [{"role": "system", "content": self.system}]) + self.messages

    def used(self, *more: dict[str, Any]) -> int:
        """Tokens of the conversation, as the next prompt will repeat it, and of more messages."""
        request = self.request(*more)
        return self.model.count_tokens(request) if request.messages else 0

    def bottom(self, used: int | None = None) -> list[tuple[str, str]]:
        """The model, how full the context is, how fast the last answer comes or came, the disk behind it, files: (style, text)."""
        stats = self.last.stats if self.last is not None else None
        parts = bottom_parts(self.model_name, self.used() if used is None else used, self.model.n_ctx, stats)
        parts += [("", f" · {rate}")] if (rate := self.disk.text()) else []
        parts += [] if self.thinking else [("", " · no thinking")]
        return parts + ([("", f" · +{counted(len(self.attached), 'file')}")] if self.attached else [])

    def bottom_line(self, used: int | None = None) -> str:
        """bottom() as a text that the window has room for."""
        return "".join(text for _, text in fitted(self.bottom(used), window(sys.stdout)[0]))

    @property
    def edited(self) -> int | None:
        """Index of the message that the next one replaces."""
        return self.surface.typing.edited if self.surface.typing is not None else None

    @edited.setter
    def edited(self, place: int | None) -> None:
        if self.surface.typing is not None:
            self.surface.typing.edited = place

    def _chunks(self) -> Iterator[Chunk]:
        with self._ways_out():
            return self.model.answer(self.request())

    @contextmanager
    def _ways_out(self) -> Iterator[None]:
        """A context that is too small for what is asked: the same error says what can be done here."""
        try:
            yield
        except UserError as why:
            if why.setting != "n_ctx":
                raise
            raise UserError(f"{why}: {self._ways()}", why.kind) from None

    def _answer(self, chunks: Iterator[Chunk]) -> Answer:
        """Show the answer, and carry out the calls in it until there is one without."""

        def keep(_: Answer, results: list[dict[str, Any]]) -> None:  # the answer itself is kept as soon as it has come
            self._append(*results)

        rounds = Rounds(self.tools.results if self.tools is not None else None, keep)
        for answer, these in zip(rounds, chain([chunks], iter(self._chunks, None)), strict=False):
            self.last = answer
            try:
                with self._view(answer, these, self.used()) as view:
                    for chunk in these:
                        view.feed(chunk)
                for call in answer.tool_calls if self.tools is None else ():  # tools show theirs when they carry it out
                    show_tool_call(call)
            finally:  # an interrupted answer is part of the conversation, as far as it came
                if answer.text or answer.reasoning or answer.tool_calls:
                    self._append(answer.message())
                    self.kept.save_cache(self.model)
            self._count(answer)
        if rounds.ending == "stopped":
            note("(stopped)")
        elif rounds.ending == "too many rounds":
            note(TOO_MANY_ROUNDS)
        return answer

    def aside(self, messages: list[dict[str, Any]], ask: dict[str, Any], max_tokens: int, way: str) -> Answer:
        """Show the answer to a message behind some of the conversation; neither becomes a part of it.

        Raises UserError, with the way out where the context is too small for it.
        """
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        settings = {name: value for name, value in self.settings.items() if name not in ("json_schema", "max_tokens")}
        request = ChatRequest.of([*first, *messages, ask], thinking=False, max_tokens=max_tokens, **settings)
        answer = Answer()
        try:
            chunks = self.model.answer(request)
        except UserError as why:
            raise UserError(f"{why}: {way}" if why.setting == "n_ctx" else str(why), why.kind) from None
        with self._view(answer, chunks, self.model.count_tokens(request)) as view:
            for chunk in chunks:
                view.feed(chunk)
        return answer

    def replace(self, messages: list[dict[str, Any]]) -> None:
        """Other messages in the place of these, in a journal of their own: the old one stays as it is."""
        self.kept.close()
        self.messages, self.last, self.edited = messages, None, None
        self._keep("message")

    @contextmanager
    def _view(self, answer: Answer, chunks: Iterator[Chunk], before: int) -> Iterator[AnswerView]:
        """What shows an answer to a prompt of `before` tokens, fed with its chunks; keys act on it meanwhile."""

        def footer(stats: Stats) -> str:
            return self.bottom_line(max(before, stats.n_prompt) + stats.n_generated)

        self.surface.get_ready(self.model)
        self.disk.begin(self.model)
        keyboard = self.surface.keyboard
        view = AnswerView(
            answer, self.surface.show_thinking, footer, hint="Ctrl+O shows all" if keyboard is not None else "",
            draft=(lambda: "") if keyboard is None else lambda: keyboard.draft,
        )  # fmt: skip
        try:
            with self._ways_out(), interruptible(self.model, chunks) as stop, quiet_keyboard(), closing(view):
                keys = {"escape": stop, "c-o": view.expand_thinking}
                with keyboard.acting(keys) if keyboard is not None else nullcontext():
                    yield view
        finally:
            self.disk.end()

    def _count(self, answer: Answer) -> None:
        stats, ending = answer.stats, finish_note(answer, self.model.n_ctx)
        used, size = self.used(), self.model.n_ctx
        if full := used >= _NO_ROOM * size and answer.finish_reason != "cancelled":
            ending = ending or f"{used:,} of {size:,} tokens of context used"
        elif ending:
            note(ending)
        if stats is not None:
            self.totals.add(stats)
            if self.surface.show_stats:
                note(stats_line(stats))
        if full:  # one line, at the end; nothing is cut off without a word
            note(f"{ending}: {self._ways()}")

    def _ways(self) -> str:
        """What can be done about a context that is nearly full, or too small for what is wanted."""
        size, most = self.model.n_ctx, self.model.n_ctx_train
        answered = any(message["role"] == "assistant" for message in self.messages)
        ways = [f"/read none takes {counted(len(self.attached), 'file')} back"] if self.attached else []
        ways += ["/compact shortens the conversation"] if answered else []
        if size < most and self.surface.open_model is not None:
            ways.append(f"/set context {min(2 * max(size, self.used()), most)} makes room")
        ways += ["/undo takes the last exchange back", "/clear starts over"] if answered else []
        return ", ".join(ways) or "nothing larger can be had here"

    def set_system(self, text: str | None) -> None:
        """Set or remove the system prompt."""
        self.system = text
        self._keep("system", text=text)

    def rename(self, title: str) -> None:
        """Give the journal a title."""
        self._keep("title", text=title)

    def start_over(self) -> None:
        """A new conversation with the same system prompt; the old one stays on disk."""
        self.kept.close()
        self.messages.clear()
        self.attached.clear()
        self.last, self.edited = None, None

    def resume(self, path: Path) -> None:
        """Go on with a saved conversation; one that stands outside our folder is copied, not changed. Raises UserError."""
        saved = self.kept.reopen(path)
        self.system, self.messages = saved.system, saved.messages
        self.attached.clear()
        self.last, self.edited = None, None
        if saved.model != model_path(self.model):
            self._keep("model", path=model_path(self.model))
        self.kept.load_cache(self.model)

    def change_model(self, model: ChatModel) -> None:
        """Go on with another model, which reads the conversation with the next message; the one before is closed."""
        if (close := getattr(self.model, "close", None)) is not None:
            close()
        self.model, self.kept.cache, self.last = model, None, None
        self._keep("model", path=model_path(model))

    def close(self) -> None:
        """Leave the conversation; what is on disk stays."""
        self.kept.close()

    def _append(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.messages.append(message)
            self._keep("message", message=message)

    def _keep(self, kind: str, **fields: Any) -> None:
        if self.kept.session is not None or self.messages:
            self.kept.write(self.model, self.system, self.messages, kind, **fields)
