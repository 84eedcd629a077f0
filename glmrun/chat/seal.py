"""Texts from outside, marked so that they cannot pass for control tokens once a template has mixed them with its own.

A mark is one character that occurs nowhere in the prompt. It is put inside every spelling of a special token in a text, so that the
template's own tokens are the only whole ones left; afterwards the marks are taken out again, and what they broke is plain text.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from quant.errors import UserError


class Seal:
    """Breaks the texts of special tokens; `pattern` finds the whole ones (one group, for split()).

    Tokens of a single character cannot be broken, so they are no special tokens here.
    """

    def __init__(self, special_texts: Iterable[str]) -> None:
        longest_first = sorted({text for text in special_texts if len(text) > 1}, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"((?!))")
        self._specials = longest_first
        self._longest = len(longest_first[0]) if longest_first else 0
        self._beginnings = {text[:n] for text in longest_first for n in range(1, len(text))}
        self._endings = {text[n:] for text in longest_first for n in range(1, len(text))}

    def apply(self, value: Any, mark: str) -> Any:
        """The same JSON-like value with every string in it sealed, keys included."""
        if isinstance(value, str):
            return self._apply_to_text(value, mark)
        if isinstance(value, dict):
            return {self.apply(key, mark): self.apply(item, mark) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.apply(item, mark) for item in value]
        return value

    def _apply_to_text(self, text: str, mark: str) -> str:
        """No special token is left whole in the text, nor can its ends become one together with their neighbours."""
        while self.pattern.search(text):  # again for those that overlapped
            text = self.pattern.sub(lambda found: found[0][0] + mark + found[0][1:], text)
        edges = range(1, min(self._longest, len(text) + 1))
        begins = any(text[:n] in self._endings for n in edges) or any(text in special for special in self._specials if text)
        ends = any(text[-n:] in self._beginnings for n in edges)
        return (mark if begins else "") + text + (mark if ends else "")


def unused_character(*values: Any) -> str:
    """A private-use character that occurs in none of these JSON-like values."""
    used = {character for value in values for text in _strings(value) for character in set(text)}
    for code in (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE)):
        if chr(code) not in used:
            return chr(code)
    raise UserError("the messages use every private-use character; glmrun needs one that they do not contain", "usage")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
