"""What a program finds around it: streams that are closed, variables of other uses, homes that can't be read, encodings."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SCRIPT, glmrun, refused

import glmrun as api
from glmrun import settings
from quant.errors import UserError
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


def test_switches_for_numba_are_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    with pytest.raises(UserError, match="NUMBA_DISABLE_JIT is set"):
        api.load()
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "NUMBA_DUMP_BYTECODE": "1", "COLUMNS": "abc", "OMP_NUM_THREADS": "x"}
    done = glmrun("run", "nano", "What is 1 + 1?", "--no-think", "--temp", "0", "-n", "9", timeout=600, env=env)
    assert (done.returncode, done.stdout) == (0, b"1 + 1 = 1\n")


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
