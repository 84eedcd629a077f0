"""Where a tool call and its values end: the one place that decides which tags are the call's and which are data.

A value ends at </arg_value> only where <arg_key>, </tool_call> or the end follows; every other tag inside it is data. A whole call
that a value quotes keeps its own closing tags. Where the end of generation leaves a value open, a closing tag was forgotten: the
call then ended at the first place behind which nothing but other calls stands.
"""

import re
from collections.abc import Mapping

_FORGOTTEN_END = re.compile(r"\s*<arg_key>\s*([^<]*?)\s*(?:</arg_key>)?\s*<arg_value>")
_QUOTED = ("<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>")
_CALL_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")


class CallBody:
    """All that stands behind one <tool_call>, as it comes.

    declared   {function name: JSON schema of its parameters}
    """

    def __init__(self, declared: Mapping[str, dict]) -> None:
        self._declared = declared
        self._texts = [""]  # texts[i + 1] follows tags[i]
        self._tags: list[str] = []
        self._structural: list[bool] = []  # whether a tag is the call's own
        self._state = "outside"  # or "value", or "after": behind a </arg_value> that may be data
        self._depth = 0  # calls that the open value quotes
        self._ends: list[int] = []  # numbers of tags before which the call ended if nothing closes the open value

    @property
    def begins(self) -> str:
        """What stands before the first tag."""
        return self._texts[0]

    @property
    def has_tags(self) -> bool:
        """Whether any tag stands in it."""
        return bool(self._tags)

    @property
    def is_whole(self) -> bool:
        """Whether its last value, if it has any, was closed."""
        whole = not self._tags or self._tags[-1] == "</arg_value>"
        return self._state != "value" and whole and (not self._tags or not self._texts[-1].strip())

    def add(self, text: str) -> None:
        """Text between two tags."""
        self._texts[-1] += text

    def add_tag(self, tag: str) -> bool:
        """Take a tag; True if it ends the call (it is not kept then)."""
        text = self._texts[-1].strip()
        if self._state == "after":
            self._state = self._state_behind_value(tag, text)
        elif self._state == "outside" and text and self._tags[-1:] == ["</arg_key>"] and self._structural[-1]:
            self._state, self._depth, self._ends = "value", 0, []  # its <arg_value> was forgotten
        if self._state == "outside" and tag in ("</tool_call>", "<tool_call>"):
            return True
        number, own = len(self._tags), self._state == "outside"
        if own and tag == "<arg_value>":
            self._state, self._depth, self._ends = "value", 0, []
        elif not own:
            self._take_data(tag, number)
        self._tags.append(tag)
        self._structural.append(own and tag in _CALL_TAGS)
        self._texts.append("")
        return False

    def _state_behind_value(self, tag: str, text: str) -> str:
        """Whether the </arg_value> just read closes the value, now that the next tag is there."""
        ends = tag in ("<arg_key>", "</tool_call>") if not text else tag in ("</arg_key>", "<arg_value>") and text in self._keys()
        if ends and not self._depth:
            self._structural[-1] = True
            return "outside"
        return "value"

    def _take_data(self, tag: str, number: int) -> None:
        if tag == "</arg_value>":
            self._state = "after"
        elif (*self._tags[-3:], tag) == _QUOTED and self._texts[-3].strip():
            self._depth += 1
        elif tag == "<tool_call>" and self._tags[-1] == "</arg_value>" and not self._texts[-1].strip():
            self._ends.append(number)
        elif tag == "</tool_call>" and self._tags[-1] != "<tool_call>":
            self._ends.append(number)
            self._depth = max(self._depth - 1, 0)

    def cut(self) -> str | None:
        """At the end of generation, with the value still open: end the call where it should have ended and return what follows.

        None where there is no such place: the call was cut off.
        """
        for end in self._ends:
            rest = self._text_from(end)
            if not rest.removeprefix("</tool_call>").partition("<tool_call>")[0].replace("</tool_call>", "").strip():
                del self._tags[end:], self._structural[end:], self._texts[end + 1 :]
                if self._tags[-1] in ("</arg_value>", "</arg_key>") and not self._texts[-1].strip():
                    self._structural[-1] = True
                self._state = "outside"
                return rest
        return None

    def close(self) -> None:
        """The end follows: a </arg_value> that was read last closes its value."""
        if self._state == "after" and not self._texts[-1].strip():
            self._structural[-1], self._state = True, "outside"

    def text(self) -> str:
        """All of it, as it was written."""
        return self._texts[0] + self._text_from(0)

    def words(self) -> str:
        """All of it without the tags: what is shown of a body that cannot be understood."""
        return " ".join(text for text in self._texts if text.strip())

    def _text_from(self, number: int) -> str:
        return "".join(tag + text for tag, text in zip(self._tags[number:], self._texts[number + 1 :], strict=True))

    def _keys(self, name: str | None = None) -> Mapping:
        properties = self._declared.get(name or self.name_and_key()[0], {}).get("properties")
        return properties if isinstance(properties, dict) else {}

    def name_and_key(self) -> tuple[str, str]:
        """(function, first key if its <arg_key> was forgotten); a reading that is declared comes first; the name may be empty."""
        head = self._texts[0].strip()
        for name in sorted(self._declared, key=len, reverse=True):
            rest = head.removeprefix(name).strip()
            if head.startswith(name) and (not rest or (self._tags and rest in self._keys(name))):
                return name, rest
        words = head.split() if self._tags[:1] != ["</arg_key>"] or "\n" in head else []  # else a key whose function is missing
        return (words[0], " ".join(words[1:])) if words else ("", "")

    def left_over(self) -> str:
        """Words that are part of no pair, the name left out; a key without any value is not counted."""
        left: list[str] = []
        self._read(left)
        return " ".join(left)

    def pairs(self) -> list[tuple[str, str]]:
        """[(key, raw value)]; a key without any value is not one."""
        return self._read([])

    def _read(self, left: list[str]) -> list[tuple[str, str]]:
        pairs: list[tuple[str, str]] = []
        state, key, value = "outside", self.name_and_key()[1], ""
        for tag, text, own in zip(self._tags, self._texts[1:], self._structural, strict=True):
            if own and state == "outside" and key.strip() and tag not in ("</arg_key>", "<arg_value>"):
                left.append(key.strip())
            if not own:
                value += tag + text
            elif tag == "<arg_key>":
                self._keep(pairs, left, state, key, value.rstrip("\n"))
                state, key, value = "in key", text, ""
            elif tag == "</arg_key>" and state != "in value":
                state, value = "after key", text
            elif tag == "<arg_value>":
                state, value = "in value", text
            elif state == "after key" and not value.strip():
                pairs.append((key.strip(), ""))  # an <arg_value> that comes yet gives the value
            elif state != "outside":
                self._keep(pairs, left, "in value", key, value)
                state, key, value = "outside", text, ""
        self._keep(pairs, left, state, key, value)
        if state == "outside" and key.strip() and self._tags:
            left.append(key.strip())
        return pairs

    def _keep(self, pairs: list[tuple[str, str]], left: list[str], state: str, key: str, value: str) -> None:
        """Keep a pair; where its value swallowed the next ones, because its </arg_value> was forgotten, keep those as well."""
        key = key.strip()
        if not key or not (state == "in value" or (state == "after key" and value.strip())):
            left += [value.strip()] if value.strip() and state != "outside" else []
            return
        keys = self._keys().keys() - {key, *(known for known, _ in pairs)}
        if value.count("<arg_value>") > value.count("</arg_value>"):
            for found in _FORGOTTEN_END.finditer(value):
                if found[1] in keys:
                    pairs.append((key, value[: found.start()]))
                    self._keep(pairs, left, "in value", found[1], value[found.end() :])
                    return
        pairs.append((key, value))
