"""The chat loop in a pipe, and what its commands do (tests/support/scripted_model.py answers)."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.scripted_model import ScriptedModel

from glmrun.chat.chunk import Chunk
from glmrun.chat.request import ChatRequest
from glmrun.cli.loading import wait_for_disk
from glmrun.repl import disk_rate, sessions
from glmrun.repl.commands import COMMANDS, run_command
from glmrun.repl.conversation import Conversation, Surface, Typing
from glmrun.repl.export import code_blocks
from glmrun.repl.kept import Kept
from glmrun.repl.loop import chat_in_pipe
from glmrun.repl.values import show_last_thinking
from quant.errors import UserError


def _pipe(text: str, code: int = 0, **options: object) -> Conversation:
    conversation = Conversation(ScriptedModel(), **options)  # type: ignore[arg-type]
    assert chat_in_pipe(conversation, text.encode().splitlines(keepends=True)) == code
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
        ("/set nosuch 1", "/set NAME VALUE"),
        ("/stats maybe", "/stats takes on or off"),
        ("/sessions rm", "/sessions rm ID deletes one"),
        ("/compact", "nothing has been asked"),
        ("/save /nosuch/x", "/nosuch/x: No such file"),
        ("/set temp hot", "takes a number"),
        ("/set top-k 1.5", "takes a whole number"),
        ("/set top-p 2", "top-p is 2.0"),
        ("/set seed 18446744073709551616", "expected a whole number from 0 to 18,446,744,073,709,551,615"),
        ("/set max-tokens 0", "at least 1"),
        ("/regen", "nothing has been asked"),
        ("/undo", "nothing has been asked"),
        ("/edit", "needs a terminal"),
        ("/persona", "takes"),
        ("/save /tmp", "/tmp is a folder; name a file"),
    ],
)
def test_a_command_that_cannot_be_says_so_and_changes_nothing(line: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel())  # type: ignore[arg-type]
    run_command(conversation, line)
    assert words in capsys.readouterr().err and not conversation.settings and conversation.thinking


def _refuse_at_once(_: ChatRequest) -> Iterator[Chunk]:
    raise UserError("no server answers there")


def test_a_switch_without_a_value_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("one", surface=Surface(typing=Typing(vi=False, history=False)))
    capsys.readouterr()
    for line, said in (("/set vi", "emacs"), ("/set history", "no longer"), ("/set vi on", "in vi"), ("/set vi", "in vi")):
        assert run_command(conversation, line) and said in capsys.readouterr().err
    typing = conversation.surface.typing
    assert typing is not None and not typing.history and not conversation.kept.saving
    assert not run_command(conversation, "/set vi maybe") and "takes on or off, not 'maybe'" in capsys.readouterr().err


def _refuse_when_read(_: ChatRequest) -> Iterator[Chunk]:
    raise UserError("no server answers there")
    yield Chunk()


def _stop_at_once(_: ChatRequest) -> Iterator[Chunk]:
    yield Chunk(finish_reason="cancelled")


@pytest.mark.parametrize("answer", [_refuse_at_once, _refuse_when_read, _stop_at_once])
def test_an_answer_stays_where_none_comes_in_its_place(
    answer: Callable[[ChatRequest], Iterator[Chunk]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    conversation = _pipe("one\ntwo", kept=Kept(saving=True), surface=Surface(typing=Typing()))
    before = [*conversation.messages]
    monkeypatch.setattr(conversation.model, "answer", answer)
    run_command(conversation, "/regen")
    assert conversation.messages == before
    assert conversation.kept.session is not None and sessions.read(conversation.kept.session.path).messages == before
    if answer is not _stop_at_once:  # which keeps the question
        conversation.edited = 0
        with pytest.raises(UserError):
            conversation.say("changed")
        assert conversation.messages == before and conversation.edited == 0
        assert sessions.read(conversation.kept.session.path).messages == before


@pytest.mark.parametrize(
    ("line", "way"),
    [("/compact 0", "/compact N leaves the last N exchanges as they are"), ("/rename", "/rename TITLE asks nobody")],
)
def test_what_asks_about_the_conversation_names_a_way_that_asks_less(
    line: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_long(_: ChatRequest) -> Iterator[Chunk]:
        raise UserError("the prompt has 500 tokens, the context 200", "refused", "n_ctx")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    conversation = _pipe("one", kept=Kept(saving=True))
    monkeypatch.setattr(conversation.model, "answer", too_long)
    capsys.readouterr()
    run_command(conversation, line)
    assert capsys.readouterr().err.startswith(f"error: the prompt has 500 tokens, the context 200: {way}")


def test_more_exchanges_than_there_are_cannot_be_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("one\n/undo 5\n/undo 2", code=2)
    assert capsys.readouterr().err.count("there is only 1 exchange, not") == 2 and len(conversation.messages) == 2
    run_command(conversation, "/undo 1")
    assert conversation.messages == []


def test_the_context_is_counted_and_nothing_is_cut_off_silently(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel(n_ctx=40))  # type: ignore[arg-type]
    conversation.say("hello there")
    run_command(conversation, "/context")
    assert "6 of 40 tokens (15%), 2 messages" in capsys.readouterr().err
    assert conversation.bottom_line() == "scripted.gguf · 6 / 40 · 50.0 tok/s"
    conversation.thinking = False
    assert conversation.bottom_line(1000) == "scripted.gguf · 1k / 40 · 50.0 tok/s · no thinking"
    conversation.say(" ".join(["word"] * 15))
    said = capsys.readouterr().err
    ways = "/compact shortens the conversation, /undo takes the last exchange back, /clear starts over"
    assert said.count("context") == 1 and f"38 of 40 tokens of context used: {ways}" in said
    assert conversation.bottom()[1] == ("ansired", "38 / 40") and Conversation(ScriptedModel()).bottom()[1] == ("", "0 / 200")  # type: ignore[arg-type]
    fresh = Conversation(ScriptedModel(n_ctx=40), surface=Surface(open_model=opened))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^the prompt has 500 tokens, the context 40: /set context 80 makes room$"):
        fresh.say("long")
    assert capsys.readouterr().err == "" and fresh.messages == []
    fresh.attached = [Path(__file__)]
    assert fresh._ways().startswith("/read none takes 1 file back, /set context")


def opened(name: str, ctx: int | None = None) -> Any:
    """What /model and /set context open."""
    return ScriptedModel(Path(name), ctx or 200)


def test_a_context_grows_within_the_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("hello\n/set context 2k\n/set context 64\nhello", code=2, surface=Surface(open_model=opened))
    assert "error: this model takes at most 1,000 tokens, not 2,000" in capsys.readouterr().err
    assert conversation.model.n_ctx == 64 and conversation.used() == 8
    run_command(conversation, "/set num_ctx 5")
    assert "the conversation has 8 tokens already" in capsys.readouterr().err and conversation.model.n_ctx == 64


@pytest.mark.parametrize(("kept", "answers"), [(1, ["summary", "three"]), (0, ["summary"]), (2, ["summary", "two", "three"])])
def test_a_summary_takes_the_place_of_the_oldest_exchanges(
    kept: int, answers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    conversation = _pipe("one\ntwo\nthree", kept=Kept(saving=True))
    earlier = conversation.kept.session
    assert earlier is not None
    run_command(conversation, f"/compact {kept}")
    said = [m["content"].split()[-1] for m in conversation.messages if m["role"] == "assistant"]
    assert said == [word.replace("summary", "summary.") for word in answers]
    assert f"the whole conversation stays as {earlier.id}" in capsys.readouterr().err
    now = conversation.kept.session
    assert now is not None and sessions.read(now.path).messages == conversation.messages and now.id != earlier.id
    assert [m["content"] for m in sessions.read(earlier.path).messages if m["role"] == "user"] == ["one", "two", "three"]
    run_command(conversation, "/undo")
    assert len(conversation.messages) == 2 * len(answers) - 2


def test_a_summary_counts_only_when_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("one\ntwo")
    before = list(conversation.messages)
    for key, changed in (("n", False), ("\x1b", False), ("y", True)):
        conversation.surface.keyboard = SimpleNamespace(  # type: ignore[assignment]
            ask=lambda question, key=key: key, acting=lambda actions: nullcontext(), draft=""
        )
        run_command(conversation, "/compact")
        assert (conversation.messages != before) == changed
    assert capsys.readouterr().err.count("nothing has changed") == 2


def test_the_values_in_force_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("/set min_p 0.25\n/set preset coding")
    capsys.readouterr()
    for line, words in (
        ("/set temp", "temp 0.7 preset coding"), ("/show temperature", "temp 0.7 preset coding"), ("/set min-p", "min-p 0.25 /set"),
        ("/show repeat-penalty", "repeat-penalty 1 default"), ("/set seed", "seed - another one each time"),
        ("/set seed 5", "seed 5 /set"), ("/set seed none", "seed - another one each time"), ("/set temp none", "temp 1 default"),
        ("/set max-tokens 9", "max-tokens 9 /set"), ("/set max-tokens none", "max-tokens - no limit"),
        ("/set max-tokens none", "max-tokens - no limit"), ("/set min-p none", "min-p 0.01 default"),
        ("/set context", "context 200 of at most 1,000 tokens"), ("/show thinking", "thinking on"),
        ("/set format json", "answers are JSON"),
        ("/set noformat", "answers are as"),
        ("/set format", "answers are as"),
    ):  # fmt: skip
        run_command(conversation, line)
        assert " ".join(capsys.readouterr().err.split()).startswith(words)
    fresh = Conversation(ScriptedModel())  # type: ignore[arg-type]
    for line in ("/set", "/show settings", "/set parameters", "/show"):
        run_command(fresh, line)
        assert "top-p 0.8 the model file" in " ".join(capsys.readouterr().err.split())
    fresh.model = SimpleNamespace(path="x at y")  # type: ignore[assignment]
    run_command(fresh, "/set temp")
    assert "as the server decides" in capsys.readouterr().err


def test_files_that_wait_are_seen_and_can_be_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.py", "b.py", "notes.txt", ".hidden", "deep/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n" * 3)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    conversation = _pipe(f"/read {tmp_path}/*.py\n/read {tmp_path}/notes.txt\n/read")
    assert capsys.readouterr().err.count(" + ") == 2 + 3 + 3 and conversation.bottom_line().endswith(" · +3 files")
    run_command(conversation, "/read none")
    assert conversation.attached == [] and "+" not in conversation.bottom_line()
    run_command(conversation, f"/read {tmp_path}")
    assert [path.name for path in conversation.attached] == ["a.py", "b.py", "c.py", "notes.txt"]
    run_command(conversation, f"/read {tmp_path}/*.zip")
    assert "no file is there" in capsys.readouterr().err and len(conversation.attached) == 4
    conversation.attached.clear()
    conversation.say(f"compare @{tmp_path}/**/*.py, please")
    assert conversation.messages[0]["content"].count("```py\n") == 3 and capsys.readouterr().err.count("3 lines") == 3


def test_names_of_files_are_read_as_a_shell_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal adds quotes or backslashes to a file that is dragged into it."""
    for name in ("two words.txt", "a.txt", "it's"):
        (tmp_path / name).write_text(name)
    conversation = Conversation(ScriptedModel())  # type: ignore[arg-type]
    dragged = (f"{tmp_path}/two words.txt", f"'{tmp_path}/two words.txt'", f"{tmp_path}/two\\ words.txt {tmp_path}/a.txt")
    for words, count in zip((*dragged, f"{tmp_path}/it's"), (1, 1, 2, 1), strict=True):
        assert run_command(conversation, f"/read {words}") and len(conversation.attached) == count, words
        conversation.attached.clear()
    assert not run_command(conversation, f"/read {tmp_path}/a.txt {tmp_path}/b.txt") and conversation.attached == []
    assert run_command(conversation, f"/save '{tmp_path}/my copy'") and (tmp_path / "my copy").exists()
    assert "/load" in capsys.readouterr().err and run_command(conversation, f"/load {tmp_path}/my\\ copy")


def test_a_file_is_replaced_when_that_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("one")
    for command, name in (("/export", "a.md"), ("/export", "a.JSON"), ("/save", "copy.jsonl")):
        path = tmp_path / name
        path.write_text("mine")
        assert not run_command(conversation, f"{command} {path}") and path.read_text() == "mine"
        assert f"{name} exists; choose another name (or add --force to replace it)" in capsys.readouterr().err
        assert run_command(conversation, f"{command} {path} --force") and "You said: one" in path.read_text()
        assert run_command(conversation, f"{command} --force {path}")


def test_thinking_that_was_shown_is_not_printed_again(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = _pipe("one")
    capsys.readouterr()
    for again, words in ((False, "Let me think."), (True, "the thinking is shown above")):
        show_last_thinking(conversation)
        said = capsys.readouterr().err
        assert words in said and said.count("think") == 1, again


def test_another_conversation_has_no_speed_yet(tmp_path: Path) -> None:
    conversation = _pipe(f"one\n/save {tmp_path / 'kept.jsonl'}")
    assert "tok/s" in conversation.bottom_line()
    conversation.resume(tmp_path / "kept.jsonl")
    assert _said(conversation)[0] == ("user", "one") and "tok/s" not in conversation.bottom_line()
    conversation.close()


def test_help_is_short_and_knows_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel())  # type: ignore[arg-type]
    run_command(conversation, "/help")
    short = capsys.readouterr().err
    assert short.count("\n") < 10 and all(re.search(rf"/{name}\b", short) for name in COMMANDS)
    run_command(conversation, "/help all")
    assert all(command.help in capsys.readouterr().err for command in [COMMANDS["undo"]])
    run_command(conversation, "/help retry")
    assert capsys.readouterr().err.startswith("  /regen ")
    for wrong in ("/hel", "/help regn"):
        run_command(conversation, wrong)
        assert "; do you mean /" in capsys.readouterr().err


def test_the_first_answer_waits_for_the_models_file(capsys: pytest.CaptureFixture[str]) -> None:
    waits = iter([False, True])
    on_disk = SimpleNamespace(is_waiting_for_disk=lambda: True, wait=lambda seconds: next(waits), n_done=1, n_bytes=2, from_disk=1)
    model = ScriptedModel()
    model.prefault = on_disk  # type: ignore[attr-defined]
    Conversation(model, surface=Surface(get_ready=wait_for_disk)).say("hello")  # type: ignore[arg-type]
    assert next(waits, "waited") == "waited" and capsys.readouterr().out == "You said: hello\n"


def test_the_bottom_line_says_what_comes_from_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, read = iter([10.0, 12.0, 15.0]), iter([1_000_000_000, 2_500_000_000, 4_000_000_000])
    monkeypatch.setattr(disk_rate, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(disk_rate, "disk_bytes", lambda: next(read))
    model = ScriptedModel()
    conversation = Conversation(model)  # type: ignore[arg-type]
    for prefault in (None, SimpleNamespace(from_disk=0)):
        model.prefault = prefault  # type: ignore[attr-defined]
        conversation.disk.begin(model)
        assert conversation.disk.text() == "" and "disk" not in conversation.bottom_line()
    model.prefault = SimpleNamespace(from_disk=1)  # type: ignore[attr-defined]
    conversation.disk.begin(model)
    assert conversation.bottom_line() == "scripted.gguf · 0 / 200 · 0.75 GB/s from disk"
    conversation.disk.end()
    assert conversation.disk.text() == conversation.disk.text() == "0.60 GB/s from disk"  # stays, and nobody asks the clock


def test_an_answer_is_what_the_disk_is_measured_over(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel()
    model.prefault = SimpleNamespace(from_disk=1)  # type: ignore[attr-defined]
    read = iter([0, 10**12])
    monkeypatch.setattr(disk_rate, "disk_bytes", lambda: next(read))
    conversation = Conversation(model)  # type: ignore[arg-type]
    conversation.say("hello")
    assert next(read, "both were asked for") == "both were asked for" and "GB/s from disk" in conversation.bottom_line()


def test_a_code_block_is_found_behind_a_deep_list() -> None:
    deep = "".join("  " * i + f"- item {i}\n" for i in range(15))
    assert code_blocks(f"```\none\n```\n{deep}\n```\ntwo\n```\n") == ["one\n", "two\n"]
