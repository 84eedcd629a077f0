"""Blocks of Markdown as lines of styled text, no wider than the terminal. What is copied from the screen reads well: no padding
to the right, no frames, code at the margin and whole.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, chop_cells
from rich.text import Text

from glmrun.terminal.highlight import Highlighter
from glmrun.terminal.markdown import Block, siblings

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console
_NARROWEST = 10  # cells that text gets, however deep it is nested
_STYLES = {"strong": "bold", "em": "italic", "s": "strike", "a": "underline", "code": "bold cyan"}
_HEADINGS = {"h1": "bold underline", "h2": "bold", "h3": "bold italic"}

# Between words of most languages there is a space; Chinese and Japanese may be broken before almost any character.
_CJK = "\u2e80-\u303f\u3041-\u9fff\uf900-\ufaff\uff01-\uff60\U00020000-\U0003fffd"
_OPENING, _CLOSING = "「『（【《〈〔［｛“‘", "、。，．！？；：」』）】》〉〕］｝”’…ー々"
_LABEL = re.compile(r"\s*\S(?:\S| (?! ))*\s{2,}")  # words, and a gap behind them
_CELL_END = re.compile(r"(?<!\\)\|")
_UNIT = re.compile(rf"[{_OPENING}]*(?:[{_CJK}]|[^\s{_CJK}]+)[{_CLOSING}]*\s*|\s+")


def wrap(text: Text, width: int) -> list[Text]:
    """The text in lines of at most `width` cells, broken between words, or within one that is wider than a line."""
    lines = []
    for line in text.split("\n", allow_blank=True):
        line.expand_tabs(4)
        for piece in line.divide(_breaks(line.plain, width)):
            piece.rstrip()
            lines.append(piece)
    return lines


def folded(text: str, width: int) -> str:
    """A text for people in lines of at most `width` cells; what a line cannot hold goes on behind its label or its indent.

    Behind a label that would take more than half of the width the gap is two blanks.
    """
    lines = []
    for line in text.expandtabs(4).split("\n"):
        label = _LABEL.match(line)
        if label and cell_len(label[0]) > width // 2 and cell_len(line) > width:
            line = f"{label[0].rstrip()}  {line[len(label[0]) :]}"
            label = _LABEL.match(line)
        indent = cell_len(label[0]) if label and cell_len(label[0]) <= width // 2 else len(line) - len(line.lstrip())
        indent = min(indent, width // 2)
        first, *rest = wrap(Text(line), width)
        lines.append(first.plain)
        if rest:
            behind = wrap(Text(line[len(first.plain) :].lstrip()), width - indent)
            lines += [" " * indent + piece.plain for piece in behind]
    return "\n".join(lines)


def _breaks(line: str, width: int) -> list[int]:
    places, column = [], 0
    for unit in _UNIT.finditer(line):
        word, cells = unit[0], cell_len(unit[0].rstrip())
        if column and column + cells > width:
            places.append(unit.start())
            column = 0
        if cells > width:
            *before, word = chop_cells(word, width)
            at = unit.start()
            for piece in before:
                at += len(piece)
                places.append(at)
            column = 0
        column += cell_len(word)
    return places


class Layout:
    """Lays out the blocks of one text, in order."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        self._highlighter = Highlighter("")

    def finished(self, block: Block, width: int) -> list[Text]:
        """A block that will not change. Lines of code are as long as they are: the terminal folds them and copies them whole."""
        if block.code is None:
            return self._spaced(block, self._elements(block.tokens, block.lines, width))
        if block.language is None:
            self._highlighter = Highlighter(block.opens or "")
            return self._spaced(block, [Text(block.code, "dim")])
        line = self._highlighter.add(block.code)
        line.expand_tabs(4)
        return self._spaced(block, [line])

    def open(self, block: Block, width: int) -> list[Text]:
        """A block as far as it is there."""
        if block.code is not None and block.language is not None:
            return wrap(self._highlighter.peek(block.code), width)
        if block.code is not None:
            return self._spaced(block, wrap(Text(block.code, "dim"), width))
        return self._spaced(block, self._elements(block.tokens, block.lines, width))

    @staticmethod
    def _spaced(block: Block, lines: list[Text]) -> list[Text]:
        return [Text(""), *lines] if block.blank_before else lines

    def _elements(self, tokens: "Sequence[Token]", source: Sequence[str], width: int) -> list[Text]:
        """Elements below each other, with an empty line where there is one in the source."""
        lines: list[Text] = []
        width = max(width, _NARROWEST)
        for element in siblings(tokens):
            start = (element[0].map or [0])[0]
            if lines and start and not source[start - 1].strip(" \t>"):
                lines.append(Text(""))
            lines += self._element(element, source, width)
        return lines

    def _element(self, element: "list[Token]", source: Sequence[str], width: int) -> list[Text]:
        first, inside = element[0], element[1:-1]
        match first.type:
            case "paragraph_open":
                return wrap(_inline(inside[0]), width)
            case "heading_open":
                return wrap(_inline(inside[0], _HEADINGS.get(first.tag, "italic")), width)
            case "fence" | "code_block":
                return list(_code(first, width))
            case "formula":
                return wrap(Text(first.content), width)
            case "hr":
                return [Text("─" * min(width, 40), "dim")]
            case "blockquote_open":
                return _indented(self._elements(inside, source, width - 2), "▌ ", "▌ ")
            case "bullet_list_open" | "ordered_list_open":
                lines: list[Text] = []
                for number, item in enumerate(siblings(inside), int(first.attrs.get("start", 1))):
                    marker = "• " if first.type == "bullet_list_open" else f"{number}. "
                    start = (item[0].map or [0])[0]
                    if lines and start and not source[start - 1].strip(" \t>"):
                        lines.append(Text(""))
                    own = self._elements(item[1:-1], source, width - len(marker) - 1) or [Text("")]
                    lines += _indented(own, f" {marker}", " " * (len(marker) + 1))
                return lines
            case "table_open":
                start, end = first.map or [0, 0]
                return self._table(inside, source[start:end], width)
            case _:
                return wrap(Text(first.content), width)

    def _table(self, tokens: "Sequence[Token]", source: Sequence[str], width: int) -> list[Text]:
        """Columns; if even their longest words do not fit side by side, each row as a list of `heading: value`.

        A row with more cells than the heading (a | that should have been \\|) would lose some: such a table stays as it is written.
        """
        from rich import box
        from rich.table import Table

        rows: list[list[Text]] = []
        justify = []
        for token, following in zip(tokens, [*tokens[1:], None], strict=True):
            if token.type == "tr_open":
                rows.append([])
            elif token.type in ("th_open", "td_open") and following is not None:
                rows[-1].append(_inline(following, "bold" if token.type == "th_open" else ""))
                if token.type == "th_open":
                    justify.append(str(token.attrs.get("style", "")).removeprefix("text-align:"))
        heading, *body = rows
        if any(len(_CELL_END.findall(line.strip().strip("|"))) >= len(heading) for line in source):
            return wrap(Text("\n".join(source)), width)
        longest = [max(cell_len(word) for row in rows for word in ["", *row[i].plain.split()]) for i in range(len(heading))]
        room = width - 3 * (len(longest) - 1)
        if sum(longest) > room and body:
            lines: list[Text] = []
            for row in body:
                lines += [Text("")] if lines else []
                for name, cell in zip(heading, row, strict=True):
                    lines += wrap(Text.assemble(name, ": ", cell), width)
            return lines
        whole = [max(row[i].cell_len for row in rows) for i in range(len(heading))]
        most = next((most for most in range(width, 0, -1) if sum(_fitted(longest, whole, most)) <= room), 1)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, border_style="dim", header_style="")
        for name, side, own in zip(heading, justify, _fitted(longest, whole, most), strict=True):
            aligned: Any = side if side in ("left", "center", "right") else "left"
            table.add_column(name, justify=aligned, width=own, overflow="fold")
        for row in body:
            table.add_row(*row)
        options = self._console.options.update(width=width, height=None)
        drawn = []
        for segments in self._console.render_lines(table, options, pad=False):
            line = Text.assemble(*[(segment.text, segment.style or "") for segment in segments])
            line.rstrip()
            drawn.append(line)
        return drawn


def _fitted(longest: list[int], whole: list[int], most: int) -> list[int]:
    """Widths of columns that take `most` at most, their longest word at least, and no more than their longest cell."""
    return [max(word, min(cell, most), 1) for word, cell in zip(longest, whole, strict=True)]


def _code(token: "Token", width: int) -> Iterator[Text]:
    """A whole code block inside of a list or a quotation: it is indented, so its lines are folded here."""
    language = token.info.strip().partition(" ")[0]
    highlighter = Highlighter(language)
    if token.markup:
        yield Text(f"{token.markup}{token.info.strip()}", "dim")
    for line in token.content.removesuffix("\n").split("\n"):
        yield from wrap(highlighter.add(line), width)
    if token.markup:
        yield Text(token.markup, "dim")


def _inline(token: "Token", style: str = "") -> Text:
    """Running text with its emphasis, code and links."""
    text, styles = Text(""), [style]
    for part in token.children or []:
        if part.nesting > 0:
            styles.append(_STYLES.get(part.tag, ""))
        elif part.nesting < 0:
            styles.pop()
        elif part.type == "hardbreak":
            text.append("\n")
        else:
            text.append(part.content, " ".join([*styles, _STYLES["code"] if part.type == "code_inline" else ""]).strip())
    return text


def _indented(lines: list[Text], first: str, others: str) -> list[Text]:
    indented = [Text.assemble((others if i else first, "dim"), line) for i, line in enumerate(lines)]
    for line in indented:
        line.rstrip()
    return indented
