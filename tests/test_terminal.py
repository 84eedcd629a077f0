"""What reaches a terminal and what reaches a pipe."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyte
import pytest
from rich.progress import Progress
from support.emulator import Screen, Terminal, cells, printable
from support.scripted_model import ESCAPES

from glmrun.terminal.console import note, question, say, show_error
from glmrun.terminal.layout import folded
from glmrun.terminal.progress import BytesProgress, _Left, _Times, work_bar
from glmrun.terminal.sanitize import one_line, visible
from glmrun.terminal.tables import bytes_text, columns, params_text

SCRIPT = str(Path(__file__).with_name("support") / "scripted_model.py")
FORBIDDEN = [
    *range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), 0x061C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F),
    *range(0x2060, 0x2070), 0xFEFF, 0xD800, 0xDCFF, 0xDFFF, *range(0xE0000, 0xE0080),
]  # fmt: skip


@pytest.mark.parametrize("code", FORBIDDEN)
def test_no_character_that_steers_a_terminal_passes(code: int) -> None:
    shown = visible(f"a{chr(code)}b")
    assert chr(code) not in shown and shown[0] == "a" and shown[-1] == "b" and len(shown) > 2


def test_ordinary_text_passes_unchanged() -> None:
    text = "line\n\ttab, naïve, 日本語, עברית, 👩‍💻 ❤️ [bold]x[/] :smile: \\x1b"
    assert visible(text) == text


def test_a_sequence_is_harmless_wherever_the_stream_is_cut() -> None:
    for i in range(len(ESCAPES)):
        assert visible(ESCAPES[:i]) + visible(ESCAPES[i:]) == visible(ESCAPES)


def test_one_line_has_no_line_break() -> None:
    assert one_line("a\r\nb\x1b[2J\n\n c") == "a b␛[2J c"


def _run(arguments: list[str], terminal: str, **environment: str) -> tuple[bytes, bytes]:
    """(standard output, standard error) of the command line; the stream that `terminal` names is one."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONPATH": os.getcwd(), **environment}
    streams = {name: theirs if name == terminal else subprocess.PIPE for name in ("stdout", "stderr")}
    process = subprocess.Popen([sys.executable, SCRIPT, *arguments], stdin=subprocess.DEVNULL, env=env, **streams)  # type: ignore[call-overload]
    os.close(theirs)
    piped = process.communicate(timeout=60)
    seen = b""
    try:
        while part := os.read(ours, 1 << 16):
            seen += part
    except OSError:  # how Linux tells that the other end is closed
        pass
    os.close(ours)
    return (seen, piped[1]) if terminal == "stdout" else (piped[0], seen)


def test_a_terminal_sees_control_characters_spelled_out() -> None:
    out, _ = _run(["run", "nano", "escapes", "--no-think"], "stdout")
    screen = Screen(100, 24)
    pyte.ByteStream(screen).feed(out)
    assert screen.text() == visible(ESCAPES) and "␛]52;c;aGk=␇red␛[31m" in printable(out)


def test_a_pipe_gets_the_text_of_the_model_and_no_codes() -> None:
    out, err = _run(["run", "nano", "escapes", "--stats"], "stderr")
    assert out.decode() == ESCAPES + "\n"
    assert b"\x1b[2m" in err and b"Let me" in err  # thinking is dim where a person looks
    _, err = _run(["run", "nano", "escapes", "--stats"], "stdout")
    assert b"\x1b" not in err and b"Let me think." in err and b"tokens" in err


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_dumb_terminal_gets_no_codes(environment: dict[str, str]) -> None:
    _, err = _run(["run", "nano", "hello", "--stats"], "stderr", **environment)
    assert b"\x1b" not in err and b"thought for" in err


def test_no_color_means_no_color() -> None:
    _, err = _run(["run", "nano", "slow prompt", "--stats"], "stderr", NO_COLOR="1")
    assert b"\x1b[3" not in err and b"\x1b[9" not in err  # foreground colours; dim and cursor movements may stay


def test_sizes_read_as_in_llama_bench() -> None:
    assert (bytes_text(18_123_246_080), bytes_text(8_085_504)) == ("16.88 GiB", "7.71 MiB")
    assert (params_text(29_943_393_024), params_text(9_440_000)) == ("29.94 B", "9.44 M")


TEXTS = [
    "  /set [NAME [VALUE]]  show or set temp, top-p, top-k, min-p, repeat-penalty, seed, max-tokens, context, preset",
    "there is no command /frob; /help lists them (a space in front sends the line as a message)",
    "  Enter            sends; during an answer it begins a new line",
    "  context         66 of 1,024 tokens; this model takes 8,192",
    "日本語のテキストは単語の間に空白がないので、どこでも折り返すことができます。",
]


@pytest.mark.parametrize("width", [20, 30, 80, 200])
@pytest.mark.parametrize("text", TEXTS)
def test_a_notice_is_broken_between_words_at_any_width(text: str, width: int) -> None:
    lines = folded(text, width).split("\n")
    assert all(cells(line) <= width for line in lines) and "".join("".join(lines).split()) == "".join(text.split())
    words = text.split()
    assert all(word in words for line in lines for word in line.split()) or max(map(cells, words)) > width // 2
    if len(lines) > 1:
        indents = {len(line) - len(line.lstrip()) for line in lines[1:]}
        assert len(indents) == 1 and indents.pop() >= len(text) - len(text.lstrip())


def test_a_question_is_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "  run it? y: yes, N: no, a: always get_time [y/N/a]"
    assert question(text) == f"{text} "
    terminal = Terminal(20, 24)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    asked = question(text)
    terminal.close()
    assert asked.split() == text.split() and max(map(len, asked.split("\n"))) <= 20 and asked.endswith("] ")


def test_a_gap_that_a_narrow_window_has_no_room_for_is_closed() -> None:
    assert folded("  context         66 of 1,024 tokens", 20) == "  context  66 of\n  1,024 tokens"
    assert folded("  context         66 of 1,024 tokens", 40) == "  context         66 of 1,024 tokens"


@pytest.mark.parametrize("width", [20, 30, 80, 200])
@pytest.mark.parametrize("show", [say, note, show_error])
def test_what_a_terminal_is_told_is_no_wider_than_it_is(
    show: Callable[[str], None], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(width, 24)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setenv("TERM", "xterm")
    show(TEXTS[1])
    lines = terminal.close().split("\n")
    assert " ".join(lines).removeprefix("error: ").split() == TEXTS[1].split() and len(lines) == len({*lines})
    assert max(map(len, lines)) <= width and printable(terminal.raw)


def test_the_last_column_is_cut_where_it_does_not_fit() -> None:
    rows = [["id", "title"], ["1", "a title that is long"]]
    assert columns(rows, width=16) == "id  title\n1   a title tha…" and columns(rows, width=6) == columns(rows)


def test_columns_line_up_and_are_harmless() -> None:
    assert columns([["name", "n"], ["a\x1b[31m", "1"], ["b", "22"]], right=[1]) == "name     n\na␛[31m   1\nb       22"


def test_a_bar_says_how_long_it_took_and_how_long_is_left() -> None:
    """Nothing of what is not known yet: neither a question mark nor empty places."""
    now = [0.0]
    progress = Progress(get_time=lambda: now[0])
    bar = progress.add_task("", total=10 * 10**9)
    said = []
    for gigabytes in (0, 1, 2, 3):
        progress.update(bar, completed=gigabytes * 10**9)
        said.append((_Times().render(progress.tasks[0]).plain, _Left().render(progress.tasks[0]).plain))
        now[0] += 2
    assert said == [("0 s", ""), ("2 s", ""), ("4 s, 16 s left", "500 MB/s, 16 s left"), ("6 s, 14 s left", "500 MB/s, 14 s left")]


@pytest.mark.parametrize("width", [20, 30, 80])
def test_a_bar_moves_in_any_window(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a narrow one there is no room for what is done, how far it is and a bar: how far it is comes first."""
    terminal = Terminal(width, 24)
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    with BytesProgress() as bytes_read, work_bar() as work:
        bytes_read.update("reading synth8.gguf into memory", 1_700_000_000, 3_200_000_000)
        bytes_read.clear()
        work.update("nano-Q8_0.gguf pp512", 3, 18)
    terminal.close()
    shown = printable(terminal.raw)
    assert "1.7/3.2 GB" in shown and "3/18" in shown
