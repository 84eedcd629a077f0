"""Markdown on a terminal while it is being written: what it looks like, and that no piecing together shows."""

import itertools
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import pytest
from pygments.lexers import get_lexer_by_name
from rich.console import Console
from support.emulator import Terminal, cells, printable

from glmrun.terminal import highlight, screen
from glmrun.terminal.highlight import Highlighter
from glmrun.terminal.screen import MarkdownScreen

DOCUMENT = r"""# A *short* title

Some **bold** and `code`, see [the manual](https://example.org/a_b).
A second line of the same paragraph, which is too long.

- first
- second item that needs two lines
  - nested
- third

1. one
1. two:
   ```sh
   ls -l
   ```

```python
def double(x: int) -> int:  # a comment that is longer than the line
    return 2 * x
```

| name | value |
|------|------:|
| a | 1 |
| b **x** | 22 |

The area is $a_1 * b_2 * c$, or \(a_1\); it costs $5 and $10.

$$
x = 1
= 2
$$

> quoted
> text

---
<b>html</b> [1]: is text &amp; so on
"""

AT_30 = r"""A short title

Some bold and code, see the
manual
(https://example.org/a_b).
A second line of the same
paragraph, which is too long.

 • first
 • second item that needs two
   lines
    • nested
 • third

 1. one
 2. two:
    ```sh
    ls -l
    ```

```python
def double(x: int) -> int:  #
a comment that is longer than
the line
    return 2 * x
```

name   value
────────────
a          1
b x       22

The area is $a_1 * b_2 * c$,
or \(a_1\); it costs $5 and
$10.

$$
x = 1
= 2
$$

▌ quoted
▌ text

──────────────────────────────
<b>html</b> [1]: is text & so
on"""


@pytest.fixture(autouse=True)
def _paint_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "_PAUSE", 0.0)
    monkeypatch.setattr(screen, "_SHARE", 0)


def shown(pieces: Iterable[str], columns: int = 80, rows: int = 24) -> str:
    """All lines of a terminal after a text came in these pieces, each of which was painted."""
    terminal = Terminal(columns, rows)
    markdown = MarkdownScreen(terminal.stream)
    for piece in pieces:
        markdown.add(piece)
    markdown.close()
    text = terminal.close()
    printable(terminal.raw)
    return text


def test_a_text_is_laid_out() -> None:
    assert shown([DOCUMENT], 30) == AT_30  # the comment is folded by the terminal, all else by us


@pytest.mark.parametrize(
    "text", ["".join("  " * i + f"- item{i}\n" for i in range(15)), "> " * 30 + "quoted\n", "> - " * 12 + "both\n> " * 30]
)
def test_no_text_is_too_deep(text: str) -> None:
    words = re.findall(r"\w+", text)
    assert re.findall(r"\w+", shown([text + "\n\nend\n"])) == [*words, "end"]


def test_a_line_of_blanks_is_blank_wherever_the_text_is_cut() -> None:
    text = "one\n  \t\n- two\n"
    assert {shown([text[:i], text[i:]]) for i in range(len(text))} == {"one\n\n • two"}


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (30, 6), (10, 3)])
def test_it_looks_the_same_however_it_came(columns: int, rows: int) -> None:
    whole = shown([DOCUMENT], columns, rows)
    assert shown([DOCUMENT[i : i + 2] for i in range(0, len(DOCUMENT), 2)], columns, rows) == whole
    rng = random.Random(columns)
    for _ in range(2):
        cuts = sorted(rng.sample(range(len(DOCUMENT)), 60))
        assert shown([DOCUMENT[a:b] for a, b in itertools.pairwise([0, *cuts, len(DOCUMENT)])], columns, rows) == whole


WORDS = "".join(f"word{n} " for n in range(60))
ODD = [
    "- \n-\n  text\n\n      code\n- b",
    "1) a\n2) b\n\n3. c\n",
    "> - a\n> - b\nlazy\n> c",
    "* * *\n***bold*** _x_ __y__",
    "| a |\n|---|\n| | b | c |\nd",
    "```\nunclosed `fence`",
    "~~~ py\n```\n~~~~\nafter",
    "a\n===\nb\n---\nc\n-",
    "[a](b) ![i](u) [x][y] [z]: q\n\n[z]: q",
    "<a@b.c> <http://x.y> <z>",
    "\\(a\\) \\[b\\] $c$ $$d$$ $ e $ \\( f",
    "$$\ng\n\nh $$ i\n$$j$$\n\\[k\nl\\]\nm",
    "a  \nb\\\nc\n    d",
    "\ta\n\n\tb\n- \tc",
    "#a\n# b #\n####### c",
    "a|b\n-|-\nc|d|e\n\nf",
    "日本語、「括弧」です。日本語、「括弧」です。日本語、「括弧」です。日本語、「括弧」です。 mixed 中文 text",
    "éééééééééééééééééééééééééééééééééééééééé naïve 👍🏽 👩\u200d💻 ❤️",
    "&lt; &amp; &#x202e; &nosuch;",
    "[b]x[/] :smile: [link=a]b[/link]",
    "\r\na\rb\r\n\r\nc",
    "- a\n\n\n\n- b\n1. c\n   > d\n   >\n   > e",
]


@pytest.mark.parametrize("source", [*ODD, DOCUMENT])
def test_every_beginning_of_a_text_can_be_shown_and_nothing_of_it_is_lost(source: str) -> None:
    for end in range(0, len(source) + 1, 1 + len(source) // 40):
        text = shown([source[: end // 2], source[end // 2 : end]], 40)
        assert all(cells(line) <= 40 for line in text.split("\n")) and shown([source[:end]], 40) == text
        decoded = source[:end].replace("&lt;", "").replace("&amp;", "").replace("&#x202e;", "U202E")
        lost = Counter(filter(str.isalnum, unicodedata.normalize("NFC", decoded))) - Counter(text)
        assert not lost or "1." in source, (text, lost)  # items get the numbers that follow


def test_a_block_of_any_length_is_shown_whole_and_written_once() -> None:
    for text in ("x" * 50_000, "word " * 10_000, "a\n" * 10_000, "```\n" + "y = 1\n" * 3_000, "- z\n" * 3_000):
        terminal = Terminal(80, 24)
        markdown = MarkdownScreen(terminal.stream)
        markdown.add(text)
        markdown.close()
        letter = text.strip()[-1]
        assert terminal.close().count(letter) == text.count(letter)
        assert len(terminal.raw) < 30 * len(text)


def test_a_smaller_window_repeats_nothing_and_loses_nothing() -> None:
    terminal = Terminal(60, 20)
    markdown = MarkdownScreen(terminal.stream)
    markdown.add(WORDS[:200])
    terminal.sync()
    terminal.resize(33, 12)
    markdown.add(WORDS[200:])
    markdown.add("\n\nnext")
    markdown.close()
    assert "".join(terminal.close().split()) == "".join(WORDS.split()) + "next"  # the terminal folds within words


def test_a_smaller_window_repeats_nothing_of_two_blocks_that_are_open() -> None:
    terminal = Terminal(60, 20)
    markdown = MarkdownScreen(terminal.stream)
    markdown.add("- first\n- " + WORDS[:100])  # the first item is finished when the line of the second is
    terminal.sync()
    terminal.resize(33, 12)
    for letter in WORDS[100:] + "\n- third":
        markdown.add(letter)
    markdown.close()
    assert "".join(terminal.close().split()) == "•first•" + "".join(WORDS.split()) + "•third"


def test_a_larger_window_is_used() -> None:
    terminal = Terminal(30, 10)
    markdown = MarkdownScreen(terminal.stream)
    markdown.add(WORDS[:200])
    terminal.sync()
    terminal.resize(70, 20)
    markdown.add(WORDS[200:])
    markdown.close()
    lines = terminal.close().split("\n")
    assert " ".join(lines).split() == WORDS.split() and 60 <= max(map(cells, lines)) <= 70


def test_chinese_is_broken_between_characters_and_not_before_a_full_stop() -> None:
    text = "GLM 是一个模型，它在普通的处理器上运行。" * 3
    lines = shown([text], 23).split("\n")
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(cells(line) >= 19 for line in lines[:-1]) and not any(line[0] in "，。" for line in lines)


def test_a_table_that_is_too_wide_becomes_a_list() -> None:
    table = "| Language | Compiler |\n|---|---|\n| Fortran | incomprehensible |\n| C | gcc |\n"
    assert shown([table], 30) == f"Language   Compiler\n{'─' * 27}\nFortran    incomprehensible\nC          gcc"
    assert shown([table], 20) == "Language: Fortran\nCompiler:\nincomprehensible\n\nLanguage: C\nCompiler: gcc"
    table = "| a | b | c |\n|---|---|---|\n| incomprehensible | of few letters each | x |\n"
    assert shown([table], 36) == f"{'a':<19}{'b':<16}c\n{'─' * 36}\nincomprehensible   {'of few':<16}x\n{'':<19}letters each"
    assert shown(["| a |\n|---|\n| x || y |\n"], 30) == "| a |\n|---|\n| x || y |"


def test_colours_of_code_do_not_depend_on_where_it_was_cut() -> None:
    code = 'def f():\n    """a\n    b"""\n' + "    x = 1  # c\n" * 60 + 'y = """\n' + "def\n" * 60 + '"""\nclass A: ...\n'
    whole, lines, console = Highlighter("python"), code.split("\n"), Console()
    expected: list[list[str]] = [[]]
    for kind, value in get_lexer_by_name("python", stripnl=False).get_tokens(code):
        for n, piece in enumerate(value.split("\n")):
            expected += [[]] if n else []
            expected[-1] += [str(highlight._theme().get_style_for_token(kind))] * len(piece)
    for line, styles in zip(lines, expected, strict=False):
        text = whole.add(line)
        assert text.plain == line
        for i, style in enumerate(styles):
            assert line[i] == " " or str(text.get_style_at_offset(console, i)) == style, line
