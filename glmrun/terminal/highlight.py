"""Colours for code that comes a line at a time: those that the whole block would get, in time proportional to its length."""

from functools import cache
from typing import TYPE_CHECKING, Any

from rich.text import Text

if TYPE_CHECKING:
    from rich.syntax import ANSISyntaxTheme

_MAX_LINE = 2_000  # characters; a longer line stays plain
_MANY, _MOST = 10, 40  # lines looked at again for the sake of one: as few as that from a line at the margin on, as many at most


class Highlighter:
    """One code block; the language is what stands behind the fence. An unknown one has no colours."""

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._above: list[str] = []

    def add(self, line: str) -> Text:
        """The next line with its colours."""
        styled, fresh, indented = self._styled(line)
        self._above.append(line)
        if len(self._above) > _MANY:
            del self._above[:fresh]
        if len(self._above) > _MOST:
            del self._above[slice(indented) if indented else slice(1, _MOST // 2)]  # a long string or comment began in the first
        return styled

    def peek(self, line: str) -> Text:
        """The next line as far as it is there."""
        return self._styled(line)[0]

    def _styled(self, line: str) -> tuple[Text, int, int]:
        """(the line, the last line above it at the margin and outside of strings and comments, the last one outside)."""
        from pygments.token import Comment, String

        text = Text()
        if self._lexer is None or len(line) > _MAX_LINE:
            return text.append(line), 0, 0
        row = fresh = indented = 0
        for kind, value in self._lexer.get_tokens("\n".join([*self._above, line])):
            pieces = value.split("\n")
            for piece in pieces[1:]:
                row += 1
                if row < len(self._above) and not piece.strip() and kind not in String and kind not in Comment:
                    indented, fresh = row, row if self._above[row][:1].strip() else fresh
            if row == len(self._above):
                text.append(pieces[-1], _theme().get_style_for_token(kind))
        return text, fresh, indented


def _lexer(language: str) -> Any:
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False) if language else None
    except ClassNotFound:
        return None


@cache
def _theme() -> "ANSISyntaxTheme":
    """The terminal's own 16 colours, which suit its background."""
    from pygments.token import Error, Name, Number
    from rich.style import Style
    from rich.syntax import ANSI_LIGHT, ANSISyntaxTheme

    plain = {Name.Class: Style(color="green"), Name.Namespace: Style(color="cyan"), Error: Style()}
    normal = {kind: Style(color="blue") for kind in (Name.Tag, Number)}  # the bright ones are pale on white
    return ANSISyntaxTheme(ANSI_LIGHT | normal | plain)
