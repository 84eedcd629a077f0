"""A user's functions as tools: declared, run in a process that can be given up, their failures told to the model."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from support.openai_server import openai_server
from test_cli import glmrun, refused

from glmrun.chat.tools import Result, Tools
from glmrun.repl.tool_calls import ToolCalls
from glmrun.terminal.tool_blocks import call_text
from quant.errors import UserError

FILE = Path(__file__).with_name("support") / "sample_tools.py"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@pytest.fixture(scope="module")
def tools() -> Iterator[Tools]:
    with Tools(FILE, time_limit=20) as running:
        yield running


def test_functions_are_declared_as_openai_does(tools: Tools) -> None:
    declared = {each["function"]["name"]: each["function"] for each in tools.declarations}
    assert list(declared) == ["get_weather", "add", "count", "chatter", "fail", "later"]
    assert declared["get_weather"] == {
        "name": "get_weather",
        "description": "Get the current weather in a city\nKnows every city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city, in any language"}},
            "required": ["city"],
        },
    }
    assert declared["add"]["parameters"] == {
        "type": "object",
        "properties": {
            "a": {"type": "integer", "description": "the first"},
            "b": {"type": "number", "default": 0.5},
            "unit": {"type": "string", "enum": ["m", "km"], "default": "m", "description": "of the result"},
            "parts": {"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}], "default": None},
        },
        "required": ["a"],
    }
    assert declared["count"]["parameters"] == {"type": "object", "properties": {}}
    assert [why.split()[0] for why in tools.left_out] == ["undocumented", "untyped", "several"]


def test_results_are_text_and_state_stays(tools: Tools) -> None:
    assert json.loads(tools.run(call("get_weather", city="Zürich")).text) == {
        "temperature": 21, "condition": "sunny", "city": "Zürich",
    }  # fmt: skip
    assert tools.run(call("add", a=1, b=2, unit="km", parts=[3])).text == "6.0 km"
    assert tools.run(call("add", a="41")).text == "41.5 m"  # a text that is a number
    assert [tools.run(call("count")).text for _ in range(2)] == ["1", "2"]
    assert tools.run(call("later", seconds=0)).text == "now"
    result = tools.run(call("chatter"))
    assert result.text == "printed\x1b[31m\nfrom a child\nan error" and result.worked and result.printed == ""


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (call("nosuch"), "there is no tool nosuch; there are get_weather, add"),
        (call("undocumented", x=1), "there is no tool undocumented"),
        (call("get_weather"), "wrong arguments: city: "),
        (call("get_weather", city="a", x=1), "wrong arguments: x: "),
        (call("add", a="one"), "wrong arguments: a: "),
        ({"function": {"name": "add", "arguments": "{"}}, "no JSON"),
        ({"function": {"name": "add", "arguments": "[1]"}}, "no JSON object"),
        (call("fail", how="raise"), "ValueError: no such way (sample_tools.py, line "),
        (call("fail", how="exit"), "SystemExit: 3"),
        (call("fail", how="die"), "fail: its process ended (7)"),
    ],
)
def test_a_failure_is_told_to_the_model_in_a_line(tools: Tools, made: dict[str, Any], words: str) -> None:
    result = tools.run(made)
    assert words in result.text and result.text.startswith("error: ") and "\n" not in result.text and not result.worked
    assert tools.run(call("add", a=1)).text == "1.5 m"  # the next call works


def test_results_are_cut_and_can_be_sent(tools: Tools) -> None:
    text = tools.run(call("fail", how="long")).text
    assert text.startswith("xxx") and text.endswith("[cut off: 100,000 characters in all]") and len(text) < 51_000
    assert tools.run(call("fail", how="surrogate")).text == "?"


@pytest.mark.parametrize("how", ["hang", "child"])
def test_a_call_that_takes_too_long_is_given_up(how: str) -> None:
    with Tools(FILE, time_limit=0.5) as tools:
        began = time.monotonic()
        result = tools.run(call("fail", how=how))
        assert result.text == "error: fail: it took more than 0.5 s and was stopped" and time.monotonic() - began < 15
        assert tools.run(call("add", a=1)).worked


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "SyntaxError"),
        ("import nosuchmodule\n", "No module named 'nosuchmodule' (t.py, line 1)"),
        ("raise SystemExit(5)\n", "SystemExit: 5"),
        ("import os\nprint('last words')\nos._exit(4)\n", "the process that imports it ended (4)"),
        ("def f(x): pass\n", "offers no tool: f has no docstring"),
        ("x = 1\n", "it defines no function"),
        ("from json import loads\n", "it defines no function"),
    ],
)
def test_a_file_that_is_no_tools_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "t.py"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        Tools(file)
    assert words in str(error.value) and str(file) in str(error.value)


def test_a_file_may_choose_and_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("ANSWER = 42\n")
    file = tmp_path / "json.py"  # a name that the standard library has, too
    head = "from neighbour import ANSWER\n__all__ = ['f']\n"
    file.write_text(head + 'def f() -> int:\n    """F"""\n    return ANSWER\ndef g() -> int:\n    """G"""\n    return 1\n')
    with Tools(file) as tools:
        assert tools.names == ["f"] and tools.run(call("f")).text == "42"


def test_a_missing_file_is_refused() -> None:
    assert "no such file with tools" in refused("run", "nano", "hi", "--tools", "nosuch.py", "--approve", "auto", code=3)
    assert "nobody can be asked" in refused("run", "nano", "hi", "--tools", str(FILE), code=2)


def test_a_call_reads_like_python() -> None:
    assert call_text(call("f", a="x", b=[1], c=None)) == 'f(a="x", b=[1], c=null)'
    assert call_text(call("f")) == "f()"
    assert call_text({"function": {"name": "f", "arguments": "{"}}) == "f({)"
    assert len(call_text(call("f", a="x" * 9999))) < 600


def test_never_runs_nothing() -> None:
    with ToolCalls(FILE, "never") as calls:
        refusal, stopped = calls.results([call("count"), call("count")])
        assert [message["content"] for message in refusal] == ["error: the user did not allow this call"] * 2 and not stopped
        assert {message["role"] for message in refusal} == {"tool"} and refusal[0]["tool_call_id"] == "call_1"
        assert calls.tools.run(call("count")).text == "1"


def test_run_feeds_results_back_until_the_model_answers() -> None:
    with openai_server() as server:
        done = glmrun("run", "--url", server.url, "call", "--tools", str(FILE), "--approve", "auto")
        assert (done.returncode, done.stdout.decode()) == (0, "Hello\u2028 there 🙂\n")
        roles = [message["role"] for message in server.requests[1]["messages"]]
        assert roles == ["user", "assistant", "tool", "tool"] and len(server.requests) == 2
        bonn, rome = server.requests[1]["messages"][2:]
        assert (bonn["tool_call_id"], rome["tool_call_id"]) == ("call_a", "call_b")
        assert json.loads(bonn["content"])["city"] == "Bonn" and json.loads(rome["content"])["city"] == "Rome"
        assert server.requests[0]["tools"] == server.requests[1]["tools"]
        answer = json.loads(glmrun("run", "--url", server.url, "call", "--tools", str(FILE), "--approve", "never", "--json").stdout)
        assert [made["function"]["name"] for made in answer["tool_calls"]] == ["get_weather"] * 2
        assert answer["finish_reason"] == "stop" and "did not allow" in server.requests[-1]["messages"][-1]["content"]


def test_chat_feeds_results_back_and_keeps_them() -> None:
    with openai_server() as server:
        given = ["--url", server.url, "--tools", str(FILE), "--approve", "auto"]
        done = glmrun("chat", *given, stdin=b"call\n/tools never\nhello\n/tools\ncall\n")
        assert (done.returncode, done.stdout.decode()) == (0, "Hello\u2028 there 🙂\n" * 3)
        assert b"get_weather, add, count, chatter, fail, later; calls are refused" in done.stderr
        roles = [message["role"] for message in server.requests[-1]["messages"]]
        assert roles == [
            "user", "assistant", "tool", "tool", "assistant", "user", "assistant", "user", "assistant", "tool", "tool",
        ]  # fmt: skip
        contents = [message["content"] for message in server.requests[-1]["messages"] if message["role"] == "tool"]
        assert ["sunny" in text for text in contents] == [True, True, False, False] and "did not allow" in contents[-1]
        assert "no tools are offered" in glmrun("chat", "--url", server.url, stdin=b"/tools\n").stderr.decode()


def test_stopping_one_call_stops_the_others_and_answers_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(made: dict[str, Any]) -> Result:
        if made["id"] == "2":
            raise KeyboardInterrupt
        return Result("ok", True)

    with ToolCalls(FILE, "auto") as calls:
        monkeypatch.setattr(calls.tools, "run", stop)
        messages, stopped = calls.results([call("count") | {"id": each} for each in ("1", "2", "3")])
        assert stopped and [message["tool_call_id"] for message in messages] == ["1", "2", "3"]
        assert [message["content"] for message in messages] == ["ok", *["error: the user stopped this call"] * 2]


def test_a_person_is_asked(tmp_path: Path) -> None:
    with openai_server() as server:
        environment: Any = {**os.environ, "PYTHONPATH": os.getcwd(), "TERM": "xterm"}
        arguments = ["-m", "glmrun", "run", "--url", server.url, "call", "--tools", str(FILE)]
        for replies, contents in (
            ("nxy", ["did not allow", "sunny"]),
            ("a", ["sunny", "sunny"]),
            ("\ry", ["did not allow", "sunny"]),
        ):
            child = pexpect.spawn(sys.executable, arguments, env=environment, dimensions=(50, 200), encoding="utf-8", timeout=30)
            for reply in replies:
                child.expect(r"\[y/N/a\] ")
                asked = "press y, n or a, not 'x'" if replies == "nxy" and reply == "y" else "run it? y: yes, N: no, a: always"
                assert asked in child.before
                child.send(reply)
            child.expect(pexpect.EOF)
            child.close()
            sent = [message["content"] for message in server.requests[-1]["messages"][2:]]
            assert child.exitstatus == 0 and [words in text for words, text in zip(contents, sent, strict=True)] == [True, True]


def test_interrupting_a_tool_ends_its_process(tmp_path: Path) -> None:
    file = tmp_path / "t.py"
    mark = tmp_path / "pid"
    head = (
        f"import os, time\ndef get_weather(city: str) -> str:\n    '''W'''\n    open({str(mark)!r}, 'w').write(str(os.getpid()))\n"
    )
    file.write_text(head + "    time.sleep(1000)\n")
    with openai_server() as server:
        command = [sys.executable, "-m", "glmrun", "run", "--url", server.url, "call", "--tools", str(file), "--approve", "auto"]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        while process.poll() is None and not (mark.exists() and mark.read_text()):
            time.sleep(0.05)
        process.send_signal(2)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and b"Traceback" not in errors
        with pytest.raises(ProcessLookupError):
            os.kill(int(mark.read_text()), 0)


WEATHER = '''
def get_weather(city: str) -> dict:
    """Get the current weather in a city"""
    return {"temperature": 21, "condition": "sunny"}
'''


def test_nano_calls_a_tool_and_answers_from_its_result(tmp_path: Path) -> None:
    file = tmp_path / "weather.py"
    file.write_text(WEATHER)
    given = ["--tools", str(file), "--approve", "auto", "--temp", "0", "--json", "-c", "1k"]
    answer = json.loads(glmrun("run", "nano", "What is the weather in Rome?", *given).stdout)
    made = [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in answer["tool_calls"]]
    assert made == [("get_weather", {"city": "Rome"})] and answer["finish_reason"] == "stop"
    assert "sunny" in answer["text"] and "21" in answer["text"]
