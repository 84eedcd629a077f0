"""Generated tokens to what a reader sees: thinking, answer and tool calls, as they come.

The model writes  thinking</think>answer<tool_call>...</tool_call>  and ends its turn; the opening <think> stands in the prompt.
Tags are found in the text, so it makes no difference whether they are tokens of their own or spelled out, nor how the text is cut.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmrun.chat.call_body import CallBody
from glmrun.chat.chunk import CallPiece
from glmrun.chat.damaged_call import read_damaged
from glmrun.chat.growing_call import GrowingCall
from glmrun.chat.tokenizer import Tokenizer
from glmrun.chat.tool_call import call_of, declared_name, may_become_call, schemas

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_CALL_TAGS = ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_TAG = re.compile("|".join(TAGS))
_BEGUN_TAGS = frozenset(tag[:n] for tag in TAGS for n in range(1, len(tag)))
_LONGEST = max(map(len, TAGS))
_LONGEST_NAME = 256  # characters


@dataclass(frozen=True)
class Delta:
    """What was added: text of the answer, text of the thinking, whole tool calls in the shape of OpenAI's interface, and a piece of
    the call that is open now."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict] | None = None
    call_piece: CallPiece | None = None


class ChatStream:
    """Sorts one answer into thinking, text and tool calls; push() every token, then finish().

    tokenizer  of the tokens to be pushed; None where text is fed
    thinking   whether the prompt ended with <think>
    tools      the declarations that stood in the prompt; without any, tool-call tags are ordinary text
    continues  the prompt ended inside the answer: blank lines that come first belong to it

    Blank lines around the parts belong to the format and are left out; white space inside a part is kept. A call is given out when
    it is closed, and before that in pieces (growing_call.py). Where one is damaged, all that follows waits for the end of
    generation; what is no call then is shown without tags. A call that the end of generation cut off is dropped, unless only its
    closing tag is missing; if pieces of it were given out, they stay without an end.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, thinking: bool, tools: Sequence[Mapping] | None = None, continues: bool = False
    ) -> None:
        self._tokenizer, self._decoder = tokenizer, tokenizer.stream() if tokenizer else None
        self._declared = schemas(tools)
        self._state = "thinking" if thinking else "answer"  # or "call", or "between"
        self._held = ""  # the beginning of what may become a tag
        self._texts = {"thinking": _Part(), "answer": _Part()}
        self._texts["answer"].begun = continues
        self._calls: list[dict] = []
        self._body = CallBody()  # of the open call
        self._growing = GrowingCall(self._declared)  # it, as far as it can be given out
        self._before_call = self._state
        self._last = ""  # the end of what was said since the last call or the thinking
        self._between: list[str] = []  # behind a call in the thinking: more thinking if a </think> follows, else the answer

    @property
    def state(self) -> str:
        """Where the answer stands: thinking, answer or call (inside a tool call)."""
        return "answer" if self._state == "between" else self._state

    @property
    def has_begun_call(self) -> bool:
        """Whether pieces were given out of a call that is not closed."""
        return self._state == "call" and bool(self._growing.id)

    def push(self, token_id: int) -> Delta:
        """What this token adds; tokens that steer the model (end of text, roles) add nothing."""
        assert self._tokenizer is not None and self._decoder is not None
        if token_id in self._tokenizer.eog_ids:
            return Delta()
        if self._tokenizer.is_control(token_id) and self._tokenizer.text_of(token_id) not in TAGS:
            return Delta()
        return self.feed(self._decoder.push(token_id))

    def feed(self, text: str) -> Delta:
        """What this text adds: push() below the tokens."""
        self._sort(text)
        return replace(self._delta(), call_piece=self._growing.take() if self._state == "call" else None)

    def _sort(self, text: str) -> None:
        self._held += text
        while found := _TAG.search(self._held):
            self._take(self._held[: found.start()])
            self._held = self._held[found.end() :]
            self._take_tag(found[0])
        kept = next((n for n in range(min(_LONGEST, len(self._held)), 0, -1) if self._held[-n:] in _BEGUN_TAGS), 0)
        ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._take(ready)

    def finish(self, cut_off: bool = False) -> Delta:
        """What was held back until the end of generation, which may have come before the model was done."""
        deltas = [self.feed(self._decoder.flush() if self._decoder else "")]
        if self._state == "call":
            self._read_open_call(cut_off)
        self._take(self._held)
        self._held = ""
        self._texts["answer"].add("".join(self._between))
        self._between = []
        if self._state in ("answer", "between"):
            self._texts["answer"].release()
        deltas.append(self._delta())
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        return Delta("".join(delta.text for delta in deltas), "".join(delta.reasoning for delta in deltas), calls or None)

    def _delta(self) -> Delta:
        calls, self._calls = self._calls, []
        return Delta(self._texts["answer"].take(), self._texts["thinking"].take(), calls or None)

    def _take(self, text: str) -> None:
        if not text:
            return
        if self._state == "call":
            self._body.add(text)
            self._growing.add(self._body, text)
            if not self._body.has_tags and not self._body.begins_json and not may_become_call(self._body.text(), self._declared):
                self._give_back()
            return
        self._last = (self._last + text)[-_LONGEST_NAME:]
        if self._state == "between":
            self._between.append(text)
        else:
            self._texts[self._state].add(text)

    def _take_tag(self, tag: str) -> None:
        if self._state == "call":
            self._take_tag_in_call(tag)
        elif tag == "<tool_call>" and self._declared:
            self._open_call(CallBody(self._name_said()))
        elif self._declared and tag in _CALL_TAGS and self._may_be_call(tag):  # its <tool_call> was forgotten
            self._open_call(CallBody(self._name_said(tag), damaged=True))
            self._body.add_tag(tag)
        elif tag == "</tool_call>" and self._declared:
            pass  # closes nothing
        elif tag == "</think>":
            self._texts["thinking"].add("".join(self._between))
            self._state, self._between, self._last = "answer", [], ""  # a stray one in the answer changes nothing
        elif tag == "<think>" and self._state != "between" and not self._texts[self._state].begun:
            self._state = "thinking"  # said again though it stands in the prompt, or thinking although it should not
            self._texts["thinking"].begin_again()
        else:
            self._take(tag)

    def _name_said(self, tag: str = "") -> str:
        """The declared function whose name was said last, in front of </tool_call> on a line of its own; empty if there is none."""
        words = self._last.rpartition("\n")[2].split() if tag == "</tool_call>" else self._last.split()[-1:]
        return words[0] if len(words) == 1 and words[0] in self._declared else ""

    def _may_be_call(self, tag: str) -> bool:
        """Whether a tag outside a call belongs to one: behind a declared name, or where nothing was said before it."""
        return bool(self._name_said(tag)) or (tag != "</tool_call>" and not self._last.strip())

    def _open_call(self, body: CallBody) -> None:
        self._before_call, self._state, self._body, self._growing = self._state, "call", body, GrowingCall(self._declared)

    def _take_tag_in_call(self, tag: str) -> None:
        if self._body.has_tags or self._body.begins_json:
            if self._body.add_tag(tag):
                self._close_call()
            return
        words = self._body.text().split()
        declared = len(words) == 1 and words[0] in self._declared
        if tag == "<tool_call>" and not words:
            return  # said twice
        if tag in ("<think>", "</think>", "<tool_call>") and not declared:
            self._give_back()
            self._take_tag(tag)
        elif self._body.add_tag(tag):
            self._close_call()

    def _close_call(self) -> None:
        """Give out a call that ended as the format says; what is not as it was declared waits for the end, or is read otherwise."""
        body = self._body
        body.name = declared_name(body.name, self._declared)
        if body.begins_json or body.is_sound(self._declared):
            self._call(*body.call())
        elif body.name in self._declared:
            body.is_damaged = True
            body.add_tag("</tool_call>")
        else:
            found = read_damaged(f"<tool_call>{body.text()}</tool_call>", self._declared)
            self._call(*(found[0][1] if [kind for kind, _ in found] == ["call"] else body.call()))

    def _call(self, name: str, arguments: Any) -> None:
        self._calls.append(call_of(declared_name(name, self._declared), arguments, self._declared, self._growing.id))
        self._growing = GrowingCall(self._declared)
        self._last = ""
        before = self._before_call if self._state == "call" else self._state
        self._state = "answer" if before == "answer" else "between"
        self._texts["answer"].hold()

    def _read_open_call(self, cut_off: bool) -> None:
        """At the end of generation, what the open call may be."""
        body, self._state = self._body, self._before_call
        self._held = ""  # the beginning of the tag that is missing
        if body.begins_json:
            words, ended, rest = body.text().partition("</tool_call>")
            name, arguments = body.call()
            if declared_name(name, self._declared) in self._declared:
                self._call(name, arguments)
            elif ended:
                self._take(words)
                self._sort(rest)
            if self._state == "call":
                self._read_open_call(cut_off)
            elif not (name or ended):
                self._state = "call"
            return
        begun = (self._growing.name, self._growing.keys) if self._growing.id else None
        for kind, what in read_damaged(body.opening + body.text(), self._declared, body.said, cut_off, begun):
            if kind == "call":
                self._call(*what)
            elif kind == "text":
                self._take(what)
            elif kind == "tag":
                self._take_tag(what)
            else:
                self._state = "call"

    def _give_back(self) -> None:
        """It was no call: its words return to where they stood; a tag with nothing behind it is dropped."""
        text, self._state = self._body.text(), self._before_call
        if text.strip():
            self._take("<tool_call>" + text)


class _Part:
    """The thinking or the answer: begins with its first line that is not blank; white space waits for what follows it."""

    def __init__(self) -> None:
        self.begun = False
        self._ready: list[str] = []
        self._space = ""
        self._ends_with_call = False

    def add(self, text: str) -> None:
        text = self._space + text
        words = text.rstrip()
        self._space = text[len(words) :]
        if words and not self.begun:
            blank = len(words) - len(words.lstrip())
            words = words[words.rfind("\n", 0, blank) + 1 :]
        if words:
            self.begun, self._ends_with_call = True, False
            self._ready.append(words)

    def begin_again(self) -> None:
        """More of the same part after another one: on a new line."""
        self._space = "\n" if self.begun else ""

    def hold(self) -> None:
        """A tool call follows: white space up to the next word is shown only if there is one."""
        self._ends_with_call = True

    def release(self) -> None:
        """The end: white space that follows words belongs to them."""
        if self.begun and not self._ends_with_call:
            self._ready.append(self._space)
            self._space = ""

    def take(self) -> str:
        """What is ready and was not taken yet."""
        text, self._ready = "".join(self._ready), []
        return text
