"""What a person sees who uses nano in a window (tests/support/window.py): whole screens, # for each number of a clock."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.window import Window, open_window, wait_for

GLMRUN = [sys.executable, "-m", "glmrun"]
CODE = "Write a Python function that adds two numbers"
PROMPT = r"^>>>( Ask something, or /help)?\n+nano\S* · .*\Z"  # an empty line to type into, and the bottom line
ANSWER = "This function adds two numbers:\n\n```python\ndef add(a, b):\n    return a + b\n```\n"
CLOCK = '''def get_time(city: str) -> str:
    """Tells the time in a city"""
    return "18:03"
'''


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Callable[..., Window]]:
    """window(*command, columns=80, rows=24): opens one; saved conversations are the test's own."""
    opened: list[Window] = []
    environment = ["env", f"PYTHONPATH={os.getcwd()}", f"XDG_STATE_HOME={tmp_path}", "GLMRUN_DRAFT=off"]

    def make(*command: str, columns: int = 80, rows: int = 24) -> Window:
        opened.append(open_window([*environment, *command], columns, rows))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def timeless(screen: str) -> str:
    return re.sub(r"[\d,.]+ (s\b|tok/s)", r"# \1", screen)


def ask(window: Window, text: str, seen: str) -> str:
    """Send a line; the screen when `seen` stands below it and the next line can be typed."""
    window.type(f"{text}\r")
    return wait_for(window, rf"^>>> {re.escape(text[:12])}(.|\n)*{seen}(.|\n)*{PROMPT}")


def test_an_answer_with_thinking_and_code(window: Callable[..., Window]) -> None:
    screen = wait_for(window(*GLMRUN, "run", "nano", CODE, "--temp", "0", "--stats"), "^exit code 0")
    assert timeless(screen) == (
        f"▸ thought for # s · 13 tokens\n{ANSWER}37 tokens, # tok/s · prompt 13 read in # s, # tok/s · loaded in # s\nexit code 0"
    )


def test_the_commonest_window_breaks_no_row_of_a_table(window: Callable[..., Window]) -> None:
    screen = wait_for(window(*GLMRUN, "plan", "Q8_0", rows=60), "^exit code [01]")
    heading = "^quant +file +needed +largest context +tokens/s at most +context full$"
    assert re.search(rf"{heading}(\n(Q4_K_M|Q6_K|Q8_0|BF16) .*[\d.]{{3,}} +[\d.]{{3,}}$){{4}}", screen, re.MULTILINE)
    assert re.search(r"^speed +[\d.]+  tokens/s at most: .*\n +\S+.* a token$", screen, re.MULTILINE)  # between words
    screen = wait_for(window(*GLMRUN, "config", rows=60), "^exit code 0")
    assert re.search(r"^setting +value +from\nmodel +nano +default$", screen, re.MULTILINE)
    assert re.search(r"^kv_type +f16, f32 where no matrix is quantized +default$", screen, re.MULTILINE)


def test_a_narrow_window(window: Callable[..., Window]) -> None:
    screen = wait_for(window(*GLMRUN, "run", "nano", "What can you do?", "--temp", "0", columns=24), "^exit code 0")
    assert re.match(r"▸ thought for [\d.]+ s\s·\s12\stokens\nI can do four", screen)
    assert screen[screen.index("I can") :].split("\n") == [
        "I can do four things:", "", " • answer questions", "   about glmrun and", "   GLM-4.7-Flash", " • calculate with small",
        "   numbers", " • call tools, if some", "   are declared", " • write a short", "   function", "exit code 0",
    ]  # fmt: skip


def test_a_tool_call(window: Callable[..., Window], tmp_path: Path) -> None:
    tools = tmp_path / "clock.py"
    tools.write_text(CLOCK)
    chat = window(*GLMRUN, "chat", "nano", "--tools", str(tools), "--temp", "0")
    wait_for(chat, PROMPT)
    chat.type("What time is it in Rome?\r")
    wait_for(chat, r"^  run it\? y: yes, N: no, a: always get_time \[y/N/a\]$")
    chat.type("x")
    wait_for(chat, r"^  press y, n or a, not 'x' \[y/N/a\]$")
    chat.type("y")
    screen = timeless(wait_for(chat, r"^It is(.|\n)*" + PROMPT))
    assert re.sub(r"\d+ (tokens|read|cached)", r"# \1", screen[screen.index(">>> What") : screen.rindex(">>>")]).split("\n") == [
        ">>> What time is it in Rome?",
        "▸ thought for # s · # tokens",
        "# tokens, # tok/s · prompt # read in # s, # tok/s",
        '● get_time(city="Rome")',
        "  run it? y: yes, N: no, a: always get_time [y/N/a]",
        "  press y, n or a, not 'x' [y/N/a] yes",
        "  └ 18:03",
        "▸ thought for # s · # tokens",
        "It is 18:03 in Rome.",
        "# tokens, # tok/s · prompt # read in # s, # tok/s · # cached",
        "",
        "",
    ]
    chat.type("What time is it in Rome?\r")
    wait_for(chat, r"^  run it\? .*\[y/N/a\]$", 2)
    chat.type("\x03")
    wait_for(chat, r"^  run it\? y: yes, N: no, a: always get_time \[y/N/a\]\n\(stopped\)$")
    run = window(*GLMRUN, "run", "nano", "What time is it in Rome?", "--tools", str(tools), "--temp", "0")
    wait_for(run, r"^  run it\? .*\[y/N/a\]$")
    run.type("\x03")
    wait_for(run, r"^  run it\? y: yes, N: no, a: always get_time \[y/N/a\]\n\(stopped\)\nexit code 130$")


@pytest.mark.parametrize("columns", [20, 80])
def test_a_slow_tool_is_seen_to_run(window: Callable[..., Window], tmp_path: Path, columns: int) -> None:
    """The question is whole words, the seconds go on, and what is typed meanwhile stands beside them."""
    (tmp_path / "slow.py").write_text(CLOCK.replace("    return", "    import time\n    time.sleep(600)\n    return"))
    chat = window(*GLMRUN, "chat", "nano", "--temp", "0", "--tools", str(tmp_path / "slow.py"), columns=columns, rows=40)
    wait_for(chat, "^>>> Ask")
    chat.type("What time is it in Rome?\r")
    asked = wait_for(chat, r"\[y/N/a\]")
    assert {"run", "it?", "yes,", "no,", "always", "get_time", "[y/N/a]"} <= {*asked.split()}
    chat.type("x")
    told = wait_for(chat, r"\[y/N/a\]", 2)
    assert {"press", "not", "'x'"} <= {*told.split()}
    chat.type("y")
    wait_for(chat, r"^\S running.* 0:00:\d\d")
    chat.type("and then")
    wait_for(chat, r"0:00:\d\d >>> and then$" if columns == 80 else r"^\S …and then 0:00:\d\d$")
    chat.type("\x03")
    wait_for(chat, r"^>>> and then\n")


def test_a_pipe_gets_the_text_alone(window: Callable[..., Window]) -> None:
    run = window("sh", "-c", f"{sys.executable} -m glmrun run nano '{CODE}' --temp 0 | cat -v")
    screen = timeless(wait_for(run, "^exit code 0"))  # the thinking goes to the terminal, when the answer is still to come
    assert screen == f"▸ thought for # s · 13 tokens\n{ANSWER}exit code 0"


def test_a_conversation_in_a_window_that_changes(window: Callable[..., Window]) -> None:
    chat = window(*GLMRUN, "chat", "nano", "--temp", "0")
    wait_for(chat, PROMPT)
    screen = timeless(ask(chat, CODE, "37 tokens, "))
    assert (
        f">>> {CODE}\n▸ thought for # s · 13 tokens\n{ANSWER}37 tokens, # tok/s · prompt 13 read in # s, # tok/s\n\n>>>\n"
    ) in screen
    assert re.search(r"\nnano\S* · 49 / 8k · # tok/s\Z", screen)
    chat.type("\x0f")  # Ctrl+O
    wait_for(chat, "▾ thought for .*\nThe user wants a Python function that adds two numbers: add.\n>>>")
    chat.resize(40, 20)
    wait_for(chat, PROMPT)
    screen = ask(chat, "Write a long story", "cached")
    story = screen[screen.rindex("Once upon a time") : screen.rindex("tokens, ")]
    assert max(map(len, story.split("\n"))) in range(30, 41) and story.count("Once upon a time") == 1
    assert int(re.findall(r"prompt\s(\d+)\sread", screen)[-1]) < 20  # only what is new
    chat.type("\x04")
    assert wait_for(chat, "^exit code 0")


def test_ctrl_c_in_an_answer(window: Callable[..., Window]) -> None:
    chat = window(*GLMRUN, "chat", "nano", "--temp", "0", "--repeat-penalty", "0.1")  # so that it thinks for ever
    wait_for(chat, PROMPT)
    chat.type("What can you do?\r")
    screen = wait_for(chat, r"^▸ thinking [\d.]+ s · \d\d+ tokens · Ctrl\+O shows all(\n  \S.*){3}\n+nano")
    assert "▸ thought" not in screen
    chat.type("\x03")
    screen = wait_for(chat, r"stopped(.|\n)*" + PROMPT)
    assert re.search(r">>> What can you do\?\n▸ thought for [\d.]+ s · [\d,]+ tokens\n\(stopped\)\n[\d,]+ tokens, ", screen)
    assert "thinking" not in screen
    chat.type("/set repeat-penalty 1\r")
    wait_for(chat, r"repeat-penalty  1.0 (.|\n)*" + PROMPT)
    ask(chat, "What is 17 + 25?", "42")


def test_ctrl_c_while_the_prompt_is_read(window: Callable[..., Window], tmp_path: Path) -> None:
    long = tmp_path / "long.txt"
    long.write_text("The quick brown fox jumps over the lazy dog.\n" * 350)
    chat = window(*GLMRUN, "chat", "nano", "--temp", "0", "-t", "1", columns=100)
    wait_for(chat, PROMPT)
    chat.type(f"@{long} Sum it up\r")
    wait_for(chat, r"^reading the prompt \S+ [\d,]+ / 7,\d\d\d · ")
    chat.type("\x03")
    screen = wait_for(chat, r"stopped(.|\n)*" + PROMPT)
    assert "reading the prompt" not in screen and re.search(r"\(stopped\)\n[\d,]+ of 7,\d\d\d tokens of the prompt are", screen)
    ask(chat, "/undo", "taken back")
    ask(chat, CODE, "return a \\+ b")


def test_resumed_after_kill(window: Callable[..., Window], tmp_path: Path) -> None:
    started = ["sh", "-c", f'echo $$ > {tmp_path}/pid; exec "$@"', "sh"]
    chat = window(*started, *GLMRUN, "chat", "nano", "--temp", "0")
    wait_for(chat, PROMPT)
    ask(chat, "My name is Maria.", "Nice to meet you, Maria!")
    ask(chat, "/set repeat-penalty 0.1", "0.1 ")
    chat.type("What can you do? " * 12 + "\r")  # more tokens than the penalty looks back at: it thinks for ever
    wait_for(chat, "^▸ thinking")
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    wait_for(chat, "^exit code 137")

    again = window(*GLMRUN, "chat", "nano", "--temp", "0", "--continue", rows=30)
    screen = wait_for(again, PROMPT)
    assert "3 messages" in screen and "> What can you do?" in screen
    ask(again, "/undo", "taken back")
    ask(again, "What is my name?", "Your name is Maria.")
