"""What a program finds around it: streams that are closed, variables of other uses, homes that can't be read, encodings."""

import ctypes
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.command_line import exit_code
from support.scripted_model import ScriptedModel
from test_cli import SCRIPT, glmrun, refused

import glmrun as api
from glmrun import settings
from glmrun.cli import _leave_behind
from glmrun.machine import cache_folder
from glmrun.repl.commands import run_command
from glmrun.repl.conversation import Conversation
from glmrun.repl.kept import Kept
from glmrun.server.listen import bound
from glmrun.store import hub
from glmrun.store.local import models_folder
from quant.errors import UserError
from quant.system import arm_features
from quant.text import decode_text

ASK = ("run", "nano", "hello", "--no-think")


def with_closed(streams: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the scripted model in a shell that closes streams first."""
    line = f'exec "$0" "$@" {streams}'
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    return subprocess.run(["sh", "-c", line, sys.executable, SCRIPT, *arguments], capture_output=True, timeout=120, env=env)


def test_an_answer_that_could_not_be_written_is_an_error() -> None:
    for arguments in (ASK, ("--version",), ("inspect", "--help")):
        done = with_closed("<&- >&-", *arguments)
        assert done.returncode == 1
        assert done.stderr == b"error: the output can't be written: Bad file descriptor\n"
    assert with_closed("<&- >&- 2>&-", *ASK).returncode == 1


def test_without_the_other_streams_it_answers() -> None:
    answer = glmrun(*ASK, scripted=True).stdout
    for streams in ("<&-", "2>&-", "<&- 2>&-"):
        done = with_closed(streams, *ASK)
        assert (done.returncode, done.stdout) == (0, answer) and answer.strip()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux")
def test_notes_that_can_not_be_written_cost_no_answer() -> None:
    """A full disk behind standard error: the model's name is noted before the answer, its speed behind it."""
    talk = ("chat", "nano", "--no-think")
    expected = glmrun(*talk, stdin=b"hello\n", scripted=True)
    assert expected.stderr and expected.stdout.strip()
    line = 'printf "hello\\n" | "$0" "$@" 2>/dev/full'
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(["sh", "-c", line, sys.executable, SCRIPT, *talk], capture_output=True, timeout=120, env=env)
    assert (done.returncode, done.stdout) == (0, expected.stdout)
    done = subprocess.run(["sh", "-c", line + " >&2", sys.executable, SCRIPT, *talk], timeout=120, env=env)
    assert done.returncode == 1


def test_standard_input_that_can_not_be_read_is_named() -> None:
    for arguments in (("run", "nano", "hello", "--no-think"), ("chat", "nano", "--no-think")):
        done = with_closed("0>/dev/null", *arguments)
        assert (done.returncode, done.stderr) == (1, b"error: standard input can't be read: Bad file descriptor\n")


def test_a_limit_on_threads_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert exit_code("verify", "nano") == 1
    assert capsys.readouterr().err.startswith("error: the system starts no more threads; raise the limit")


def test_switches_for_numba_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(UserError, match="NUMBA_DISABLE_JIT is set"):
        api.load()
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "NUMBA_DUMP_BYTECODE": "1", "COLUMNS": "abc", "OMP_NUM_THREADS": "x"}
    done = glmrun("run", "nano", "What is 1 + 1?", "--no-think", "--temp", "0", "-n", "9", timeout=600, env=env)
    assert (done.returncode, done.stdout) == (0, b"1 + 1 = 2.\n")


def test_no_bar_moves_in_a_pipe_whatever_the_variables_say(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1"}
    done = glmrun("ppl", "nano", "--chunks", "1", "-c", "64", env=env)
    assert done.returncode == 0 and b"\x1b" not in done.stderr + done.stdout


@pytest.mark.parametrize("alone", [{"NUMBA_CPU_NAME": "znver5"}, {"NUMBA_CPU_FEATURES": "+amx-int8,+avx512fp16"}])
def test_half_a_target_for_numba_is_left_behind(alone: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would compile what the processor does not run, which ends the process without a word. Both together are meant."""
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    _leave_behind(None)
    assert not set(alone) & set(os.environ)
    both = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2"}
    for name, value in both.items():
        monkeypatch.setenv(name, value)
    _leave_behind(None)
    assert {name: os.environ.get(name) for name in both} == both


@pytest.mark.parametrize(
    ("host", "advice"),
    [("no.such.host.invalid", "an address of this machine"), ("192.0.2.1", "an address of this machine"), ("", "another port")],
)
def test_a_place_where_nobody_can_listen_is_told_apart(host: str, advice: str) -> None:
    with bound("127.0.0.1", 0) as taken, pytest.raises(UserError, match=advice):
        bound(host or "127.0.0.1", taken.getsockname()[1])


def test_arguments_are_utf_8_in_every_locale() -> None:
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = glmrun("config", "show", "--nö", env=env)
    assert "--nö" in done.stderr.decode()


@pytest.mark.parametrize("home", ["missing", "file", "closed"])
def test_a_home_of_somebody_else_has_no_settings(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / home
    if home == "file":
        place.touch()
    elif home == "closed":
        (place / ".config" / "glmrun").mkdir(parents=True)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.delenv("GLMRUN_CONFIG", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(place))
    assert settings.read_config().values == {}
    monkeypatch.setenv("GLMRUN_CONFIG", str(place / "config.toml"))
    if home == "closed":
        with pytest.raises(UserError, match="Permission denied; GLMRUN_CONFIG names another file"):
            settings.read_config()


def test_a_user_whom_the_system_does_not_know_has_no_home() -> None:
    """As in a container that runs under a number: nobody's home is /."""
    env = {name: value for name, value in os.environ.items() if name != "HOME" and not name.startswith("XDG_")}
    unknown = "import pwd, runpy; pwd.getpwuid = {}.__getitem__; runpy.run_module('glmrun', run_name='__main__', alter_sys=True)"
    for arguments in (("list",), ("sessions",), ("config", "path"), ("prompts",)):
        program, env["PYTHONPATH"] = [sys.executable, "-c", unknown, *arguments], os.getcwd()
        done = subprocess.run(program, env=env, cwd="/", capture_output=True, timeout=120)
        assert (done.returncode, b"Traceback" in done.stderr, b"~" in done.stdout) == (0, False, False), done


def test_a_home_that_nobody_has_is_a_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    conversation = Conversation(ScriptedModel())  # type: ignore[arg-type]
    assert conversation.say("@~nobody-here what?").text == "You said: @~nobody-here what?"
    for command in ("/read", "/load", "/save", "/export"):
        assert not run_command(conversation, f"{command} ~nobody-here/a.md")
    assert capsys.readouterr().err.count("~nobody-here/a.md") == 4
    monkeypatch.setenv("HOME", "/a home")
    for name, place in (("GLMRUN_CACHE_DIR", cache_folder), ("GLMRUN_MODELS", models_folder), ("HF_HUB_CACHE", hub.cache_folder)):
        monkeypatch.setenv(name, "~/there")
        assert place() == Path("/a home/there")


@pytest.mark.parametrize("variables", [{"ALL_PROXY": "socks5://127.0.0.1:1"}, {"HTTP_PROXY": "foo://x"}, {"SSL_CERT_FILE": "/"}])
def test_a_way_out_that_can_not_be_used_is_named(variables: dict[str, str]) -> None:
    env = {**os.environ, "PYTHONPATH": os.getcwd(), **variables}
    line = refused("run", "hi", "--url", "http://model.invalid/v1", code=1, env=env)
    assert all(name in line for name in variables), line
    if "ALL_PROXY" in variables:
        assert "ALL_PROXY" in refused("pull", "user/model", code=1, env=env)


def test_a_call_that_can_not_be_kept_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "XDG_STATE_HOME": str(tmp_path / "file")}
    done = glmrun(*ASK, scripted=True, env=env)
    helps = "Not a directory, XDG_STATE_HOME names another folder"
    assert done.returncode == 0 and f"this call could not be kept: {helps} (--no-log keeps none)" in done.stderr.decode()


def test_a_conversation_that_can_not_be_saved_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    conversation = Conversation(ScriptedModel(), kept=Kept(saving=True))  # type: ignore[arg-type]
    for _ in range(3):
        conversation.say("hello")
    assert len(conversation.messages) == 6
    assert capsys.readouterr().err.count("could not be saved: Not a directory, XDG_STATE_HOME names another folder; each") == 1


def refuse(path: object, *arguments: object, **options: object) -> object:
    raise PermissionError(13, "Permission denied", str(path))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa", "a"),
        ("é\U0001f642\0".encode(), "é\U0001f642\0"),
        (b"", ""),
        (b"a", "a"),
        ("hé".encode("utf-16"), "X is UTF-16 text; UTF-8 is expected"),
        ("hé".encode("utf-16-le"), "X is UTF-16 text; UTF-8 is expected"),
        ("hé".encode("utf-16-be"), "X is UTF-16 text; UTF-8 is expected"),
        ("hé".encode("utf-32"), "X is UTF-32 text; UTF-8 is expected"),
        (bytes(range(256)), "X is not valid UTF-8: byte 0x80 at position 128; convert it first"),
        ("hé".encode("latin-1"), "X is not valid UTF-8: byte 0xe9 at position 1; convert it first"),
    ],
)
def test_text_is_utf_8_with_or_without_a_mark(data: bytes, expected: str) -> None:
    if expected.startswith("X "):
        with pytest.raises(UserError) as why:
            decode_text(data, "X")
        assert str(why.value).startswith(expected)
    else:
        assert decode_text(data, "X") == expected


def test_a_mark_is_no_content_on_any_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLMRUN_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_bytes("\ufeffseed = 3\n".encode())
    assert settings.read_config().values == {"seed": 3}
    (tmp_path / "config.toml").write_bytes("seed = 3\n".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        settings.read_config()
    wide = tmp_path / "wide.txt"
    wide.write_bytes("hello".encode("utf-16"))
    env = {**os.environ, "PYTHONPATH": os.getcwd()}
    monkeypatch.delenv("GLMRUN_CONFIG")
    for arguments in (("run", "nano", "-f", str(wide)), ("ppl", "nano", "-f", str(wide)), ("eval", str(wide), "-m", "nano")):
        assert "UTF-16" in refused(*arguments, code=2, env=env | {"GLMRUN_CONFIG": ""}), arguments
    plain = glmrun("run", "nano", "--no-think", stdin=b"hello", scripted=True).stdout
    assert glmrun("run", "nano", "--no-think", stdin="\ufeffhello".encode(), scripted=True).stdout == plain != b""
    assert "UTF-16" in refused("chat", "nano", code=2, stdin=wide.read_bytes(), scripted=True)


@pytest.mark.parametrize("has", [set(), {"dotprod"}, {"dotprod", "i8mm"}])
@pytest.mark.parametrize("platform_name", ["linux", "darwin"])
def test_what_an_arm_processor_has_as_its_system_reports_it(
    has: set[str], platform_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux: bit 20 of AT_HWCAP (16), bit 13 of AT_HWCAP2 (26), as its headers number them; macOS: a number for each name."""
    words = {16: 0x3 | ("dotprod" in has) << 20, 26: 0x2 | ("i8mm" in has) << 13}
    names = {b"hw.optional.arm.FEAT_DotProd": "dotprod" in has, b"hw.optional.arm.FEAT_I8MM": "i8mm" in has}

    def sysctlbyname(key, value, size, new, new_size) -> int:
        value._obj.value = names[key]
        return 0

    library = SimpleNamespace(getauxval=lambda kind: words[kind], sysctlbyname=sysctlbyname)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(sys, "platform", platform_name)
    for machine in ("aarch64", "arm64"):
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert arm_features() == has
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert arm_features() == set()
