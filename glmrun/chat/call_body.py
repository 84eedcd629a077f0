"""Where a tool call and its values end: the one place that decides which tags are the call's and which are data.

A value ends at </arg_value> only where <arg_key>, </tool_call> or the end follows; every other tag inside it is data. A whole call
that a value quotes keeps its own closing tags. A body that is not written as the format says is damaged: damaged_call.py reads it
when all of it is there.
"""

from collections.abc import Mapping
from typing import Any

from glmrun.chat.tool_call import begins_json, read_json

_QUOTED = ["<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>"]


class CallBody:
    """All that stands behind one <tool_call>, as it comes.

    said      a declared name that was said in front of the call, if its <tool_call> may be missing
    damaged   whether it is known to be damaged
    """

    def __init__(self, said: str = "", damaged: bool = False) -> None:
        self.said, self.is_damaged = said, damaged
        self.opening = "" if damaged else "<tool_call>"
        self.has_tags = False
        self._json = False
        self.name = ""
        self.pairs: list[tuple[str, str]] = []  # (key, raw value)
        self._pieces: list[str] = []  # all of it, as it was written
        self._since: list[str] = []  # the text behind the last tag
        self._state = "name"  # or "key", "behind key", "value", or "behind value": behind a </arg_value> that may be data
        self.key, self._value = "", [""]
        self.holds_tags = False  # a value that ended does
        self._quoted: list[str] = []  # the last tags that are data, and whether words follow the first
        self._named = False
        self._depth = 0  # calls that the open value quotes

    @property
    def begins_json(self) -> bool:
        """Whether it is a call in JSON: tags are data until the JSON is whole."""
        if not (self._json or self.has_tags):
            self._json = begins_json("".join(self._since))
        return self._json

    def call(self) -> tuple[str, Any]:
        """(name, [(key, raw value)] or arguments) of a call that ended; no name if its JSON is not whole."""
        return (read_json(self.text()) or ("", {})) if self._json else (self.name, self.pairs)

    def text(self) -> str:
        """All of it, as it was written."""
        return "".join(self._pieces)

    @property
    def in_first_text(self) -> bool:
        """Whether a value is open and no tag was found in it yet."""
        return self._state == "value" and not self._quoted and not self.is_damaged

    @property
    def last_text(self) -> str:
        """The text behind the last tag."""
        return "".join(self._since)

    def add(self, text: str) -> None:
        """Text between two tags."""
        self._pieces.append(text)
        self._since.append(text)

    def add_tag(self, tag: str) -> bool:
        """Take a tag; True if it ends the call (it is not kept then)."""
        json, self.has_tags = self.begins_json, True
        text, self._since = "".join(self._since), []
        if json:
            if tag == "</tool_call>" and self.call()[0]:
                return True
        elif not self.is_damaged and self._step(tag, text):
            return True
        self._pieces.append(tag)
        return False

    def _step(self, tag: str, text: str) -> bool:
        words = text.split()
        if self._state == "name" and len(words) == 1 and tag in ("<arg_key>", "</tool_call>"):
            self.name, self._state = words[0], "key"
            return tag == "</tool_call>"
        if self._state == "key" and words and tag == "</arg_key>":
            self.key, self._state = text.strip(), "behind key"
        elif self._state == "behind key" and not words and tag == "<arg_value>":
            self._state, self._value, self._quoted, self._depth = "value", [], [], 0
        elif self._state == "behind value" and not (words or self._depth) and tag in ("<arg_key>", "</tool_call>"):
            self.pairs.append((self.key, "".join(self._value)))
            self.holds_tags = self.holds_tags or len(self._quoted) > 1
            self._state = "key"
            return tag == "</tool_call>"
        elif self._state in ("value", "behind value"):
            self._value += ["</arg_value>" * (self._state == "behind value"), text]
            self._take_data(tag, bool(words))
        else:
            self.is_damaged = True
        return False

    def _take_data(self, tag: str, behind_words: bool) -> None:
        if self._quoted[-1:] == ["<tool_call>"]:
            self._named = behind_words
        if tag == "</tool_call>" and self._quoted[-1:] != ["<tool_call>"]:
            self._depth = max(self._depth - 1, 0)
        self._quoted = [*self._quoted[-3:], tag]
        self._depth += self._quoted == _QUOTED and self._named
        self._state = "behind value" if tag == "</arg_value>" else "value"
        if tag != "</arg_value>":
            self._value.append(tag)

    def is_sound(self, declared: Mapping[str, dict]) -> bool:
        """Whether a call that ended is as declared: all that is required is there, and no value swallowed the next pair."""
        if self.name not in declared:
            return False
        given = {key for key, _ in self.pairs}
        required = declared[self.name].get("required")
        if isinstance(required, list) and not all(key in given for key in required if isinstance(key, str)):
            return False
        if len(given) < len(self.pairs) and any("<tool_call>" in value for _, value in self.pairs):
            return False  # the second value of a key may be the next call's
        missing = keys_of(declared[self.name]) - given
        return not any(_swallows(value, missing) for _, value in self.pairs if missing and "<arg_value>" in value)


def keys_of(schema: Mapping) -> set[str]:
    """The parameters that a function declares."""
    properties = schema.get("properties")
    return set(properties) if isinstance(properties, dict) else set()


def _swallows(value: str, missing: set[str]) -> bool:
    """Whether a pair with one of these keys stands in a value that is no whole quotation: a </arg_value> was forgotten."""
    depth, balanced = 0, True
    for piece in value.replace("</arg_value>", "<arg_value>/").split("<arg_value>")[1:]:
        depth += -1 if piece.startswith("/") else 1
        balanced = balanced and depth >= 0
    if balanced and not depth:
        return False
    before = (part.rpartition(">")[2] for part in value.replace("</arg_key>", "<arg_value>").split("<arg_value>")[:-1])
    return any(text.strip() in missing for text in before)
