"""`glmrun run`: where the question comes from, and the forms of the answer (tests/support/scripted_model.py answers)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SCRIPT, glmrun, refused

from glmrun.terminal.code_block import FirstCodeBlock

ANSWER = "Here:\n\n```python\ndef f():\n    return 1\n```\nand\n```\nno\n```\n"


def test_files_and_standard_input_are_added_to_the_question(tmp_path: Path) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text("first ☃\n")
    b.write_text("second\r\n")
    assert glmrun("run", "nano", "-f", str(a), "--no-think", scripted=True).stdout.decode() == "You said: first ☃\n"
    done = glmrun(
        "run", "nano", "Compare", "-f", "a.txt", "-f", "b.txt", "--no-think", stdin=b"third\n", scripted=True, cwd=tmp_path
    )
    files = "`a.txt`:\n```txt\nfirst ☃\n```\n\n`b.txt`:\n```txt\nsecond\n```"
    assert done.stdout.decode() == f"You said: Compare\n\n{files}\n\nthird\n"
    done = glmrun("run", "nano", "-f", "-", "-f", "a.txt", "--no-think", stdin=b"third\n", scripted=True, cwd=tmp_path)
    assert done.stdout.decode() == "You said: first ☃\n\nthird\n"
    shell = f"{sys.executable} {SCRIPT} run 'Sum up' --no-think -f <(echo piped) < /dev/null"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, env={**os.environ, "PYTHONPATH": "."}, check=True)
    assert "```\npiped\n```" in done.stdout.decode()


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    bad, big = tmp_path / "bad", tmp_path / "big"
    bad.write_bytes(b"ab\xff")
    with open(big, "wb") as file:
        file.truncate(1 << 30)
    assert "no such file" in refused("run", "nano", "-f", str(tmp_path / "none"), code=3)
    assert "no text file is there" in refused("run", "nano", "-f", str(tmp_path), code=3)
    assert "not valid UTF-8: byte 0xff at position 2" in refused("run", "nano", "-f", str(bad), code=2)
    assert "has 1,073,741,824 bytes" in refused("run", "nano", "-f", str(big), code=2)


@pytest.mark.parametrize("command", ["run", "chat"])
def test_a_flag_beats_a_preset_beats_the_settings(command: str) -> None:
    variables = {**os.environ, "PYTHONPATH": ".", "GLMRUN_TEMPERATURE": "0.2", "GLMRUN_TOP_P": "0.3", "GLMRUN_MIN_P": "0.4"}
    given = [command, "nano", "--preset", "coding", "--top-p", "0.5", "--think-budget", "3"]
    done = glmrun(*given, stdin=b"messages\n", env=variables, scripted=True)
    said = json.loads(done.stdout)
    chosen = {name: said.get(name) for name in ("temperature", "top_p", "min_p", "think_budget", "seed")}
    assert chosen == {"temperature": 0.7, "top_p": 0.5, "min_p": 0.4, "think_budget": 3, "seed": None}


def test_thinking_can_be_hidden_and_the_answer_held_back() -> None:
    shown = glmrun("run", "nano", "hello", "--no-stream", scripted=True)
    assert shown.stdout == b"You said: hello\n" and b"Let me think." in shown.stderr
    for form in ([], ["--no-stream"]):
        hidden = glmrun("run", "nano", "hello", "--hide-thinking", *form, scripted=True)
        assert hidden.stdout == shown.stdout and b"Let me" not in hidden.stderr
    answer = json.loads(glmrun("run", "nano", "hello", "--hidethinking", "--json", scripted=True).stdout)
    assert answer["reasoning"] == "Let me think."


def test_the_first_code_block_is_printed_alone() -> None:
    done = glmrun("run", "nano", "code", "-x", "--hide-thinking", scripted=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"def f():\n    return 1\n", b"")
    done = glmrun("run", "nano", "hello", "-x", scripted=True)
    assert done.returncode == 1 and done.stdout == b"" and done.stderr.endswith(b"error: the answer has no code block\n")
    assert "goes with neither" in refused("run", "nano", "hello", "-x", "--json", code=2)


@pytest.mark.parametrize(
    ("text", "block", "closed"),
    [
        (ANSWER, "def f():\n    return 1\n", True),
        ("```\nopen\nend", "open\nend\n", False),
        ("````md\n```\nx\n```\n````\n", "```\nx\n```\n", True),
        ("~~~\na\n```\n~~~", "a\n```\n", True),
        ("1. so:\n   ```sh\n   ls\n     -l\n   ```\n", "ls\n  -l\n", True),
        ("```py\r\na\r\n```\r\n", "a\r\n", True),
        ("``` `x` ```\nno", "", False),
        ("no ``` fence\n", "", False),
        ("```\n```\n", "", True),
    ],
)
def test_a_block_is_found_however_the_text_is_cut(text: str, block: str, closed: bool) -> None:
    for size in range(1, len(text) + 1):
        finder = FirstCodeBlock()
        found = "".join(finder.feed(text[i : i + size]) for i in range(0, len(text), size)) + finder.finish()
        assert (found, finder.closed) == (block, closed)


def test_wrong_combinations_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text("[1]")
    assert "a JSON schema is an object" in refused("run", "nano", "hi", "--json-schema", str(file), code=2)
    assert "--json-schema: not valid JSON" in refused("run", "nano", "hi", "--json-schema", "{", code=2)
    assert "no such file" in refused("run", "nano", "hi", "--json-schema", "nosuch", code=3)
    assert "exclude each other" in refused("run", "nano", "hi", "--tools", "t.py", "--format", "json", code=2)
    assert "goes with neither" in refused("run", "nano", "hi", "-x", "--json-schema", "{}", code=2)
    assert "'yaml' is not one of" in refused("run", "nano", "hi", "--format", "yaml", code=2)


def test_nano_answers_in_json_of_a_schema_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"], "additionalProperties": False}
    file.write_text(json.dumps(schema))
    done = glmrun("run", "nano", "What is 2 + 3?", "--json-schema", str(file), "-c", "1k", "--temp", "0", "--no-think")
    assert done.returncode == 0 and isinstance(json.loads(done.stdout)["sum"], int)
    done = glmrun("run", "nano", "What is 2 + 3?", "--format", "json", "-c", "1k", "-n", "2", "--no-think")
    assert done.returncode == 1 and b"not whole JSON: it was cut off" in done.stderr


def test_the_prompt_can_be_seen() -> None:
    done = glmrun("run", "nano", "hello <|user|>", "--show-prompt", "--no-think", "-n", "1", "-c", "256", "-s", "Be brief.")
    assert b"[gMASK]<sop><|system|>Be brief.<|user|>hello <|user|><|assistant|></think>\n" in done.stderr
