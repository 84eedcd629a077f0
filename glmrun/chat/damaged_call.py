"""Damaged tool calls: what was written with tags missing, moved or doubled is read in the way that needs the fewest repairs.

All readings of the text are followed at once, piece by piece, as a spelling checker follows words: a tag may be missing or
superfluous, or stand in the place of another, and each repair has a price. Words keep their order and belong to a declared name, a
key, a value, or to the text that is shown. So no reading loses a value, and none calls what is not declared.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from glmrun.chat.call_body import keys_of

_TAG = re.compile("(</?(?:tool_call|arg_key|arg_value|think)>)")
_ARGUMENT_TAGS = ("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_QUOTED = ["<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>"]
_FOLLOWS = {  # state: (the tag that follows, the state behind it)
    "text": ("<tool_call>", "name"),
    "pairs": ("<arg_key>", "key"),
    "behind key": ("</arg_key>", "before value"),
    "before value": ("<arg_value>", "value"),
    "value": ("</arg_value>", "pairs"),
}
_MISSING = _SUPERFLUOUS = 1.0
_WRONG = 1.2  # a tag in place of another
_DATA = 0.01  # a tag inside a value
_EDGE = 1.5  # a tag at the beginning or the end of a value
_END_AS_DATA = 1.5  # </arg_value> inside a value, though what ends a value follows
_SWALLOWED = 2.1  # a declared key inside a value, outside quoted calls
_QUOTED_OPEN = 1.1  # a value that ends inside a call that it quotes
_SHOWN = 0.3  # words between calls
_LEFT = 2.2  # words between pairs
_ODD_KEY = _LACKING = _NO_VALUE = 1.0  # a key that is not declared, a required one that is missing, one without a value
_CUT_OFF = 1.2
_SAID = 0.9  # a call whose name was said, without <tool_call>
_UNKNOWN = 2.7  # a call of nothing that is declared
_FIRST_VALUE, _PIECES_OF_PAIR = 8, 8  # of a call as the format writes it, its opening tag included
_READINGS, _PRICE, _TAGS = 60, 3.0, 4000  # kept at once, beyond the cheapest, in one text

Event = tuple[str, Any]  # ("text", words), ("tag", "</think>"), ("call", (name, [(key, raw value)])) or ("cut off", "")


@dataclass(frozen=True, slots=True)
class _Reading:
    """One way to read the text up to here; places are numbers of pieces."""

    price: float = 0.0
    state: str = "text"  # one of _FOLLOWS, "name", "key", or "unknown": in a call of nothing that is declared
    name: str = ""
    pairs: tuple[tuple[str, int, int, bool], ...] = ()  # key, begin and end of its value, whether a tag ended it
    key: str = ""
    start: int = 0  # of the value, or of the call that is not declared
    end: int = 0  # of the value
    depth: int = 0  # calls that the value quotes
    events: tuple | None = None  # (the earlier ones, the last)

    def to(self, state: str, price: float = 0.0, **changed: Any) -> "_Reading":
        return replace(self, state=state, price=self.price + price, **changed)

    def saying(self, kind: str, what: Any, price: float = 0.0) -> "_Reading":
        return replace(self, events=(self.events, (kind, what)), price=self.price + price)


def read_damaged(
    text: str, declared: Mapping[str, dict], said: str = "", cut_off: bool = False, begun: tuple[str, Sequence[str]] | None = None
) -> list[Event]:
    """The cheapest reading of a text that begins with a damaged call and goes to the end of generation.

    declared   {function name: JSON schema of its parameters}
    said       a declared name that was shown already in front of the text
    cut_off    whether generation ended before the model was done: then no tag is missing at the end
    begun      (name, keys) of a call that was given out up to where the last key's value begins; all of it is written as the
               format says. Then that call is the first, or the answer was cut off
    """
    pieces = _TAG.split(text)
    if len(pieces) > 2 * _TAGS:
        return [("cut off", "")] if begun else [("text", " ".join(piece.strip() for piece in pieces[::2] if piece.strip()))]
    if begun:
        name, keys = begun
        start = _FIRST_VALUE + _PIECES_OF_PAIR * (len(keys) - 1)
        before = zip(keys[:-1], range(_FIRST_VALUE, start, _PIECES_OF_PAIR), strict=True)
        pairs = tuple((key, at, at + 1, True) for key, at in before)
        reading = _Reading(state="value", name=name, pairs=pairs, key=keys[-1], start=start, end=start)
        return _Reader(pieces, declared, cut_off).events([reading], start)
    readings = [_Reading(), *([_Reading(price=_SAID, state="pairs", name=said)] if said else [])]
    return _Reader(pieces, declared, cut_off).events(readings)


class _Reader:
    """The steps from reading to reading. pieces are words and tags in turn; those of odd number are tags."""

    def __init__(self, pieces: Sequence[str], declared: Mapping[str, dict], cut_off: bool) -> None:
        self._pieces, self._declared = pieces, declared
        self._cut_off_at = len(pieces) - 2 if cut_off else -1  # the last tag
        self._keys = {name: keys_of(schema) for name, schema in declared.items()}

    def events(self, readings: list[_Reading], start: int = 0) -> list[Event]:
        """What the cheapest reading says; the given ones stand in front of piece `start`."""
        for i in range(start, len(self._pieces)):
            step = self._tag if i % 2 else self._words
            with_missing = [repaired for reading in readings for repaired in self._missing(reading, i)]
            readings = self._best([after for reading in with_missing for after in step(reading, i)], i)
        ends = [end for reading in readings for end in self._ends(reading)]
        said, events = min(ends, key=lambda reading: reading.price).events, list[Event]()
        while said:
            said, (kind, what) = said
            events.append((kind, self._call(*what) if kind == "call" else what))
        return events[::-1]

    def _call(self, name: str, pairs: Sequence[tuple[str, int, int, bool]]) -> tuple[str, list[tuple[str, str]]]:
        values = [(key, "".join(self._pieces[start:end]), closed) for key, start, end, closed in pairs]
        return name, [(key, value if closed else value.rstrip("\n")) for key, value, closed in values]

    @staticmethod
    def _best(readings: list[_Reading], i: int) -> list[_Reading]:
        cheapest: dict[tuple, _Reading] = {}
        for reading in sorted(readings, key=lambda each: each.price):
            same = (reading.state, reading.name, reading.key, frozenset(pair[0] for pair in reading.pairs))
            cheapest.setdefault(
                (*same, *((reading.start, reading.end > i, reading.depth) if reading.state == "value" else ())), reading
            )
        kept = list(cheapest.values())[:_READINGS]
        return [reading for reading in kept if reading.price <= kept[0].price + _PRICE]

    def _missing(self, reading: _Reading, i: int) -> Iterator[_Reading]:
        """The reading, and it behind tags that are missing in front of piece i."""
        yield reading
        if i > self._cut_off_at >= 0:
            return
        if reading.state == "pairs":
            yield from self._missing(self._closed(reading, _MISSING), i)
        if reading.state == "value" and i % 2 and i != self._cut_off_at:
            yield from self._missing(self._value_ended(reading, False, _MISSING), i)
        elif reading.state in _FOLLOWS and reading.state != "value":
            yield from self._missing(reading.to(_FOLLOWS[reading.state][1], _MISSING, start=i, end=i), i)

    def _given(self, reading: _Reading) -> set[str]:
        return {pair[0] for pair in reading.pairs}

    def _lacking(self, reading: _Reading) -> set[str]:
        """Declared keys that were not given yet."""
        return self._keys.get(reading.name, set()) - self._given(reading) - {reading.key}

    def _closed(self, reading: _Reading, price: float) -> _Reading:
        """Behind the end of a call."""
        required = self._declared[reading.name].get("required")
        lacks = isinstance(required, list) and not self._given(reading) >= {key for key in required if isinstance(key, str)}
        call = reading.saying("call", (reading.name, reading.pairs), price + _LACKING * lacks)
        return call.to("text", name="", pairs=(), key="")

    def _value_ended(self, reading: _Reading, closed: bool, price: float) -> _Reading:
        last = next((j for j in range(reading.end - 1, reading.start - 1, -1) if self._pieces[j].strip()), 0)
        pair = (reading.key, reading.start, reading.end, closed)
        price += _EDGE * (last % 2) + _QUOTED_OPEN * reading.depth
        return reading.to("pairs", price, pairs=(*reading.pairs, pair), key="", depth=0)

    def _words(self, reading: _Reading, i: int) -> Iterator[_Reading]:
        words, text = self._pieces[i].strip(), self._pieces[i]
        missing = self._lacking(reading)
        if reading.state == "value":
            key = words in missing and self._pieces[i + 1 : i + 2] in (["</arg_key>"], ["<arg_value>"])
            swallowed = key and not reading.depth and self._pieces[i - 1] != "<arg_key>"
            end = i + 1 if words or reading.end == i else reading.end  # white space behind a superfluous tag is superfluous
            yield reading.to("value", _SWALLOWED * swallowed, end=end)
        elif reading.state == "unknown" or not words:
            yield reading.saying("text", text) if reading.state == "text" and text else reading
        elif reading.state == "text":
            yield reading.saying("text", text, _SHOWN)
        elif reading.state == "name":
            yield from self._named(reading, words, i)
        elif reading.state == "pairs":
            yield reading.saying("text", text, _LEFT)
        elif reading.state == "key" and words in missing:
            yield reading.to("behind key", key=words)
        elif reading.state == "key":
            yield reading.saying("text", text, _LEFT)
            if words not in self._given(reading):
                yield reading.to("behind key", _ODD_KEY, key=words)

    def _named(self, reading: _Reading, words: str, i: int) -> Iterator[_Reading]:
        """Words where a name is expected: the name, perhaps with words in front or with the first key behind it."""
        name = words.split()[-1]
        if name in self._declared:
            before = words.removesuffix(name)
            yield (reading.saying("text", before, _SHOWN) if before else reading).to("pairs", name=name)
        for name, keys in self._keys.items():
            key = words.removeprefix(name).strip()
            if words.startswith(name) and key in keys:
                yield reading.to("behind key", _MISSING, name=name, key=key)
        yield reading.to("unknown", _UNKNOWN if i + 1 < len(self._pieces) else 0.0, start=i)

    def _tag(self, reading: _Reading, i: int) -> Iterator[_Reading]:
        tag, state = self._pieces[i], reading.state
        wanted, behind = _FOLLOWS.get(state, ("", ""))
        if state == "unknown":
            yield reading
            if tag == "</tool_call>":
                words = " ".join(piece.strip() for piece in self._pieces[reading.start : i] if not _TAG.fullmatch(piece) and piece)
                yield reading.saying("text", words).to("text")
            return
        if state == "text" and tag.endswith("think>"):
            yield reading.saying("tag", tag)
            return
        if tag == wanted or (wanted in _ARGUMENT_TAGS and tag in _ARGUMENT_TAGS):
            price = 0 if tag == wanted else _WRONG
            yield self._value_ended(reading, True, price) if state == "value" else reading.to(behind, price, start=i + 1, end=i + 1)
        if state == "pairs" and tag == "</tool_call>":
            yield self._closed(reading, 0.0)
        if state in ("behind key", "before value") and tag in ("<arg_key>", "</tool_call>"):
            dropped = reading.to("key", _NO_VALUE, key="")
            yield dropped if tag == "<arg_key>" else self._closed(dropped, 0.0)
        if state == "value":
            yield from self._data(reading, i)
        else:
            yield reading.to(state, _SUPERFLUOUS)

    def _data(self, reading: _Reading, i: int) -> Iterator[_Reading]:
        """A tag inside a value: data, or superfluous at one of its ends."""
        tag, begun = self._pieces[i], bool("".join(self._pieces[reading.start : i]).strip())
        price = _DATA if begun else _DATA + _EDGE
        quoted = self._before(i, 1) == "<tool_call>" and self._pieces[i - 1].strip()
        if not reading.depth and tag == "<arg_key>" and not quoted and self._pieces[i + 1].strip() in self._lacking(reading):
            price += _SWALLOWED
        if not reading.depth and tag == "</arg_value>" and self._behind(i) in ("<arg_key>", "</tool_call>", ""):
            price += _END_AS_DATA
        depth = reading.depth
        if tag == "</tool_call>" and self._before(i, 1) != "<tool_call>":
            depth = max(depth - 1, 0)
        elif i - 6 >= reading.start and [self._before(i, n) for n in (3, 2, 1, 0)] == _QUOTED and self._pieces[i - 5].strip():
            depth += 1
        yield reading.to("value", price, end=i + 1, depth=depth)
        yield reading.to("value", _SUPERFLUOUS, **({} if begun else {"start": i + 1, "end": i + 1}))

    def _before(self, i: int, n: int) -> str:
        """The tag that many tags before piece i."""
        return self._pieces[i - 2 * n] if i >= 2 * n else ""

    def _behind(self, i: int) -> str:
        """The tag that follows tag i, "" at the end; a space if words stand between."""
        return " " if self._pieces[i + 1].strip() else self._pieces[i + 2] if i + 2 < len(self._pieces) else ""

    def _ends(self, reading: _Reading) -> Iterator[_Reading]:
        """What the end of generation makes of a reading: a call that may have been cut off is not carried out."""
        if reading.state == "text":
            yield reading
            return
        whole = (
            reading.state == "pairs"
            and self._cut_off_at < 0
            and (reading.pairs[-1][3] if reading.pairs else self._is_whole_name(reading.name))
        )
        required = self._declared.get(reading.name, {}).get("required")
        if whole and (not isinstance(required, list) or self._given(reading) >= {key for key in required if isinstance(key, str)}):
            yield self._closed(reading, _MISSING)
        price = _CUT_OFF / 2 if self._cut_off_at >= 0 else 0.95 if reading.state == "name" else _CUT_OFF
        yield reading.saying("cut off", "", price)

    def _is_whole_name(self, name: str) -> bool:
        return not any(other != name and other.startswith(name) for other in self._declared)
