"""The chat program in a terminal, by its keys (tests/support/scripted_model.py answers)."""

import json
import os
import signal
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest
from support.window import open_window, wait_for

from glmrun.repl import sessions

SCRIPT = str(Path(__file__).with_name("support") / "scripted_model.py")


class Terminal:
    """The chat loop on a pseudo-terminal; a screen of 200 columns so that no line is folded."""

    def __init__(self, state: Path, *arguments: str) -> None:
        environment: Any = {
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "XDG_STATE_HOME": str(state),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
            "VISUAL": str(state / "editor"),
        }
        self.child = pexpect.spawn(
            sys.executable, [SCRIPT, "chat", "nano", *arguments], env=environment, cwd=str(state), dimensions=(50, 200),
            encoding="utf-8", timeout=20,
        )  # fmt: skip
        self.child.expect("Ctrl-D leaves")
        self.ready()

    def ready(self) -> None:
        self.child.expect(r">>>[^\r\n]*\x1b\[\?25h")  # the prompt and, when it is drawn, the cursor

    def send(self, text: str, expected: str) -> None:
        """Type a message; wait for `expected` in what is printed after it, and for the next prompt."""
        self.child.send(text + "\r")
        self.expect(expected)
        self.ready()

    def expect(self, words: str) -> None:
        """Wait for words, with codes or a line break wherever they have a blank or a newline."""
        self.child.expect(words.replace("\r\n", " ").replace(" ", r"(?:\s|\x1b\[[?0-9;]*[A-Za-z])+"))

    def leave(self) -> int:
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus if self.child.exitstatus is not None else -1)


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.send("hello", "You said: hello\r\n.*3 tokens, 50.0 tok/s")
    terminal.send("first\x1b\rsecond", "You said: first\r\nsecond\r\n")  # Alt+Enter
    terminal.send("first\nthird", "You said: first\r\nthird\r\n")  # Ctrl+J
    terminal.send('"""open\rclose"""', "You said: open\r\nclose\r\n")
    terminal.send("\x1b[200~pasted\rlines\x1b[201~", "You said: pasted\r\nlines\r\n")  # as terminals paste: no line sends itself
    terminal.send("/context", "10 messages")
    assert terminal.leave() == 0

    history = tmp_path / "glmrun" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    again = Terminal(tmp_path)
    again.send("\x1b[A\x1b[A", "You said: pasted\r\nlines\r\n")  # Up, Up: before /context
    assert again.leave() == 0


def test_history_pastes_files_and_an_editor(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "note.md").write_text("what the note says\n")
    (tmp_path / "editor").write_text('#!/bin/sh\nprintf "XYZ" > "$1"\n')
    (tmp_path / "editor").chmod(0o755)
    terminal = Terminal(tmp_path)
    terminal.send("hello", "You said: hello")
    terminal.send("other", "You said: other")
    terminal.send("hel\x1b[A", "You said: hello")  # Up: what begins like it
    terminal.send("\x12oth\r", "You said: other")  # Ctrl+R
    terminal.child.send("sum: \x1b[200~" + "\r".join(f"line {n}" for n in range(84)) + "\x1b[201~")
    terminal.expect(r"\[pasted 84 lines\]")
    terminal.send("", "You said: sum: line 0 line 1 .*line 83 ")
    terminal.child.send("@do\t")
    terminal.expect("note.md")  # what is in the only folder of that name
    terminal.send("\t", "what the note says")
    terminal.child.send("draft\x18\x05")  # Ctrl+X Ctrl+E
    terminal.expect("XYZ")
    terminal.send("", "You said: XYZ")
    terminal.send("/th\t off", "thinking off")
    terminal.send("/set vi on", "keys as in vi")
    terminal.child.send("hallo\x1b")
    time.sleep(1)  # else it is Alt+0
    terminal.send("0x", "You said: allo")
    assert terminal.leave() == 0


def test_keys_for_thinking_and_for_stopping(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.send("hello", "You said: hello")
    terminal.child.send("\x0f")  # Ctrl+O
    terminal.expect("thought for .* 2 tokens .*Let me think.")
    terminal.ready()
    terminal.send("/think 7", "on, at most 7 tokens")
    terminal.child.send("\x1b[Z")  # Shift+Tab
    terminal.expect("thinking off")
    terminal.ready()
    terminal.child.send("\x1b[Z")
    terminal.expect("thinking on, at most 7 tokens")
    terminal.ready()
    terminal.child.send("\x1b[Z")
    terminal.expect("thinking off")
    terminal.ready()
    terminal.send("/set format json", "JSON objects")
    terminal.send("messages", '"json_schema": {"type": "object"}')
    terminal.child.send("slow answer\r")
    terminal.expect("tick tick tick")
    terminal.child.send("\x1b")  # Esc
    terminal.expect("stopped")
    terminal.ready()
    assert terminal.leave() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_from_outside_keeps_what_was_said_and_the_terminal(tmp_path: Path, number: int) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("slow answer\r")
    terminal.expect("tick tick tick")
    terminal.child.kill(number)
    terminal.child.expect(pexpect.EOF)
    assert termios.tcgetattr(terminal.child.child_fd)[3] & termios.ECHO
    terminal.child.close()
    assert terminal.child.exitstatus == 128 + number
    [path] = (tmp_path / "glmrun" / "sessions").glob("*.jsonl")
    saved = sessions.read(path)
    assert saved.messages[-1]["content"].startswith("tick tick tick") and saved.messages[-1]["finish_reason"] == "cancelled"


def test_a_window_that_is_closed_during_an_answer_is_a_signal_and_no_error(tmp_path: Path) -> None:
    """Nothing can be written any more, while the program ends, too."""
    terminal = Terminal(tmp_path)
    terminal.child.send("slow answer\r")
    terminal.expect("tick tick tick")
    terminal.child.ptyproc.fileobj.close()
    assert terminal.child.ptyproc.wait() == 128 + signal.SIGHUP
    [path] = (tmp_path / "glmrun" / "sessions").glob("*.jsonl")
    assert sessions.read(path).messages[-1]["finish_reason"] == "cancelled"


@pytest.mark.parametrize("message", ["", "slow answer"])
@pytest.mark.parametrize("killed", [False, True])
def test_a_stopped_conversation_ends_with_its_terminal_or_by_kill(tmp_path: Path, message: str, killed: bool) -> None:
    window = open_window(["env", f"PYTHONPATH={os.getcwd()}", f"XDG_STATE_HOME={tmp_path}", "sh", "-i"])
    window.type(f"{sys.executable} {SCRIPT} chat nano\r")
    wait_for(window, "^>>> Ask")
    if message:
        window.type(f"{message}\r")
        wait_for(window, "tick tick tick")
    window.type("\x1a")
    wait_for(window, "Stopped")
    window.type(f"jobs -p > {tmp_path}/process; echo $((9 * 111111))\r")
    wait_for(window, "999999$")
    process = Path("/proc", (tmp_path / "process").read_text().strip())
    if killed:
        window.type("kill %1; kill -s CONT %1\r")
    else:
        window.close()
    end = time.monotonic() + 15
    while process.exists() and time.monotonic() < end:
        time.sleep(0.2)
        if killed:
            window.type("\r")  # the shell takes notice
    if hangs := process.exists():
        os.kill(int(process.name), signal.SIGKILL)
    if killed:
        window.close()
    assert not hangs


def test_a_killed_conversation_goes_on(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.send("hello", "You said: hello")
    terminal.child.send("slow answer\r")
    terminal.expect("tick tick tick")
    terminal.child.kill(signal.SIGKILL)
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    (tmp_path / "other.gguf").touch()
    again = Terminal(tmp_path, "--continue")
    again.send("/context", "3 messages")
    again.send("/model other.gguf", "other.gguf")
    again.send("messages", '"content": "You said: hello".*"content": "slow answer"')
    again.send("/export a.md", "5 messages")
    again.send("/export a.json", "5 messages")
    assert again.leave() == 0
    [path] = (tmp_path / "glmrun" / "sessions").glob("*.jsonl")
    assert sessions.read(path).model == str(tmp_path / "other.gguf")
    assert "You said: hello" in (tmp_path / "a.md").read_text()
    assert [message["role"] for message in json.loads((tmp_path / "a.json").read_text())["messages"]][:3] == [
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize(
    ("message", "seen", "kept"), [("slow answer", "tick tick tick", 2), ("slow prompt", "reading the prompt", 1)]
)
def test_ctrl_c_stops_the_answer_and_keeps_it(tmp_path: Path, message: str, seen: str, kept: int) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send(message + "\r")
    terminal.expect(seen)
    terminal.child.sendintr()
    terminal.expect("stopped")
    terminal.ready()
    terminal.send("/context", f"{kept} message")
    terminal.send("messages", '"content": "tick tick' if kept == 2 else '"content": "slow prompt"')
    assert terminal.leave() == 0


def test_what_is_typed_during_an_answer_is_seen_and_waits_for_enter(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("slow prompt\r")
    terminal.expect("reading the prompt")
    terminal.child.send("typed aheax\x7fd\r")
    terminal.expect(">>> typed ahead↵")  # beside the progress
    terminal.expect("You said: slow prompt")
    terminal.expect(">>> typed ahead")
    terminal.send("", "You said: typed ahead")
    terminal.send("/context", " 4 messages")
    assert terminal.leave() == 0


@pytest.mark.parametrize("brackets", [("\x1b[200~", "\x1b[201~"), ("", "")])
def test_a_paste_during_an_answer_is_one_draft_that_nothing_sends(tmp_path: Path, brackets: tuple[str, str]) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("slow answer\r")
    terminal.expect("tick tick tick")
    pasted = "\r".join(["first line", "/clear", "third line"])
    terminal.child.send(f"see: {brackets[0]}{pasted}{brackets[1]} and so on")
    terminal.expect(">>> … first line↵/clear↵third line and so on")
    terminal.child.sendintr()
    terminal.expect("stopped")
    terminal.expect(">>> see: first line ... /clear ... third line and so on")
    terminal.child.send("\x03")  # it is not sent, and not lost either
    terminal.send("\x1b[A", "You said: see: first line /clear third line and so on")
    terminal.send("/context", " 4 messages")
    assert terminal.leave() == 0


def test_a_long_paste_during_an_answer_is_a_few_words(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("slow answer\r")
    terminal.expect("tick tick tick")
    terminal.child.send("\x1b[200~" + "\r".join(f"line {n}" for n in range(2000)) + "\x1b[201~")
    terminal.expect(r">>> \[pasted 2,000 lines\]")
    terminal.child.send("\x1b")
    terminal.expect("stopped")
    terminal.expect(r">>> \[pasted 2,000 lines\]")
    terminal.send("", "line 1998 line 1999")
    terminal.send("/context", " 4 messages")
    assert terminal.leave() == 0


def test_what_comes_behind_an_enter_without_brackets_is_a_draft(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("first\rsecond\rthird\r")  # at once: a terminal that does not mark pastes
    terminal.expect("You said: first")
    terminal.expect(">>> second ... third")
    terminal.send("", "You said: second third")
    terminal.send("/context", " 4 messages")
    assert terminal.leave() == 0


def test_a_message_that_is_edited_goes_only_when_the_new_one_is_sent(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.send("first", "You said: first")
    terminal.send("hello", "You said: hello")
    terminal.send("/edit", "change the message and send it")
    terminal.child.send("\x03")
    terminal.send("/context", " 4 messages")
    terminal.send("/edit", "change the message and send it")
    terminal.child.send("\x15\x03")  # of an empty line
    terminal.send("messages", '"You said: hello"')
    terminal.send("/undo", "taken back: messages")
    terminal.send("/edit", "change the message and send it")
    terminal.send(" there", "You said: hello there")
    terminal.send("messages", '"You said: first".*"hello there".*"You said: hello there"')
    terminal.send("/context", " 6 messages")
    assert terminal.leave() == 0
    [path] = (tmp_path / "glmrun" / "sessions").glob("*.jsonl")
    assert [m["content"] for m in sessions.read(path).messages if m["role"] == "user"] == ["first", "hello there", "messages"]


def test_ctrl_c_on_an_empty_line_twice_leaves(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("a draft\x03")  # the first one only clears the line
    terminal.send("hello", "You said: hello\r\n")
    terminal.child.send("\x03")
    terminal.child.expect("again")
    terminal.ready()
    terminal.child.send("\x03")
    terminal.child.expect(pexpect.EOF)
    terminal.child.close()
    assert terminal.child.exitstatus == 130


def test_a_message_that_does_not_fit_is_told_and_not_kept(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.send("long", "error: the prompt has 500 tokens, the context 200")
    terminal.send("er", "You said: longer")  # the message waits in the line
    terminal.send("/context", " 2 messages")
    assert terminal.leave() == 0


@pytest.mark.parametrize("columns", [20, 30, 80, 200])
def test_notices_are_whole_words_at_any_width(tmp_path: Path, columns: int) -> None:
    """Help, an error and the values in force: no line is wider than the window, and none ends within a word.

    The gauge of the context is seen as well, whatever of the model's name has room beside it.
    """
    window = open_window(
        ["env", f"PYTHONPATH={os.getcwd()}", f"XDG_STATE_HOME={tmp_path}", sys.executable, SCRIPT, "chat", "nano", "--temp", "0.5"],
        columns, 40,
    )  # fmt: skip
    try:
        wait_for(window, r"^>>> Ask.*/help\n+(\S+ · )?0 / 200")
        commands = (("/help", r"the\s+keys"), ("/context", "messages"), ("/frob", "message"), ("/set temp", r"command\s+line"))
        for line, last in commands:
            window.type(f"{line}\r")
            screen = wait_for(window, rf"^>>> {line}\n(.|\n)*{last}(.|\n)*^>>>")
            shown = screen[screen.rindex(f">>> {line}") :].split("\n")
            assert max(map(len, shown)) <= columns
            words = {word for row in shown for word in row.split()}
            whole = {
                "/context": {"░" * min(columns, 30), "tokens"},
                "/help": {"answers", "/compact", "/sessions", "program"},
                "/frob": {"error:", "command", "(a", "message)"},
            }
            assert whole.get(line, {"temp", "0.5", "the", "command", "line"}) <= words
    finally:
        window.close()
