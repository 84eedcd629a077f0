"""What people try first on the command line, and what a wrong line is told."""

import os
from pathlib import Path

import pytest
from test_cli import glmrun, refused


@pytest.mark.parametrize(
    ("guess", "meant"),
    [
        ("help", "--help"),
        ("help verify", "verify --help"),
        ("version", "--version"),
        ("-V", "--version"),
        ("config", "config show"),
    ],
)
def test_the_first_guess_is_understood(guess: str, meant: str) -> None:
    done, same = glmrun(*guess.split()), glmrun(*meant.split())
    assert done.returncode == 0 and done.stdout == same.stdout != b""


def test_quiet_leaves_answers_and_errors(tmp_path: Path) -> None:
    for arguments in (["--quiet", "run", "hello"], ["run", "hello", "--stats", "--quiet"]):
        done = glmrun(*arguments, scripted=True)
        assert (done.stdout, done.stderr) == (b"You said: hello\n", b"")
    assert refused("--quiet", "run", "nano", "long", scripted=True, code=1).startswith("error: the prompt has")
    assert glmrun("run", "nano", "--", "--quiet", scripted=True).stdout == b"You said: --quiet\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["run", "--hlep"], {}, "there is no option --hlep; do you mean --help? (glmrun run --help"),
        (["run", "-s"], {}, "requires an argument. (glmrun run --help"),
        (["run", "--temp", "hot"], {}, "a number is expected"),
        (["run", "hi"], {"GLMRUN_CONTEXT": "foo"}, "GLMRUN_CONTEXT is 'foo', which is not a size"),
        (["run", "hi"], {"GLMRUN_PRESET": "x"}, "GLMRUN_PRESET: 'x' is not one of"),
        (["chat", "nano", "hello"], {}, "glmrun run MODEL"),
        (["eval", "nano", "q.jsonl"], {}, "eval takes a file of questions; -m names the model (glmrun eval --help"),
        (["plan", "Q5_K_M"], {}, "glmrun writes Q4_K_M, Q6_K"),
    ],
)
def test_an_error_names_what_holds_the_wrong_value(arguments: list[str], variables: dict[str, str], words: str) -> None:
    assert words in refused(*arguments, code=2, env={**os.environ, "PYTHONPATH": os.getcwd(), **variables})


def test_a_misspelt_variable_is_told() -> None:
    done = glmrun("config", env={**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_TEMPERATUR": "3"})
    assert done.returncode == 0 and b"GLMRUN_TEMPERATUR means nothing to glmrun; do you mean GLMRUN_TEMPERATURE?" in done.stderr
