"""Journals of conversations: what was written is read, damage costs the damaged end, and one process at a time writes."""

import errno
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from test_cli import glmrun, refused

from glmrun.machine import cache_folder
from glmrun.repl import sessions
from quant.errors import UserError

MESSAGES = [
    {"role": "user", "content": 'first é\u2028\ud83d\n"quoted"'},
    {"role": "assistant", "content": "answer", "reasoning_content": "r", "token_ids": [1, 2, 3]},
    {"role": "user", "content": "second"},
]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "glmrun" / "sessions"


def journal() -> Path:
    session = sessions.create("m.gguf", "Be brief.", MESSAGES)
    session.close()
    return session.path


def test_what_was_written_is_read(state: Path) -> None:
    session = sessions.create("m.gguf", None, MESSAGES[:1])
    session.append("message", message=MESSAGES[1])
    session.append("system", text="Be brief.")
    session.append("message", message=MESSAGES[2])
    session.append("cut", keep=2)
    session.append("model", path="n.gguf")
    session.append("message", message=MESSAGES[0])
    session.close()
    saved = sessions.read(session.path)
    assert saved.messages == [*MESSAGES[:2], MESSAGES[0]] and saved.system == "Be brief." and saved.model == "n.gguf"
    assert saved.n_good == saved.n_bytes == session.path.stat().st_size
    assert session.path.parent == state and session.path.stat().st_mode & 0o777 == 0o600 and state.stat().st_mode & 0o777 == 0o700


def test_every_cut_and_every_changed_byte_costs_the_end_and_nothing_before() -> None:
    path = journal()
    data = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for place in range(0, len(data), 3):
        whole = sum(end <= place for end in ends)  # lines before the damage
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]):
            path.write_bytes(damaged)
            if whole == 0:
                with pytest.raises(UserError, match="not a saved session"):
                    sessions.read(path)
                continue
            saved = sessions.read(path)
            assert saved.messages == MESSAGES[: max(0, whole - 2)] and saved.n_good == ends[whole - 1]


def test_a_damaged_end_is_cut_off_kept_aside_and_written_on(state: Path) -> None:
    path = journal()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    session, saved, lost = sessions.reopen(path)
    assert saved.messages == MESSAGES[:2] and lost is not None and "damaged" in lost
    session.append("message", message={"role": "user", "content": "new"})
    session.close()
    assert [message["content"] for message in sessions.read(path).messages] == [MESSAGES[0]["content"], "answer", "new"]
    [aside] = state.glob("*.damaged-*")
    assert aside.read_bytes() == whole[:-5]


def test_a_process_at_a_time_writes(state: Path) -> None:
    path = journal()
    session, _, lost = sessions.reopen(path)
    assert lost is None
    with pytest.raises(UserError, match="open in another terminal"):
        sessions.reopen(path)
    assert sessions.read(path).messages == MESSAGES  # anybody may read
    session.close()
    sessions.reopen(path)[0].close()


def test_a_record_that_cannot_be_written_leaves_the_journal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    session = sessions.create("m.gguf", None, MESSAGES)
    before = session.path.read_bytes()
    real = sessions.os.write

    def full(descriptor: int, data: memoryview) -> int:
        if len(data) > 10:
            return real(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sessions.os, "write", full)
        with pytest.raises(OSError):
            session.append("message", message=MESSAGES[0])
    assert session.path.read_bytes() == before
    session.append("cut", keep=0)
    assert sessions.read(session.path).messages == []
    session.close()


def test_sessions_are_found_by_a_part_of_their_name(state: Path) -> None:
    first, second = journal(), journal()
    assert first != second
    assert sessions.find(first.stem) == first and sessions.find(str(first)) == first
    second.touch()
    assert sessions.find(None) in (first, second)
    for name, kind in (("nothing", "missing"), (first.stem[:8], "usage"), ("", "missing")):
        with pytest.raises(UserError) as error:
            sessions.find(name)
        assert error.value.kind == kind
    sessions.remove(first)
    assert [path for path, _ in sessions.listed()] == [second] and not first.exists()


def test_a_file_that_a_user_saved_is_not_deleted(state: Path, tmp_path: Path) -> None:
    """Nor is what stands beside it under the same name."""
    saved, program = tmp_path / "conv", tmp_path / "conv.py"
    sessions.write_copy(saved, "", None, MESSAGES)
    program.write_text("print()")
    with pytest.raises(UserError, match="only an ID"):
        sessions.remove(saved)
    assert saved.exists() and program.exists()


def test_no_session_yet() -> None:
    with pytest.raises(UserError, match="no earlier session"):
        sessions.find(None)
    assert sessions.listed() == []


@pytest.mark.parametrize(
    "record",
    [
        {"type": "message", "message": {"role": "king", "content": "x"}},
        {"type": "message", "message": {"role": "user", "content": 1}},
        {"type": "message", "message": "x"},
        {"type": "message", "message": {"role": ["user"], "content": "x"}},
        {"type": "message", "message": {"role": "user", "content": "x", "typed": 1}},
        {"type": "message", "message": {"role": "assistant", "content": "x", "reasoning_content": None}},
        {"type": "message", "message": {"role": "assistant", "content": "", "tool_calls": 1}},
        {"type": "message", "message": {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}},
        {"type": "cut", "keep": 99},
        {"type": "cut", "keep": -1},
        {"type": "model", "path": 1},
        {"type": "future"},
        {},
    ],
)
def test_records_that_nobody_writes_end_the_reading(record: dict) -> None:
    path = journal()
    with open(path, "ab") as file:
        file.write(sessions._line(record))
        file.write(sessions._line({"type": "message", "message": MESSAGES[0]}))
    saved = sessions.read(path)
    assert saved.messages == MESSAGES and saved.n_good < saved.n_bytes


def test_a_record_of_a_hundred_thousand_brackets_ends_the_reading() -> None:
    path = journal()
    deep = b'{"type":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with open(path, "ab") as file:
        file.write(b'{"crc32":"%08x","record":%s}\n' % (zlib.crc32(deep), deep))
    assert sessions.read(path).messages == MESSAGES


def test_other_files_are_refused(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b""), ("b.jsonl", b"\0" * 100), ("c.jsonl", json.dumps({"type": "session"}).encode() + b"\n")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="not a saved session"):
            sessions.read(tmp_path / name)
    with pytest.raises(UserError) as error:
        sessions.read(tmp_path / "missing.jsonl")
    assert error.value.kind == "missing"
    with pytest.raises(UserError):
        sessions.read(tmp_path)


def test_a_mark_in_front_is_an_editors() -> None:
    path = journal()
    path.write_bytes("\ufeff".encode() + path.read_bytes())
    saved = sessions.read(path)
    assert saved.messages == MESSAGES and saved.n_good == saved.n_bytes
    path.write_text("a conversation", encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16 text"):
        sessions.read(path)


def test_a_copy_takes_no_other_files_place(tmp_path: Path) -> None:
    path = tmp_path / "copy.jsonl"
    sessions.write_copy(path, "m.gguf", None, MESSAGES)
    assert sessions.read(path).messages == MESSAGES
    with pytest.raises(UserError, match="exists"):
        sessions.write_copy(path, "m.gguf", None, MESSAGES[:1])
    assert sessions.read(path).messages == MESSAGES and list(tmp_path.glob(".*")) == []
    path.chmod(0o600)
    sessions.write_copy(path, "m.gguf", None, MESSAGES[:1], replace=True)
    assert sessions.read(path).messages == MESSAGES[:1] and path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".*")) == []


def test_a_disk_without_hard_links_takes_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(sessions.os, "link", refuse)
    path = tmp_path / "copy.jsonl"
    sessions.write_copy(path, "m.gguf", None, MESSAGES)
    with pytest.raises(UserError, match="exists"):
        sessions.write_copy(path, "m.gguf", None, MESSAGES[:1])
    assert sessions.read(path).messages == MESSAGES and list(tmp_path.glob(".*")) == []


def test_a_conversation_goes_on_with_its_model(state: Path) -> None:
    def held_with(model: str) -> None:
        sessions.create(model, None, MESSAGES[:2]).close()

    held_with("/nowhere/m.gguf")
    assert "held with /nowhere/m.gguf, which is not there; name a model" in refused("chat", "--continue", code=3)
    held_with("GLM at http://localhost:8000/v1")
    assert "add --url" in refused("chat", "--continue", code=2)
    held_with(str(cache_folder() / "nano" / "of-an-earlier-version" / "nano-Q8_0.gguf"))
    done = glmrun("chat", "--continue", stdin=b"hello\n", scripted=True)
    assert (done.returncode, done.stdout) == (0, b"You said: hello\n") and len(sessions.listed()[0][1].messages) == 4


def test_a_copy_goes_on_with_its_model(tmp_path: Path) -> None:
    """The file that /save wrote is found by its name alone, and the model by the copy; --resume needs no MODEL."""
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    (tmp_path / "scripted.gguf").touch()
    assert glmrun("chat", "nano", stdin=b"hello\n/save conv\n", scripted=True, cwd=tmp_path, env=env).returncode == 0
    assert sessions.read(tmp_path / "conv").model == str(tmp_path / "scripted.gguf")
    done = glmrun("chat", "--resume", "conv", stdin=b"messages\n", scripted=True, cwd=tmp_path, env=env)
    assert done.returncode == 0 and b'"content": "You said: hello"' in done.stdout


def test_a_killed_process_leaves_all_that_it_had_written(state: Path) -> None:
    program = (
        "from glmrun.repl import sessions\n"
        "s = sessions.create('m', None, [])\n"
        "for n in range(1000000):\n"
        "    s.append('message', message={'role': 'user', 'content': str(n)})\n"
        "    print(n, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while (told := int(process.stdout.readline())) < 20:
            pass
        process.kill()
    [path] = state.glob("*.jsonl")
    contents = [message["content"] for message in sessions.reopen(path)[1].messages]
    assert contents == [str(n) for n in range(len(contents))] and len(contents) > told
