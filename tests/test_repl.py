"""The chat loop: in a pipe by its lines, in a terminal by its keys (tests/scripted_model.py answers)."""

import json
import os
import sys
from pathlib import Path

import pexpect
import pytest
from scripted_model import ScriptedModel

from glmrun.terminal.commands import run_command
from glmrun.terminal.conversation import Conversation
from glmrun.terminal.repl import chat_in_pipe

SCRIPT = str(Path(__file__).with_name("scripted_model.py"))


def _pipe(text: str, **options: object) -> Conversation:
    conversation = Conversation(ScriptedModel(), **options)  # type: ignore[arg-type]
    assert chat_in_pipe(conversation, text.encode().splitlines(keepends=True)) == 0
    return conversation


def _said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in conversation.messages]


def test_each_line_is_a_message_and_the_answers_are_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe('one\n\n"""\ntwo\nlines\n"""\nthree')
    assert capsys.readouterr().out == "You said: one\nYou said: two\nlines\nYou said: three\n"
    assert [text for role, text in _said(conversation) if role == "user"] == ["one", "two\nlines", "three"]
    assert conversation.messages[1] == {"role": "assistant", "content": "You said: one", "reasoning_content": "Let me think."}


def test_commands_change_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe(
        "one\n/regen\ntwo\n/undo\n/think off\n/system Be brief.\n/set top_p 0.5\n/set seed 7\nmessages\n/bye\nnever"
    )
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "You said: one", "reasoning_content": "Let me think."},
            {"role": "user", "content": "messages"},
        ],
        "thinking": False, "clear_thinking": False, "top_p": 0.5, "seed": 7,
    }  # fmt: skip
    assert "never" not in out and out.count("You said: one") == 3  # answered, regenerated, quoted
    run_command(conversation, "/clear")
    assert conversation.messages == [] and conversation.system == "Be brief."


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/frob", "there is no command /frob; /help"),
        ("/think maybe", "on or off"),
        ("/set", "/set NAME VALUE"),
        ("/set temp hot", "takes a number"),
        ("/set top-k 1.5", "takes a whole number"),
        ("/set top-p 2", "top_p is 2.0"),
        ("/set max-tokens 0", "at least 1"),
        ("/regen", "nothing has been asked"),
        ("/undo", "nothing has been asked"),
    ],
)
def test_a_command_that_cannot_be_says_so_and_changes_nothing(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel())  # type: ignore[arg-type]
    run_command(conversation, line)
    assert words in capsys.readouterr().err and not conversation.settings and conversation.thinking


def test_the_context_is_counted_and_nothing_is_cut_off_silently(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel(n_ctx=40))  # type: ignore[arg-type]
    conversation.say("hello there")
    run_command(conversation, "/context")
    assert "6 of 40 tokens (15%), 2 messages" in capsys.readouterr().err
    conversation.say(" ".join(["word"] * 15))
    assert "38 of 40 tokens of context used: /clear" in capsys.readouterr().err


class Terminal:
    """The chat loop on a pseudo-terminal; a screen of 200 columns so that no line is folded."""

    def __init__(self, state: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "XDG_STATE_HOME": str(state),
            "TERM": "xterm",
            "PROMPT_TOOLKIT_NO_CPR": "1",
        }
        self.child = pexpect.spawn(
            sys.executable, [SCRIPT, "chat", "nano"], env=environment, dimensions=(50, 200), encoding="utf-8", timeout=20
        )
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


def test_what_is_typed_during_an_answer_is_sent_after_it(tmp_path: Path) -> None:
    terminal = Terminal(tmp_path)
    terminal.child.send("slow prompt\r")
    terminal.expect("reading the prompt")
    terminal.child.send("typed ahead\r")
    terminal.expect("You said: slow prompt")
    terminal.expect("You said: typed ahead")
    terminal.ready()
    assert terminal.leave() == 0


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
    terminal.send("/context", "0 messages")
    assert terminal.leave() == 0
