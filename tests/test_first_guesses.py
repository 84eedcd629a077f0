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
        ("help help", "--help"),
        ("version", "--version"),
        ("-V", "--version"),
        ("config", "config show"),
    ],
)
def test_the_first_guess_is_understood(guess: str, meant: str) -> None:
    done, same = glmrun(*guess.split()), glmrun(*meant.split())
    assert done.returncode == 0 and done.stdout == same.stdout != b""


def test_quiet_leaves_answers_and_errors(tmp_path: Path) -> None:
    for arguments in (["--quiet", "run", "hello"], ["run", "hello", "--stats", "--quiet"], ["run", "hello", "--stats", "-q"]):
        done = glmrun(*arguments, scripted=True)
        assert (done.stdout, done.stderr) == (b"You said: hello\n", b"")
    assert refused("--quiet", "run", "nano", "long", scripted=True, code=1).startswith("error: the prompt has")
    assert glmrun("run", "nano", "--", "--quiet", scripted=True).stdout == b"You said: --quiet\n"


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        (["run", "--hlep"], {}, "there is no option --hlep; do you mean --help? (glmrun run --help"),
        (["rnu", "hi"], {}, "there is no command 'rnu'; do you mean glmrun run?"),
        (["help", "rnu"], {}, "there is no command 'rnu'; do you mean glmrun run?"),
        (["inspect", "nano", "--match", "attn"], {}, "--match chooses among what --tensors, --metadata, --hash or --diff show"),
        (["What is 2 + 2?"], {}, "do you mean glmrun run 'What is 2 + 2?'?"),
        (["my.gguf"], {}, "do you mean glmrun chat my.gguf?"),
        (["--temp", "0", "run", "hi"], {}, "--temp stands behind a command; do you mean glmrun run --help?"),
        (["-m", "nano", "run", "hi"], {}, "-m stands behind a command"),
        (["run", "hi", "--json-schema", ""], {}, "--json-schema: not valid JSON"),
        (["run", "-s"], {}, "requires an argument. (glmrun run --help"),
        (["run", "--temp", "hot"], {}, "'--temperature': a number is expected (glmrun"),
        (["run", "-n", "few"], {}, "'--max-tokens': a whole number is expected (glmrun"),
        (["run", "-n", "0"], {}, "'--max-tokens': expected at least 1 (glmrun"),
        (["run", "--top-p", "2"], {}, "'--top-p': expected at most 1 (glmrun"),
        (["run", "--approve", "maybe"], {}, "'--approve': 'maybe' is not one of 'auto', 'ask', 'never'"),
        (["run", "nano", " \n"], {}, "nothing to ask"),
        (["run", "hi"], {"GLMRUN_CONTEXT": "foo"}, "GLMRUN_CONTEXT is 'foo', which is not a size"),
        (["run", "hi"], {"GLMRUN_THINK": "maybe"}, "GLMRUN_THINK: true or false is expected"),
        (["run", "hi"], {"GLMRUN_PRESET": "x"}, "GLMRUN_PRESET: 'x' is not one of"),
        (["chat", "nano", "hello"], {}, "glmrun run MODEL"),
        (["eval", "nano", "a.jsonl", "b"], {}, "eval takes a MODEL and a file of questions (glmrun eval --help"),
        (["eval", "a.jsonl", "b.jsonl"], {}, "a MODEL and a file of questions, not a.jsonl and b.jsonl"),
        (["verify", "nano", "-m", "nano"], {}, "MODEL is given twice, nano as an argument and nano by -m"),
        (["plan", "Q6_K", "ryzen"], {}, "not also ryzen; words choose among --devices"),
        (["plan", "--devices", "babbage"], {}, "no machine in the table is called babbage"),
        (["plan", "Q5_K_M"], {}, "glmrun writes Q4_K_M, Q6_K"),
    ],
)
def test_an_error_names_what_holds_the_wrong_value(arguments: list[str], variables: dict[str, str], words: str) -> None:
    assert words in refused(*arguments, code=2, env={**os.environ, "PYTHONPATH": os.getcwd(), **variables})


@pytest.mark.parametrize("command", ["run", "chat", "serve", "bench", "perplexity", "eval", "imatrix", "inspect", "plan", "verify"])
def test_every_command_takes_its_model_as_an_argument_or_by_a_flag(command: str) -> None:
    """By each way the file that is not there is missed, and not what the command would have done with it."""
    more = {"run": ["hi"], "imatrix": ["-f", __file__]}.get(command, [])
    for words in (["nosuch.gguf", *more], ["-m", "nosuch.gguf", *more], [*more, "--model=nosuch.gguf"]):
        assert "nosuch.gguf: no such file" in refused(command, *words, code=3)


def test_words_behind_the_flag_are_the_question() -> None:
    done = glmrun("run", "-m", "nano", "what", "is", "nano", scripted=True)
    assert done.stdout == b"You said: what is nano\n"
    assert glmrun("run", "-m", "nano", "-p", "hello", scripted=True).stdout == b"You said: hello\n"
    assert "given twice" in refused("run", "-m", "nano", "-p", "hello", "there", code=2)


def test_required_arguments_are_written_as_everywhere() -> None:
    assert glmrun("convert", "--help").stdout.startswith(b"Usage: glmrun convert [OPTIONS] SRC\n")


def test_a_misspelt_variable_is_told() -> None:
    done = glmrun("config", env={**os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_TEMPERATUR": "3"})
    assert done.returncode == 0 and b"GLMRUN_TEMPERATUR means nothing to glmrun; do you mean GLMRUN_TEMPERATURE?" in done.stderr
