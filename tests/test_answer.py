"""What a person sees of an answer: thinking, text, tool calls; and that none of it can steer the terminal."""

import codecs
import itertools
import json
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import exit_code
from support.emulator import Terminal, printable
from support.gguf_bytes import ALIGNMENT, STRING, key
from support.gguf_bytes import text as string
from support.tiny_model import Tiny

from glmrun.chat.answer import Answer
from glmrun.chat.chunk import Chunk, Stats
from glmrun.terminal import screen
from glmrun.terminal.answer import AnswerView, bottom_parts, fitted, show_answer, show_thinking, stats_line
from glmrun.terminal.progress import PromptProgress
from glmrun.terminal.sanitize import json_text, visible
from glmrun.terminal.tool_blocks import show_tool_call, show_tool_output, show_tool_result


@pytest.fixture
def on_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Called in the test (pytest sets the streams again before each), makes both streams a terminal; all is painted at once."""

    def open_one(columns: int = 60) -> Terminal:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setattr(screen, "_PAUSE", 0.0)
        monkeypatch.setattr(screen, "_SHARE", 0)
        made = Terminal(columns, 12)
        monkeypatch.setattr("rich.console._STD_STREAMS", [made.stream.fileno()])  # where Rich asks for the size
        monkeypatch.setattr(sys, "stdout", made.stream)
        monkeypatch.setattr(sys, "stderr", made.stream)
        return made

    return open_one


def bottom_line(*values: Any) -> str:
    return "".join(text for _, text in bottom_parts(*values))


def chunks(*pieces: str, thinking: int = 0) -> list[Chunk]:
    """One token each; the first `thinking` of them are thoughts."""
    made = []
    for n, piece in enumerate(pieces, 1):
        said = {"reasoning": piece} if n <= thinking else {"text": piece}
        made.append(Chunk(token=n, stats=Stats(10, n_generated=n, generate_seconds=n / 10), **said))  # type: ignore[arg-type]
    return made


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d s", "0.0 s", text)


THOUGHTS = tuple(f"thought {n}\n" for n in range(6))


def test_thinking_folds_into_one_line(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    answer = Answer()
    view = AnswerView(answer, footer=lambda stats: bottom_line("nano", stats.n_prompt + stats.n_generated, 2048, stats))
    feed = iter(chunks(*THOUGHTS, "**An**swer", " here", thinking=6))
    for chunk in itertools.islice(feed, 6):
        view.feed(chunk)
    assert without_times(terminal.sync()).split("\n") == [
        "▸ thinking 0.0 s · 6 tokens", "  thought 3", "  thought 4", "  thought 5", "nano · 16 / 2k · 10.0 tok/s",
    ]  # fmt: skip
    assert not terminal.screen.cursor.hidden  # a signal that stops or ends the program now leaves a cursor to the shell
    view.feed(next(feed))
    assert without_times(terminal.sync()).split("\n") == ["▸ thought for 0.0 s · 6 tokens", "Answer", "nano · 17 / 2k · 10.0 tok/s"]
    view.feed(next(feed))
    view.close()
    show_thinking(answer)
    line = "thought for 0.0 s · 6 tokens"
    thoughts = [text.strip() for text in THOUGHTS]
    assert without_times(terminal.close()).split("\n") == [f"▸ {line}", "Answer here", f"▾ {line}", *thoughts]
    assert b"\x1b[2mthought 0" in terminal.raw and terminal.raw.count(b"?25l") == terminal.raw.count(b"?25h") > 1
    assert terminal.raw.rfind(b"?25h") > terminal.raw.rfind(b"?25l")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("fold", ["▸ thought for 0.0 s · 6 tokens"]), ("show", [*map(str.strip, THOUGHTS), "▸ thought for 0.0 s · 6 tokens"]),
     ("hide", [])],
)  # fmt: skip
def test_thinking_can_be_folded_shown_or_hidden(on_terminal: Callable[..., Terminal], mode: Any, expected: list[str]) -> None:
    terminal = on_terminal()
    show_answer(chunks(*THOUGHTS, "Answer", thinking=6), Answer(), mode)
    assert without_times(terminal.close()).split("\n") == [*expected, "Answer"]
    assert (b"thought 0" in terminal.raw) == (mode != "hide")


def test_thinking_unfolds_in_the_middle(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    view = AnswerView(Answer())
    for n, chunk in enumerate(chunks(*THOUGHTS, "Answer", thinking=6)):
        if n == 5:
            view.expand_thinking()
        view.feed(chunk)
    view.close()
    assert without_times(terminal.close()).split("\n") == [*map(str.strip, THOUGHTS), "▸ thought for 0.0 s · 6 tokens", "Answer"]


def test_the_window_of_thinking_begins_anew_in_a_smaller_one(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    view = AnswerView(Answer(), hint="Ctrl+O shows all")
    feed = iter(chunks(*THOUGHTS, "Answer", thinking=6))
    for chunk in itertools.islice(feed, 5):
        view.feed(chunk)
    terminal.sync()
    terminal.resize(33, 12)
    view.feed(next(feed))
    shown = without_times(terminal.sync())
    assert shown.endswith("\n▸ thinking 0.0 s · 6 tokens · Ct…\n  thought 3\n  thought 4\n  thought 5")
    view.feed(next(feed))
    view.close()
    assert without_times(terminal.close()).endswith("  thought 4\n▸ thought for 0.0 s · 6 tokens\nAnswer")


def test_what_is_broken_off_stays_and_the_cursor_comes_back(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()

    def broken() -> Iterator[Chunk]:
        yield from chunks("think", "One **two", thinking=1)
        raise KeyboardInterrupt

    answer = Answer()
    with pytest.raises(KeyboardInterrupt):
        show_answer(broken(), answer)
    assert terminal.close().endswith("\nOne **two") and answer.text == "One **two"
    assert terminal.raw.rfind(b"?25h") > terminal.raw.rfind(b"?25l")


def test_silence_is_counted(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    view = AnswerView(Answer())
    for chunk in chunks("Let me look.", *[""] * 20):
        view.feed(chunk)
    assert terminal.sync().split("\n") == ["Let me look.", "writing, 20 tokens"]
    view.close()
    assert terminal.close() == "Let me look."


def test_an_answer_that_is_no_markdown_stays_as_it_is(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    show_answer(chunks("__init__ ", "# *\r", "\n\x1b[m"), Answer(), markdown=False)
    assert terminal.close() == "__init__ # *\n␛[m"


def call(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def test_tool_calls_are_blocks(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    show_tool_call(call("get_weather", '{"city": "Bonn", "days": 3}'))
    show_tool_output("asking ...\n")
    show_tool_result("21 °C, and so many more words that they take two lines here")
    show_tool_call(call("write", '{"path": "a", "text": "' + "line\\n" * 12 + '"}'))
    show_tool_result("error: no space", failed=True)
    show_tool_call(call("f", "no JSON"))
    show_tool_result("")
    assert terminal.close().split("\n") == [
        '● get_weather(city="Bonn", days=3)', "  │ asking ...",
        "  └ 21 °C, and so many more words that they take two lines", "    here",
        "● write", "    path: a", "    text: line", *["    line"] * 7, "    … 4 more lines", "  ✗ error: no space",
        "● f(no JSON)", "  └ (nothing)",
    ]  # fmt: skip


def test_the_bottom_line_is_short() -> None:
    assert bottom_line("m\x1b[2J", 3174, 32768, Stats(n_generated=10, generate_seconds=0.5)) == "m␛[2J · 3.1k / 32k · 20.0 tok/s"
    parts = bottom_parts("GLM-4.7-Flash-Q4_K_M.gguf", 3174, 32768)
    shown = ["".join(text for _, text in fitted(parts, width)) for width in (12, 20, 80)]
    assert shown == ["3.1k / 32k", "GLM-4.… · 3.1k / 32k", "GLM-4.7-Flash-Q4_K_M.gguf · 3.1k / 32k"]
    assert bottom_line("nano", 820, 202_752) == "nano · 820 / 198k"
    assert bottom_line("nano", 3174, 32000) == "nano · 3.2k / 32k"
    assert bottom_line("nano", 11, 4096, Stats(n_generated=1, generate_seconds=0.001)) == "nano · 11 / 4k"


def test_what_is_typed_meanwhile_stands_below_an_answer(on_terminal: Callable[..., Terminal]) -> None:
    terminal, typed = on_terminal(), ["and\nthen"]
    view = AnswerView(Answer(), footer=lambda stats: "nano", draft=lambda: typed[0])
    feed = iter(chunks("thought\n", "Answer", " here", thinking=1))
    for typed[0], last in (("and\nthen", "and↵then"), ("", ""), ("y" * 9 + "x" * 39, f"…{'x' * 39}")):
        view.feed(next(feed))
        assert terminal.sync().split("\n")[-1] == (f">>> {last} · nano" if last else "nano")
    view.close()
    assert terminal.close().split("\n")[-1] == "Answer here"


def test_the_line_of_counts_tells_what_was_read() -> None:
    done = Stats(50, n_cached=10, n_prefilled=50, prompt_seconds=0.5, n_generated=2000, generate_seconds=100.0)
    assert stats_line(Stats(n_generated=1, generate_seconds=0.5, prompt_seconds=3.0)) == "1 token · first token after 3.0 s"
    assert stats_line(Stats(n_generated=2, generate_seconds=0.5, prompt_seconds=3.0)).startswith("2 tokens, 4.0 tok/s · ")
    drafted = Stats(n_generated=1, n_drafted=320, n_accepted=300, n_passes=1700)
    assert stats_line(drafted).startswith("1 token in 1,700 steps · 300 of 320 drafts right · ")
    fast = Stats(9, n_prefilled=9, prompt_seconds=0.05, n_generated=200, generate_seconds=0.13)
    assert stats_line(fast) == "200 tokens, 1,538 tok/s · prompt 9 read in 0.1 s, 180 tok/s"
    assert stats_line(done) == "2,000 tokens, 20.0 tok/s · prompt 40 read in 0.5 s, 80.0 tok/s · 10 cached"
    assert stats_line(Stats(50, n_cached=10, n_prefilled=10, prompt_seconds=3.0)) == "10 of 50 tokens of the prompt are kept"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(80, "reading the prompt ━╸━━━━━━━━━━━━━━━━━━ 256 / 3,032 · 64 tok/s · 43 s left"), (60, "prompt 256 / 3,032 · 43 s left")],
)
def test_the_prompt_has_a_bar(on_terminal: Callable[..., Terminal], columns: int, expected: str) -> None:
    terminal = on_terminal(columns)
    progress = PromptProgress(patience=0.0)
    progress.start()
    progress._timer.join()
    progress.update(Chunk(stats=Stats(3032, n_prefilled=256, prompt_seconds=4.0)))
    progress._bar._progress.refresh()
    assert terminal.sync() == expected and not terminal.screen.cursor.hidden
    progress.stop()
    assert terminal.close() == ""


# -- safety -----------------------------------------------------------------------------------------------------------

MARK = "7777"  # a parameter in every sequence that looks like one of ours, which we never use
# fmt: off
_BODIES = [
    "[" + MARK + "m", "[" + MARK + "A", "[?25" + MARK + "l", "[" + MARK + ";1H", "[2J", "[6n", "c", "(0", "]0;title\x07",
    "]52;c;aGk=\x07", "]8;;http://x\x1b\\", "P1$r\x1b\\", "^pm\x1b\\", "_apc\x1b\\", "X sos\x1b\\", "#8", "%G", "\x1b", "[",
    "N", "Z",
]
_OTHERS = [
    "\x9b7777m", "\x9d52;c;aGk=\x9c", "\x90q\x9c", "\x07", "\x08\x08", "\x0b", "\x0c", "\r", "\x00", "\x7f", "\u202e", "\u2066",
    "\u200f", "\u061c", "\u200b", "\ufeff", "\U000e0041", "\u2028", "&#27;[7777m", "&#x1b;[7777m", "&#155;7777m", "&#x202e;",
    "&ZeroWidthSpace;", "&rlm;", "\\\x1b[7777m",
]
_AROUND = [
    "{}", "**{}**", "`{}`", "[{}](http://{})", "![{}]({})", "<http://{}>", "# {}\n", "- {}\n", "1. {}\n", "> {}\n",
    "```{}\nx\n```\n",
    "```py\n{}\n```\n", "| a |\n|---|\n| {} |\n\n", "${}$", "$$\n{}\n$$\n", "\\({}\\)", "[bold]{}[/bold]", "[link={}]x[/link]",
    "    {}\n", "日本{}語", "👩\u200d💻{}❤️", "\n\n", "word ",
]
# fmt: on


def hostile(rng: random.Random) -> str:
    """A few escape sequences and other things that steer a terminal, in and around Markdown."""
    made = ""
    for _ in range(rng.randint(1, 3)):
        bad = rng.choice(["\x1b" + rng.choice(_BODIES), rng.choice(_OTHERS)])
        made += rng.choice(_AROUND).format(*[bad if rng.random() < 0.8 else "x"] * 2)
    return made


def as_tokens(data: bytes, rng: random.Random) -> Iterator[str]:
    """The bytes one by one, as a tokenizer's decoder gives them out; some that are no UTF-8 among them."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for byte in data:
        yield decoder.decode(bytes([byte]))
        if rng.random() < 0.02:
            yield decoder.decode(bytes([rng.choice([0x80, 0x9B, 0xC2, 0xE2, 0xF0, 0xFF])]))
    yield decoder.decode(b"", True)


def nothing_got_through(terminal: Terminal) -> None:
    terminal.close()
    printable(terminal.raw)
    found = re.search(rb"\x1b[^A-Za-z]*7777", terminal.raw)
    assert found is None, found


def test_no_escape_sequence_gets_through_at_any_split(
    on_terminal: Callable[..., Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """10,000 strings, each in single bytes through all that an answer passes; painted as often as for a person."""
    terminal = on_terminal()
    monkeypatch.setattr(screen, "_PAUSE", 0.02)
    monkeypatch.setattr(screen, "_SHARE", 8)
    rng = random.Random(52)
    for batch in range(200):
        view = AnswerView(Answer(), ("fold", "show", "hide")[batch % 3], footer=lambda stats: bottom_line(hostile(rng), 1, 2))
        for n in range(50):
            text = hostile(rng)
            for piece in as_tokens(text.encode(), rng):
                view.feed(Chunk(**{"reasoning" if n < 15 else "text": piece}, token=n))  # type: ignore[arg-type]
        view.close()
        show_tool_call(call(hostile(rng), f'{{"{batch}": "\\u001b[7777m\\u202e"}}' if batch % 2 else hostile(rng)))
        show_tool_result(hostile(rng), failed=batch % 2 == 0)
    nothing_got_through(terminal)


def test_no_escape_sequence_gets_through_when_every_byte_is_painted(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    rng = random.Random(53)
    for batch in range(100):
        text = hostile(rng)
        show_answer([Chunk(text=piece, token=1) for piece in as_tokens(text.encode(), rng)], Answer())
        show_answer(
            [Chunk(reasoning=piece, token=1) for piece in as_tokens(text.encode(), rng)], Answer(), "show" if batch % 2 else "fold"
        )
    nothing_got_through(terminal)


def with_keys(model: bytes, texts: list[str]) -> bytes:
    """A model file with texts as further keys and values."""
    n_keys = struct.unpack_from("<Q", model, 16)[0]
    added = b"".join(key(f"{n}.{text}", STRING, string(text)) for n, text in enumerate(texts))
    length = len(added) + len(key("filler", STRING, string("")))
    added += key("filler", STRING, string("x" * (-length % ALIGNMENT)))
    return model[:16] + struct.pack("<Q", n_keys + len(texts) + 1) + added + model[24:]


def test_what_a_file_says_of_itself_is_harmless(
    on_terminal: Callable[..., Terminal], tiny_gguf: Callable[..., Tiny], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(54)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = tmp_path / "glmrun" / "models"
    folder.mkdir(parents=True)
    model = with_keys(tiny_gguf().path.read_bytes(), [hostile(rng) for _ in range(200)])
    names = [hostile(rng).replace("/", "").replace("\0", "") + ".gguf" for _ in range(20)] + ["\udc9b7777m\udcff.gguf"]
    terminal = on_terminal()
    for name in names:
        (folder / name).write_bytes(model)
        path = str(folder / name)
        assert exit_code("inspect", path) == exit_code("inspect", path, "--json") == 0
        assert exit_code("verify", path + "x") == 3
    for form in (["--metadata"], ["--metadata", "--json"], ["--tensors"], ["--diff", str(tiny_gguf().path)]):
        assert exit_code("inspect", path, *form) == ("--diff" in form)
    assert exit_code("plan", path) in (0, 1)
    assert exit_code("list") == exit_code("list", "--json") == 0
    nothing_got_through(terminal)


def test_what_a_terminal_is_not_shown_is_spelled_out(on_terminal: Callable[..., Terminal]) -> None:
    terminal = on_terminal()
    show_answer([Chunk(text="a\x1b[7777mb\u202ec **d\x07**", token=1)], Answer())
    assert terminal.close() == "a␛[7777mb⟨U+202E⟩c d␇"


def test_json_is_harmless_and_the_same() -> None:
    rng = random.Random(55)
    texts = [hostile(rng) for _ in range(1000)] + ["\x7f", "\udc9b", "\U000e0041", "日本"]
    for shown in (json_text(texts), json_text(texts, indent=None)):
        printable(shown.encode())
        assert json.loads(shown) == texts and "日本" in shown


@pytest.mark.parametrize("paint", [str, visible])
def test_the_filter_of_these_tests_sees_what_would_get_through(paint: Callable[[str], str]) -> None:
    for bad in ["\x1b]52;c;aGk=\x07", "\x1b[2J", "\x1bc", "\x9b31m", "\u202e", "\x08", "\x1b[1;1H", "\x1b[6n"]:
        if paint is visible:
            printable(paint(bad).encode())
        else:
            with pytest.raises(AssertionError):
                printable(paint(bad).encode())
