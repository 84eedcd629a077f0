"""Checked answers: what counts as right, what a suite may say, and a run that was interrupted ends as a whole one."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import make_skills
import pytest
from nano.tools import TOOLS
from support.openai_server import delta, openai_server
from test_cli import glmrun as run
from test_cli import refused

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.measure.evaluation import Answered, ask, by_skill, evaluate, is_right, read_suite
from glmrun.store.nano import CHECKPOINT
from quant.errors import Interrupted, UserError
from quant.system import lock


def _suite(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return path


def _question(tmp_path: Path, **fields: Any) -> Any:
    return read_suite(_suite(tmp_path / "q.jsonl", {"prompt": "?"} | fields))[0]


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@pytest.mark.parametrize(
    ("check", "answer", "right", "wrong"),
    [
        ("exact", "The capital is Rome.", ["The capital\n is  Rome. "], ["the capital is Rome.", "The capital is Rome", ""]),
        ("regex", r"\bRome\b", ["It is Rome."], ["Romeo", "rome", ""]),
        ("regex", "(?i)^no", ["No, never"], ["Oh no"]),
        ("number", 42, ["42", "It is 6 * 7 = 42.", "**42**", "42.0", "$42", "4.2e1", "{42}", "21 + 21 = 42!"],
         ["421", "4 2", "", "none", "42 or 43", "x42", "-42"]),
        ("number", -3.5, ["-3.5", "\N{MINUS SIGN}3.5", "x = -3.5"], ["3.5", "-3.50001"]),
        ("number", 1234567, ["1,234,567 people", "1234567"], ["1,234", "567"]),
        ("number", 4, ["3-4", "7 - 3 = 4"], ["3 - -4"]),
        ("number", 0.5, [".5", "0.50"], ["5"]),
    ],
)  # fmt: skip
def test_what_is_right(tmp_path: Path, check: str, answer: Any, right: list[str], wrong: list[str]) -> None:
    question = _question(tmp_path, check=check, answer=answer)
    assert [is_right(question, text, []) for text in right + wrong] == [True] * len(right) + [False] * len(wrong)


def test_a_right_call_is_the_one_call_with_these_arguments(tmp_path: Path) -> None:
    question = _question(tmp_path, check="tool_call", answer={"name": "add", "arguments": {"a": 1, "b": "x"}})
    assert is_right(question, "", [_call("add", b="x", a=1)])
    wrong = [[], [_call("add", a=1)], [_call("add", a="1", b="x")], [_call("sub", a=1, b="x")], 2 * [_call("add", a=1, b="x")]]
    assert not any(is_right(question, "", calls) for calls in wrong)
    assert is_right(_question(tmp_path, check="tool_call", answer={"name": "now"}), "", [_call("now")])
    two = _question(
        tmp_path, check="tool_call", answer=[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 2}}]
    )
    one, other = _call("f", a=1), _call("f", a=2)
    assert is_right(two, "", [one, other]) and is_right(two, "", [other, one])
    assert not any(is_right(two, "", calls) for calls in ([one], [one, one], [one, other, other], [one, other, _call("now")]))
    assert not is_right(_question(tmp_path, answer="Yes"), "Yes", [_call("now")])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: not valid JSON: Expecting property name"),
        ('["prompt"]', "expected an object with keys among id, skill"),
        ('{"prompt": "?", "answer": "x", "anwser": "y"}', "expected an object with keys among"),
        ('{"answer": "x"}', "either messages, a list, or prompt, a text"),
        ('{"prompt": "?", "messages": [], "answer": "x"}', "either messages, a list, or prompt, a text"),
        ('{"prompt": 7, "answer": "x"}', "either messages, a list, or prompt, a text"),
        ('{"messages": "?", "answer": "x"}', "either messages, a list, or prompt, a text"),
        ('{"prompt": "?"}', "answer is None, which is nothing that check exact takes"),
        ('{"prompt": "?", "answer": true, "check": "number"}', "nothing that check number takes"),
        ('{"prompt": "?", "answer": "4", "check": "number"}', "nothing that check number takes"),
        ('{"prompt": "?", "answer": {}, "check": "tool_call"}', "has a name"),
        ('{"prompt": "?", "answer": [], "check": "tool_call"}', "has a name"),
        ('{"prompt": "?", "answer": [{"name": "f"}, "g"], "check": "tool_call"}', "has a name"),
        ('{"prompt": "?", "answer": "(", "check": "regex"}', "is not a regular expression"),
        ('{"prompt": "?", "answer": "x", "check": "judge"}', "expected exact, regex, number, tool_call"),
        ('{"prompt": "?", "answer": "x", "thinking": "no"}', "thinking and clear_thinking are true or false"),
        ('{"prompt": "?", "answer": "x", "max_tokens": 0}', "a whole number above 0"),
        ('{"prompt": "?", "answer": "x", "id": "first"}', "another question has the id 'first', too"),
        ('{"prompt": "?", "answer": "x", "id": "\\ud800"}', "id and skill are whole characters"),
        ("[" * 100_000, "line 2: "),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "first", "prompt": "?", "answer": "x"}\n' + line)
    with pytest.raises(UserError, match=r"q.jsonl, line 2: ") as caught:
        read_suite(tmp_path / "q.jsonl")
    assert words in str(caught.value)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no question"):
        read_suite(tmp_path / "q.jsonl")
    (tmp_path / "q.jsonl").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not valid UTF-8"):
        read_suite(tmp_path / "q.jsonl")


class Parrot:
    """Answers every question with its last message, letter by letter; a message "long" is cut off, "ctrl-c" too, "no" refused."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        asked = {name: getattr(request, name) for name in ("tools", "thinking", "clear_thinking", "max_tokens")}
        self.asked.append({**asked, **request.sampling})
        text = request.messages[-1]["content"]
        if text == "no":
            raise UserError("the prompt has too many tokens")
        yield Chunk(stats=Stats(n_prompt=3))
        for i, letter in enumerate(text, 1):
            yield Chunk(text=letter, reasoning="h", stats=Stats(n_prompt=3, n_generated=i))
        reason = {"long": "length", "ctrl-c": "cancelled"}.get(text, "stop")
        yield Chunk(finish_reason=reason, stats=Stats(n_prompt=3, n_generated=len(text)))


def test_an_answer_is_kept_with_its_counts(tmp_path: Path) -> None:
    parrot: Any = Parrot()
    lines = [
        {"prompt": "four", "answer": "four", "skill": "echo", "max_tokens": 9, "thinking": False, "clear_thinking": False},
        {"prompt": "long", "answer": "long", "skill": "echo"}, {"prompt": "no", "answer": "no", "tools": [{"type": "function"}]},
    ]  # fmt: skip
    questions = read_suite(_suite(tmp_path / "q.jsonl", *lines))
    answers = [ask(parrot.answer, question, 5, 7, temperature=0.5) for question in questions]
    settings = {"max_tokens": 7, "seed": 5, "temperature": 0.5, "tools": None}
    assert parrot.asked[0] == settings | {"thinking": False, "clear_thinking": False}
    assert parrot.asked[2] == settings | {"thinking": True, "clear_thinking": True, "tools": [{"type": "function"}]}
    assert [(a.id, a.right, a.finish_reason) for a in answers] == [
        ("1", True, "stop"), ("2", False, "length"), ("3", False, "refused: the prompt has too many tokens"),
    ]  # fmt: skip
    assert (answers[0].text, answers[0].reasoning, answers[0].n_prompt, answers[0].n_generated) == ("four", "hhhh", 3, 4)
    assert by_skill(answers) == {
        "echo": {"right": 1, "of": 2, "accuracy": 0.5, "error": 0.25},
        "all": {"right": 1, "of": 3, "accuracy": 0.3333, "error": 0.2191},
    }


def test_a_question_has_its_seed_wherever_a_run_begins(tmp_path: Path) -> None:
    questions = read_suite(_suite(tmp_path / "q.jsonl", *({"prompt": f"{i}", "answer": f"{i}"} for i in range(4))))
    parrot: Any = Parrot()
    first = [answer.id for answer in evaluate(parrot.answer, questions, {"1", "3"}, 10)]
    assert first == ["2", "4"] and [asked["seed"] for asked in parrot.asked] == [11, 13]


def test_a_cancelled_answer_is_none_and_the_last(tmp_path: Path) -> None:
    prompts = ("one", "ctrl-c", "two")
    questions = read_suite(_suite(tmp_path / "q.jsonl", *({"prompt": text, "answer": text} for text in prompts)))
    assert [answer.text for answer in evaluate(Parrot().answer, questions, set(), 0)] == ["one"]


def test_several_questions_at_a_time_get_the_same_answers(tmp_path: Path) -> None:
    questions = read_suite(_suite(tmp_path / "q.jsonl", *({"prompt": f"{i}", "answer": f"{i}"} for i in range(40))))
    together = threading.Barrier(4, timeout=60)

    def answer(request: ChatRequest) -> Iterator[Chunk]:
        together.wait()  # nobody gets an answer before four have asked
        yield Chunk(text=f"{request.messages[-1]['content']} {request.sampling['seed']}", finish_reason="stop")

    found = list(evaluate(answer, questions, set(), 10, parallel=4))
    assert sorted((int(each.id), each.text) for each in found) == [(i + 1, f"{i} {i + 10}") for i in range(40)]


def test_a_server_that_goes_away_ends_the_run(tmp_path: Path) -> None:
    questions = read_suite(_suite(tmp_path / "q.jsonl", *({"prompt": f"{i}", "answer": f"{i}"} for i in range(9))))

    def answer(request: ChatRequest) -> Iterator[Chunk]:
        if int(request.messages[-1]["content"]) >= 5:
            raise Interrupted("no server answers there")
        yield Chunk(text="x", finish_reason="stop")

    for parallel in (1, 3):
        found = []
        with pytest.raises(Interrupted):
            for each in evaluate(answer, questions, set(), 0, parallel=parallel):
                found.append(each)
        assert {each.finish_reason for each in found} <= {"stop"} and len(found) <= 5


# ---- nano's skills ---------------------------------------------------------------------------------------------------


def test_nanos_skills_are_the_questions_that_it_was_measured_on() -> None:
    skills = json.loads((CHECKPOINT / "evaluation.json").read_text(encoding="utf-8"))["skills"]
    questions = read_suite(CHECKPOINT / "skills.jsonl")
    counts = {skill: sum(q.skill == skill for q in questions) for skill in sorted({q.skill for q in questions})}
    assert counts == {skill: row["of"] for skill, row in skills.items()}
    written = make_skills.suite(make_skills.test_documents(random.Random("test 47"), 100))
    assert written == (CHECKPOINT / "skills.jsonl").read_text(encoding="utf-8")


def test_practice_holds_no_question_of_the_suite_and_tells_what_is_declared() -> None:
    asked = [d for d in make_skills.test_documents(random.Random("test 47"), 100) if d.text is None]
    assert make_skills.taught(asked, 1500, 47) == []
    documents = list(islice(make_skills.training_documents(random.Random(3), 1.0), 600))
    known = [d for d in documents if d.skill == "chat"]
    assert len(make_skills.taught(known, 1500, 3)) > 0.9 * len(known) > 20
    called = left = 0
    for document in documents:
        names = {tool["function"]["name"] for tool in document.tools or ()}
        for message in document.messages:
            calls = {call["function"]["name"] for call in message.get("tool_calls", ())}
            purpose = re.fullmatch(r"I have no tool for (.+), so I cannot tell\.", message["content"])
            missing = {tool.name for tool in TOOLS if purpose and tool.purpose == purpose[1]}
            invented = purpose[1].removeprefix("the ") if purpose and not missing else " "
            assert calls <= names and not missing & names and not any(name.endswith(f"_{invented}") for name in names)
            called, left = called + bool(calls), left + bool(purpose)
    assert 1.5 < called / left < 2.5  # what a refusal needs is seldom, and calls are what is refused too often


# ---- the command -----------------------------------------------------------------------------------------------------

_ASKED = [
    {"prompt": "What is the capital of France?", "check": "regex", "answer": "", "skill": "talks", "thinking": False},
    {"prompt": "Hello", "check": "exact", "answer": "nothing says this", "skill": "obeys", "max_tokens": 4},
    {"prompt": "What is 2 + 3?", "check": "regex", "answer": "", "skill": "talks", "max_tokens": 300, "thinking": False},
]


def test_the_command_goes_on_where_it_stopped(tmp_path: Path) -> None:
    file, out = str(_suite(tmp_path / "q.jsonl", *_ASKED)), tmp_path / "answers.jsonl"
    arguments = ["eval", file, "-t", "1", "-o", str(out)]
    whole = run(*arguments)
    table = [line.split() for line in whole.stdout.decode().splitlines()]
    assert whole.returncode == 0 and table[0] == ["skill", "right", "of", "accuracy"], whole.stderr
    assert table[1][:3] == ["obeys", "0", "1"] and table[2][:4] == ["talks", "2", "2", "100.0%"] and table[3][2] == "3"
    assert " ".join(table[-1]) == "answers cut off at the limit, which count as wrong: 1"
    about, *answers = map(json.loads, out.read_text().splitlines())
    assert (about["temperature"], about["top_p"], about["seed"], about["preset"]) == (1.0, 0.95, 0, "default")
    written = [Answered(**answer) for answer in answers]
    assert [(a.id, a.right, a.finish_reason) for a in written] == [("1", True, "stop"), ("2", False, "length"), ("3", True, "stop")]

    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # as a crash in the middle of a line leaves it
    again = run(*arguments, "--json")
    assert b"1 of 3 questions were answered before, in " in again.stderr and b"; delete it to ask them again" in again.stderr
    assert json.loads(again.stdout)["skills"]["all"] == {"right": 2, "of": 3, "accuracy": 0.6667, "error": 0.2191}
    same = [json.loads(line) | {"seconds": 0} for line in out.read_text().splitlines()[1:]]
    assert same == [answer | {"seconds": 0} for answer in answers]
    full = run(*arguments)
    assert full.stdout.splitlines()[:4] == whole.stdout.splitlines()[:4]  # nothing is left to ask
    assert b"3 of 3 questions were answered before, in " in full.stderr


def test_a_server_is_asked_several_questions_at_a_time(tmp_path: Path) -> None:
    lines = [{"prompt": f"q{i}", "answer": f"You said: q{i}", "skill": "echo"} for i in range(12)] + [
        {"prompt": "cut", "answer": ""}
    ]
    file, out = str(_suite(tmp_path / "q.jsonl", *lines)), tmp_path / "answers.jsonl"
    with openai_server() as server:
        arguments = ["eval", file, "--url", server.url, "--parallel", "4", "-o", str(out), "--seed", "3"]
        assert "stopped in the middle of the answer" in refused(*arguments, code=1)
        server.scripts["cut"] = [delta(content="x"), delta("stop")]
        n_asked = len(server.requests)
        done = run(*arguments, "--json")
        found = json.loads(done.stdout)
        assert done.returncode == 0 and (found["model"], found["server"]) == ("zai-org/GLM-4.7-Flash", server.url)
        assert found["skills"]["echo"] == {"right": 12, "of": 12, "accuracy": 1.0, "error": 0.0688}
        seeds = {request["messages"][0]["content"]: request["seed"] for request in server.requests}
        assert seeds == {f"q{i}": i + 3 for i in range(12)} | {"cut": 15}
        before = out.read_text().splitlines()
        assert len(before) == 14 and len(server.requests) - n_asked <= 13
        assert "the server decides about threads" in refused(*arguments, "-t", "2", code=2)


def test_answers_that_hold_any_character_are_read_again(tmp_path: Path) -> None:
    """Also those at which Python cuts lines, and calls whose arguments are no JSON."""
    call = delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{broken"}}])
    asked = [{"prompt": "lines", "answer": "a b"}, {"prompt": "call", "check": "tool_call", "answer": {"name": "f"}}]
    file, out = str(_suite(tmp_path / "q.jsonl", *asked)), tmp_path / "answers.jsonl"
    with openai_server() as server:
        server.scripts |= {"lines": [delta(content="a\u2028\x85\x0cb"), delta("stop")], "call": [call, delta("tool_calls")]}
        arguments = ["eval", file, "--url", server.url, "-o", str(out), "--json"]
        first = run(*arguments)
        assert first.returncode == 0 and json.loads(first.stdout)["skills"]["all"]["right"] == 1
        assert run(*arguments).stdout == first.stdout and len(server.requests) == 2


def test_another_runs_answers_are_not_mixed_in(tmp_path: Path) -> None:
    file, out = str(_suite(tmp_path / "q.jsonl", _ASKED[1])), tmp_path / "answers.jsonl"
    arguments = ["eval", file, "-t", "1", "-o", str(out)]
    assert run(*arguments).returncode == 0
    kept = out.read_bytes()
    line = refused(*arguments, "--temp", "0.5", "--preset", "coding", code=1)
    assert "another run's answers (other preset, temperature, top_p)" in line
    assert "holds no answers of glmrun eval" in refused("eval", file, "-o", file, code=1)
    (tmp_path / "notes").write_text("bread, milk")
    assert "holds no answers of glmrun eval" in refused("eval", file, "-o", str(tmp_path / "notes"), code=1)
    assert (tmp_path / "notes").read_text() == "bread, milk" and out.read_bytes() == kept
    assert "no such file" in refused("eval", str(tmp_path / "none"), code=3).lower()


def test_two_runs_at_once_do_not_mix_their_answers(tmp_path: Path) -> None:
    """The second one would read no answer and write each once more: 4 of 2 questions."""
    suite, kept = _suite(tmp_path / "q.jsonl", {"prompt": "hello", "check": "regex", "answer": "."}), tmp_path / "a.jsonl"
    arguments = ("eval", "nano", str(suite), "-o", str(kept), "-n", "1")
    with kept.open("a") as other:
        assert lock(other.fileno())
        assert "another process is writing" in refused(*arguments, code=1) and kept.read_bytes() == b""
    assert run(*arguments).returncode == 0 and len(kept.read_text().splitlines()) == 2


def test_settings_of_the_user_do_not_change_the_makers(tmp_path: Path) -> None:
    file, out = str(_suite(tmp_path / "q.jsonl", _ASKED[1])), tmp_path / "answers.jsonl"
    config = tmp_path / "config.toml"
    config.write_text("temperature = 0.2\nmax_tokens = 3\nseed = 9\n")
    mine = {**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_TEMPERATURE": "0.1", "GLMRUN_CONFIG": str(config)}
    assert run("eval", file, "-t", "1", "-o", str(out), "--top-p", "0.5", env=mine).returncode == 0
    about = json.loads(out.read_text().splitlines()[0])
    assert (about["temperature"], about["top_p"], about["max_tokens"], about["seed"]) == (1.0, 0.5, None, 0)


def test_ctrl_c_keeps_what_was_answered(tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    program = [sys.executable, "-m", "glmrun", "eval", "-t", "1", "-o", str(out), "--json"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        while process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 3):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        found, told = json.loads(process.stdout.read()), process.stderr.read()
    n_lines = out.read_bytes().count(b"\n")
    assert process.returncode == 130 and 2 <= found["skills"]["all"]["of"] == n_lines - 1
    assert f"interrupted after {n_lines - 1} of 1341 questions".encode() in told
