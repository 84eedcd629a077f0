"""A Markdown text that is still being written: which of its blocks are finished, and what stands open at its end.

Later lines can change only the last block of a Markdown text. So every block but the last is given out once, for good: items
of a list one by one, code line by line. Some rules are not CommonMark's, because a terminal shows a chat and no web page:
formulas stay as they are written, HTML and link definitions are text, and a line break within a paragraph is one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from glmrun.terminal.sanitize import VisibleStream, visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_DEEPEST = 18  # level of a list or quotation: an item's blocks are two deeper, and at 20 the parser stops
MAX_OPEN = 16_000  # characters of a block; a longer one is cut, so that the time a text takes is proportional to its length

# A line that may still become a rule, an item, a heading, part of a table, or the line under a heading.
_UNDECIDED = re.compile(r"[-=*_+#>|`~:$\\ \t]*(?:\d{1,9}[.)]?[ \t]*)?")
_FENCE = re.compile(r" {0,3}(?P<marker>`{3,}|~{3,})(?P<info>.*)")
_FORMULA = re.compile(
    r"\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\]|\$\$[^$]{1,1000}\$\$|\$(?=[^\s$])[^$\n]{0,1000}(?<=[^\s\\])\$(?!\d)", re.DOTALL
)
_DISPLAYED = {"$$": "$$", "\\[": "\\]"}
_ENDED_BY_BLANK = ("paragraph_open", "table_open", "blockquote_open", "formula")


@dataclass
class Block:
    """A piece of the text: the tokens of one block, or one line of a code block."""

    tokens: "list[Token]" = field(default_factory=list)
    code: str | None = None  # a line of code without its newline, or of a fence
    language: str | None = None  # of the code; None for a fence
    opens: str | None = None  # the language of the lines that follow a fence
    blank_before: bool = False
    lines: list[str] = field(default_factory=list)  # the text that was parsed
    line: int = 0  # where the block begins in it
    same_list: bool = False  # as the block before it


class MarkdownText:
    """Takes text in any pieces; gives out its blocks when nothing can change them any more."""

    def __init__(self) -> None:
        self._safe, self._text = VisibleStream(), ""  # not given out yet
        self._fence: re.Match[str] | None = None  # of the code block that is open
        self._blank = False  # whether a blank line came last before _text
        self._number: int | None = None  # of the list item that _text begins with

    def add(self, text: str) -> None:
        self._text += self._safe.push(text)

    def finished(self, end: bool = False) -> Iterator[Block]:
        """The blocks finished since the last call; at the end of the text, all that is left."""
        if end:
            self._text += self._safe.flush()
        while self._text:
            if self._fence is not None:
                yield from self._code_lines(end)
                if self._fence is not None:
                    return
                continue
            taken, blocks = self._take(end)
            if not taken:
                return
            yield from blocks
            self._text = self._text[taken:]

    def open(self) -> list[Block]:
        """The unfinished rest as it looks now; call finished() before."""
        head, newline, last = self._text.rpartition("\n")
        if self._fence is not None:
            hidden = not last or last.lstrip(" ").startswith(self._fence["marker"][0])
            return [] if hidden else [Block(code=visible(last), language=_language(self._fence))]
        text = head + newline + ("" if _UNDECIDED.fullmatch(last) else _closed(last))
        blocks = self._blocks(text)
        if blocks and blocks[-1].tokens and blocks[-1].tokens[0].type == "paragraph_open":
            lines = text.rstrip("\n").split("\n")[blocks[-1].line :]
            if len(lines) == 1 and lines[0].lstrip().startswith("|"):
                del blocks[-1]  # the head of a table, until the line below it tells
        return blocks

    # -- code blocks --------------------------------------------------------------------------------------------------

    def _code_lines(self, end: bool) -> Iterator[Block]:
        """The complete lines of the open code block, with the fence that closes it."""
        assert self._fence is not None
        marker, language = self._fence["marker"], _language(self._fence)
        closing = re.compile(rf" {{0,3}}{re.escape(marker[0])}{{{len(marker)},}}[ \t]*")
        indent = len(self._fence[0]) - len(self._fence[0].lstrip(" "))
        at = 0
        while self._fence is not None and at < len(self._text):
            stop = self._text.find("\n", at)
            if stop < 0:
                if not end and len(self._text) - at <= MAX_OPEN:
                    break
                stop = len(self._text)
            line, at = self._text[at:stop], stop + 1
            if closing.fullmatch(line):
                yield Block(code=line.strip())
                self._fence = None
            else:
                own = len(line) - len(line.lstrip(" "))
                yield Block(code=visible(line[min(indent, own) :]), language=language)
        self._text, self._blank = self._text[at:], False

    # -- all others ---------------------------------------------------------------------------------------------------

    def _take(self, end: bool) -> tuple[int, list[Block]]:
        """(how many characters are done with, the blocks that are finished in them)."""
        limit = len(self._text) if end else self._text.rfind("\n") + 1
        if limit > MAX_OPEN:
            limit, end = self._text.rfind("\n", 0, MAX_OPEN) + 1 or MAX_OPEN, False
        elif len(self._text) - limit > MAX_OPEN:
            limit = MAX_OPEN
        text = self._text[:limit]
        if limit == MAX_OPEN and "\n" not in text:
            return limit, [Block(code=visible(text), language="")]  # a line without end: as it is
        blocks = self._blocks(text)
        if not blocks:
            self._blank = self._blank or bool(text)
            return len(text), []
        offsets = [0]
        for line in text.split("\n"):
            offsets.append(offsets[-1] + len(line) + 1)
        for i, block in enumerate(blocks):
            fence = _FENCE.fullmatch(text[offsets[block.line] : offsets[block.line + 1]].rstrip("\n"))
            if block.tokens[0].type == "fence" and fence is not None:
                self._fence, self._number = fence, None
                opening = Block(code=visible(fence[0].strip()), opens=_language(fence), blank_before=block.blank_before)
                return min(offsets[block.line + 1], len(text)), [*blocks[:i], opening]
        last = blocks[-1]
        cut_off = limit < len(self._text) and len(self._text) > MAX_OPEN and len(blocks) == 1
        if end or cut_off or _is_closed(last, text):
            self._blank, self._number = _ends_blank(text), None
            return len(text), blocks
        self._blank = last.blank_before
        self._number = _number(last) if last.same_list else None if len(blocks) > 1 else self._number
        return offsets[last.line], blocks[:-1]

    def _blocks(self, text: str) -> list[Block]:
        """All blocks of the text, list items as lists of one item."""
        blocks: list[Block] = []
        lines = text.split("\n")
        tokens = parser().parse(text)
        _make_safe(tokens)
        for whole in siblings(tokens):
            items = list(siblings(whole[1:-1])) if whole[0].type.endswith("_list_open") else []
            number = int(whole[0].attrs.get("start", 1))
            if self._number is not None and not blocks:
                number = self._number
            for i, item in enumerate(items):
                opening = whole[0].copy(attrs={"start": number + i})
                blocks.append(Block([opening, *item, whole[-1]], lines=lines, line=_first_line(item), same_list=i > 0))
            if not items:
                blocks.append(Block(whole, lines=lines, line=_first_line(whole)))
        for block in blocks:
            block.blank_before = not lines[block.line - 1].strip() if block.line else self._blank
        return blocks


def siblings(tokens: "Sequence[Token]") -> "Iterator[list[Token]]":
    """The tokens in runs, each one element with all that is in it."""
    start = depth = 0
    for i, token in enumerate(tokens):
        depth += token.nesting
        if depth == 0:
            yield list(tokens[start : i + 1])
            start = i + 1


def _first_line(tokens: "list[Token]") -> int:
    return (tokens[0].map or [0])[0]


def _number(item: Block) -> int:
    return int(item.tokens[0].attrs.get("start", 1))


def _language(fence: re.Match[str]) -> str:
    return fence["info"].strip().partition(" ")[0]


def _is_closed(block: Block, text: str) -> bool:
    """Whether no line that follows the text can become part of its last block."""
    kind = block.tokens[0].type
    if kind in ("heading_open", "hr") or (kind == "formula" and block.tokens[0].info == "closed"):
        return True
    return kind in _ENDED_BY_BLANK and _ends_blank(text)


def _ends_blank(text: str) -> bool:
    """Whether the last line is blank."""
    return not text.removesuffix("\n").rpartition("\n")[2].strip()


def _closed(line: str) -> str:
    """An unfinished line with the emphasis or the code that it ends in closed, so that it looks as it will."""
    for mark in ("`", "**"):
        if line.count(mark) % 2:
            inner = line.rstrip().rstrip(mark[0])
            return inner + mark if inner.count(mark) % 2 else inner
    return line


def _make_safe(tokens: "list[Token]") -> None:
    """Make what the parser has decoded (entities) harmless, and reduce links and images to what a terminal shows."""
    for token in tokens:
        token.content, token.info = visible(token.content), visible(token.info)
        if token.children:
            token.children = list(_plain_links(token.children))
            _make_safe(token.children)


def _plain_links(tokens: "list[Token]") -> "Iterator[Token]":
    """Text and address of a link: `text (address)`, or the address alone if they are the same."""
    from markdown_it.token import Token

    shown, address = "", ""
    for token in tokens:
        if token.type == "link_open":
            shown, address = "", str(token.attrs.get("href", ""))
            yield token.copy(type="link", tag="a")
        elif token.type == "link_close":
            yield token.copy(type="link", tag="a")
            if address and address not in (shown, f"mailto:{shown}", f"http://{shown}"):
                yield Token("text", "", 0, content=f" ({address})")
        elif token.type == "image":
            yield Token("text", "", 0, content=f"{token.content} ({token.attrs.get('src', '')})")
        elif token.type == "softbreak":
            yield token.copy(type="hardbreak")
        else:
            shown += token.content
            yield token


@cache
def parser() -> "MarkdownIt":
    """What finds the blocks of a text."""
    from markdown_it import MarkdownIt
    from markdown_it.rules_block import blockquote, list_block

    made = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"]).disable("reference")
    around = ["paragraph", "reference", "blockquote"]
    made.block.ruler.at("blockquote", _bounded(blockquote), {"alt": [*around, "list"]})
    made.block.ruler.at("list", _bounded(list_block), {"alt": around})
    made.inline.ruler.before("escape", "formula", _inline_formula)
    made.block.ruler.before("table", "formula", _displayed_formula, {"alt": ["paragraph", "blockquote", "list"]})
    return made


def _bounded(rule: Callable[[Any, int, int, bool], bool]) -> Callable[[Any, int, int, bool], bool]:
    """A rule for what holds blocks; so deep that the parser would leave out the rest of the text, its marks are text."""
    return lambda state, start, end, silent: state.level < _DEEPEST and rule(state, start, end, silent)


def _inline_formula(state: Any, silent: bool) -> bool:
    """`$x_1$`, `\\(x_1\\)`, `$$x$$`: text in which nothing means anything."""
    if state.src[state.pos] not in "$\\":
        return False
    found = _FORMULA.match(state.src, state.pos, state.posMax)
    if found is None:
        return False
    if not silent:
        state.push("text", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _displayed_formula(state: Any, start: int, end: int, silent: bool) -> bool:
    """A formula on lines of its own, up to the line that ends with its closing mark or to a blank line."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    closing = _DISPLAYED.get(first[:2])
    if closing is None or state.is_code_block(start) or (closing in first[2:] and not first.endswith(closing)):
        return False
    if silent:
        return True
    line, closed = start + 1, len(first) > 2 and first.endswith(closing) and first != closing
    while line < end and not closed and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        closed = state.src[state.bMarks[line] : state.eMarks[line]].rstrip().endswith(closing)
        line += 1
    token = state.push("formula", "", 0)
    token.content = state.getLines(start, line, state.blkIndent, False).rstrip("\n")
    token.map, token.info = [start, line], "closed" if closed else ""
    state.line = line
    return True
