"""What a person keeps: calls of `run`, titles, prompts, personas."""

import json
import os
import re
from pathlib import Path

import pytest
from support.scripted_model import ScriptedModel
from test_cli import glmrun, refused

from glmrun.chat.schema import closed
from glmrun.cli.question import model_and_question
from glmrun.repl import sessions
from glmrun.repl.commands import run_command
from glmrun.repl.conversation import Conversation, Surface, Typing
from glmrun.repl.kept import Kept
from glmrun.settings import persona
from glmrun.store.prompts import filled, listed
from quant.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State and config of a user of the test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("GLMRUN_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    return tmp_path


def sent(*arguments: str) -> dict:
    """What `glmrun run` asks of the model."""
    done = glmrun("run", "nano", "messages", *arguments, scripted=True, env={**os.environ})
    assert done.returncode == 0, done
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_call_goes_on_from_the_last_one(home: Path) -> None:
    assert glmrun("run", "nano", "hello", "-s", "Be brief.", scripted=True, env={**os.environ}).returncode == 0
    said = sent("--continue")["messages"]
    assert [m["content"] for m in said] == ["Be brief.", "hello", "You said: hello", "messages"]
    assert [m["content"] for m in sent("--continue", "--no-log")["messages"]][:4] == [m["content"] for m in said]
    [path] = (home / "state" / "glmrun" / "runs").glob("*.jsonl")
    assert len(sessions.read(path).messages) == 4 and path.stat().st_mode & 0o777 == 0o600  # --no-log kept nothing
    listed_runs = glmrun("sessions", "--runs", "HELLO", "--json", env={**os.environ})
    assert [row["id"] for row in json.loads(listed_runs.stdout)] == [path.stem]
    assert b"nothing that is kept holds" in glmrun("sessions", "--runs", "absent", env={**os.environ}).stderr
    assert b"nothing is kept yet" in glmrun("sessions", env={**os.environ}).stderr
    assert glmrun("sessions", "--runs", "--rm", path.stem, env={**os.environ}).returncode == 0 and not path.exists()


def test_a_call_keeps_all_of_the_answer_whatever_of_it_is_printed() -> None:
    done = glmrun("run", "nano", "code", "-x", "--hide-thinking", scripted=True, env={**os.environ})
    assert done.stdout == b"def f():\n    return 1\n" and b"Let me" not in done.stderr
    answer = sent("--continue")["messages"][1]
    assert answer["content"] == "Here:\n\n```python\ndef f():\n    return 1\n```\n"
    assert answer["reasoning_content"] == "Let me think."


def test_an_answer_without_a_code_block_is_not_called_a_thought() -> None:
    done = glmrun("run", "nano", "code", "-x", "-n", "3", scripted=True, env={**os.environ})
    assert done.returncode == 1 and b"(stopped at the limit of 3 tokens)" in done.stderr


def test_a_call_that_goes_on_keeps_its_other_system_prompt_and_model(home: Path) -> None:
    for more in ([], ["--continue", "-s", "Be brief."]):
        assert glmrun("run", "nano", "hello", *more, scripted=True, env={**os.environ}).returncode == 0
    assert sent("--continue")["messages"][0] == {"role": "system", "content": "Be brief."}
    (other := home / "other.gguf").touch()
    assert glmrun("run", str(other), "hello", "--continue", scripted=True, env={**os.environ}).returncode == 0
    [path] = (home / "state" / "glmrun" / "runs").glob("*.jsonl")
    assert sessions.read(path).model == str(other)


def test_what_goes_on_keeps_its_system_prompt_but_for_a_persona(home: Path) -> None:
    (home / "personas").mkdir()
    (home / "personas" / "tutor.toml").write_text('system = "Teach."\n')
    sent("-s", "Be brief.")
    (home / "config.toml").write_text('system = "Be kind."\n')
    assert sent("--continue")["messages"][0]["content"] == "Be brief."
    assert sent("--continue", "--persona", "tutor")["messages"][0]["content"] == "Teach."
    saved = home / "saved.jsonl"
    sessions.write_copy(saved, "", "Be brief.", [])
    for more, system in (((), "Be brief."), (("--persona", "tutor"), "Teach."), (("-s", "Sing."), "Sing.")):
        done = glmrun("chat", "nano", "--resume", str(saved), *more, stdin=b"messages\n", scripted=True, env={**os.environ})
        assert json.loads(done.stdout)["messages"][0]["content"] == system


def test_the_log_can_be_switched_off(home: Path) -> None:
    (home / "config.toml").write_text("log = false\n")
    sent()
    assert not (home / "state" / "glmrun" / "runs").exists()
    assert "no earlier session" in refused("run", "hi", "--continue", code=3, scripted=True, env={**os.environ})


def test_a_conversation_gets_a_title(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel(), kept=Kept(saving=True))  # type: ignore[arg-type]
    conversation.say("hello")
    for line, title in (("/rename Our first talk", "Our first talk"), ("/rename", "You said: Give our conversation a title of at")):
        run_command(conversation, line)
        [(_, saved)] = sessions.listed()
        assert saved.title().startswith(title) and saved.messages == conversation.messages
    assert sessions.listed(9, ["FIRST"]) == [] and len(sessions.listed(9, ["title", "hello"])) == 1
    run_command(conversation, "/sessions hello")
    assert "Give our conversation" in capsys.readouterr().err
    run_command(conversation, f"/save {home / 'copy'}")
    conversation.resume(home / "copy")  # is kept from its first change on
    run_command(conversation, "/rename Another talk")
    run_command(conversation, "/compact 0")  # whose first message is the request for a summary
    called = [saved.messages[0]["content"][:9] for _, saved in sessions.listed() if saved.title() == "Another talk"]
    assert sorted(called) == ["Summarize", "hello"]
    capsys.readouterr()
    conversation.kept.saving = False
    run_command(conversation, "/rename")
    said = capsys.readouterr()
    assert "not being saved" in said.err and said.out == ""  # the model is not asked
    conversation.close()


def test_a_prompt_is_filled_in(home: Path) -> None:
    (home / "prompts").mkdir()
    (home / "prompts" / "review.md").write_text("# Review\nLook at this {{ language }} code, {{language}} only: {{what}}\n")
    assert listed() == [("review", "Review")]
    assert filled("review", {"language": "C", "what": "{{language}}"}) == "# Review\nLook at this C code, C only: {{language}}"
    for name, values, words in (
        ("review", {"language": "C"}, "wants what=VALUE"), ("review", {"language": "C", "what": "", "x": ""}, "has no variable x"),
        ("../config", {}, "there is no prompt"), ("absent", {}, r"\(review\)"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            filled(name, values)
    done = glmrun("run", "-T", "review", "language=C", "what=a=b", scripted=True, env={**os.environ})
    assert done.stdout == b"You said: # Review\nLook at this C code, C only: a=b\n"
    conversation = Conversation(ScriptedModel(), surface=Surface(Typing()))  # type: ignore[arg-type]
    run_command(conversation, '/prompt review language=C what="two words"')
    assert conversation.surface.typing is not None and conversation.surface.typing.draft.endswith("C only: two words")


def test_a_persona_stands_between_the_config_file_and_what_is_typed(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "config.toml").write_text("temperature = 0.5\ntop_p = 0.5\n")
    (home / "personas").mkdir()
    (home / "personas" / "tutor.toml").write_text('system = "Ask back."\ntemperature = 0.25\nthink = false\ntools = "t.py"\n')
    assert persona("tutor")["tools_file"] == str(home / "personas" / "t.py")
    (home / "personas" / "tutor.toml").write_text('system = "Ask back."\ntemperature = 0.25\nthink = false\n')
    said = sent("--persona", "tutor")
    assert (said["messages"][0]["content"], said["temperature"], said["top_p"], said["thinking"]) == ("Ask back.", 0.25, 0.5, False)
    assert sent("--persona", "tutor", "--temp", "0.75")["temperature"] == 0.75
    assert "there is no persona absent" in refused("run", "hi", "--persona", "absent", code=3, env={**os.environ})
    (home / "personas" / "bad.toml").write_text("temprature = 1\n")
    assert "no setting 'temprature'" in refused("chat", "--persona", "bad", code=2, env={**os.environ})
    conversation = Conversation(ScriptedModel(), surface=Surface(persona=persona))  # type: ignore[arg-type]
    run_command(conversation, "/persona tutor")
    run_command(conversation, "/set temp")
    said = capsys.readouterr().err
    assert conversation.system == "Ask back." and not conversation.thinking
    assert "persona tutor" in said and "from the start" not in said


def test_a_persona_counts_whole_within_a_chat(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "personas").mkdir()
    file = home / "personas" / "coder.toml"
    lines = 'preset = "coding"\ntemperature = 0.2\nmin_p = 0.2\nthink_budget = 7\npreserve_thinking = false\ntools = "t.py"\n'
    file.write_text(lines)
    conversation = Conversation(ScriptedModel(), surface=Surface(persona=persona))  # type: ignore[arg-type]
    run_command(conversation, "/persona coder")
    assert conversation.settings == {"temperature": 0.7, "top_p": 1.0, "min_p": 0.2}
    assert conversation.origins == {"temperature": "preset coding", "top_p": "preset coding", "min_p": "persona coder"}
    assert conversation.think_budget == 7 and not conversation.preserve_thinking
    assert "only from the start: glmrun chat --persona coder" in capsys.readouterr().err
    file.write_text(lines.replace("coding", "absent"))
    run_command(conversation, "/persona coder")
    assert "preset takes default, coding, agent, not 'absent'" in capsys.readouterr().err


def test_what_the_config_file_says_is_not_the_personas(home: Path) -> None:
    (home / "personas").mkdir()
    (home / "personas" / "tutor.toml").write_text("temperature = 0.25\n")
    (home / "config.toml").write_text("min_p = 0.2\n")
    done = glmrun("chat", "nano", "--persona", "tutor", scripted=True, env={**os.environ}, stdin=b"/set\n")
    origins = dict(re.findall(r"^  ([\w-]+) +\S+ +(.+)$", done.stderr.decode(), re.MULTILINE))
    assert (origins["temp"], origins["min-p"], origins["seed"]) == ("persona tutor", "the config file", "another one each time")


@pytest.mark.parametrize(
    ("words", "prompt", "meant"),
    [
        (["nano", "hi"], None, ("nano", "hi")), (["hi"], None, (None, "hi")), (["nano"], "hi", ("nano", "hi")),
        (["what", "is", "love"], None, (None, "what is love")), (["nano", "what", "is", "love"], None, ("nano", "what is love")),
        (["absent", "hi"], None, ("absent", "hi")), ([], None, (None, None)),
    ],
)  # fmt: skip
def test_words_without_quotes_are_one_question(words: list[str], prompt: str | None, meant: tuple[str | None, str | None]) -> None:
    assert model_and_question(words, None, prompt, None, False) == meant


def test_a_question_before_its_model_is_told() -> None:
    assert "do you mean glmrun run nano 'hello'?" in refused("run", "hello", "nano", code=3, env={**os.environ})


def test_a_schema_is_closed_unless_it_says_otherwise() -> None:
    age = {"age": {"type": "integer"}}
    strict = {"additionalProperties": False, "required": ["age"]}
    inner = {"type": "object", "properties": age}
    assert closed(inner) == {**inner, **strict}
    outer = {"type": "array", "items": inner}
    assert closed(outer) == {"type": "array", "items": {**inner, **strict}}
    assert closed({"properties": {"enum": inner}})["properties"]["enum"] == {**inner, **strict}
    for same in (
        {"type": "object"},
        {**inner, "required": [], "additionalProperties": True},
        {"allOf": [inner, inner]},
        {"items": True},
    ):
        assert closed(same) == same


def test_a_pipe_may_hold_more_than_is_read() -> None:
    done = glmrun("chat", "nano", "--no-think", stdin=b"hello\n/bye\nnever\n", scripted=True)
    assert (done.returncode, done.stdout) == (0, b"You said: hello\n") and b"Traceback" not in done.stderr


def test_a_wrong_command_in_a_pipe_is_wrong_usage() -> None:
    done = glmrun("chat", "nano", stdin=b"/frob\nhello\n", scripted=True, env={**os.environ})
    assert (done.returncode, done.stdout) == (2, b"You said: hello\n")
