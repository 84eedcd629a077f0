"""Settings: which of flag, variable, config file and default wins, what a wrong file says, what `config show` tells."""

import json
import os
import zlib
from pathlib import Path

import pytest
from test_cli import glmrun, refused

from glmrun import settings
from glmrun.cli import options
from glmrun.engine.sampling import Sampler
from glmrun.settings import SETTINGS, config_path, default_model, defaults, origins, read_config
from quant.errors import UserError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config file of a user who has set nothing."""
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    path = tmp_path / "config.toml"
    monkeypatch.setenv("GLMRUN_CONFIG", str(path))
    return path


def sent(*arguments: str, **variables: str) -> dict[str, object]:
    """What `glmrun run` asks of the model."""
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), **variables}
    done = glmrun("run", "nano", "messages", *arguments, scripted=True, env=environment)
    assert done.returncode == 0, done
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(file: Path) -> None:
    assert "temperature" not in sent("--no-think")
    file.write_text("temperature = 0.25\ntop_p = 1\nthink = false\nsystem = 'Be brief.'\n")
    said = sent()
    assert (said["temperature"], said["top_p"], said["thinking"]) == (0.25, 1.0, False)
    assert said["messages"][0] == {"role": "system", "content": "Be brief."}  # type: ignore[index]
    assert sent(GLMRUN_TEMPERATURE="0.5")["temperature"] == 0.5
    assert sent("--temp", "0.75", GLMRUN_TEMPERATURE="0.5", GLMRUN_TOP_P="0.9") == {
        **said, "temperature": 0.75, "top_p": 0.9,
    }  # fmt: skip


def test_sizes_and_the_model_come_from_the_file_too(file: Path) -> None:
    file.write_text('model = ""\n')
    assert default_model() is None  # as an empty variable
    file.write_text('context = "1k"\nmodel = "nosuch"\nthreads = 1\n')
    assert "nosuch: no such file" in refused("run", "hello", code=3)
    assert "other: no such file" in refused("chat", code=3, env={**os.environ, "GLMRUN_MODEL": "other", "PYTHONPATH": os.getcwd()})
    assert json.loads(glmrun("plan", "nano", "--json").stdout)["context"] == 1000
    file.write_text("context = 512\n")
    assert json.loads(glmrun("plan", "nano", "--json").stdout)["context"] == 512
    assert json.loads(glmrun("plan", "nano", "--json", "-c", "1K").stdout)["context"] == 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temperature = 1\ntemprature = 2\n", "line 2: there is no setting 'temprature'; there are model, context"),
        ("\n\n[model]\nname = 'x'\n", "line 3: model is"),
        ('# threads\nthreads = "two"\n', "line 2: threads is 'two'; a whole number is expected"),
        ("threads = true\n", "line 1: threads is 'True'; a whole number is expected"),
        ("threads = 0\n", "line 1: threads is 0; at least 1 is expected"),
        ("top_p = 1.5\n", "line 1: top_p is 1.5; from 0 to 1 is expected"),
        ("top_p = nan\n", "line 1: top_p is nan; from 0 to 1 is expected"),
        ("think = 1\n", "line 1: think is '1'; true or false is expected"),
        ("a = \n", "not valid TOML"),
        ('"\\u001b[31m" = 1\n', "there is no setting"),
        ("x = " + "[" * 5000, "not valid TOML"),
    ],
)
def test_a_wrong_file_names_the_line(file: Path, text: str, words: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError) as error:
        read_config()
    assert words in str(error.value) and str(file) in str(error.value) and error.value.kind == "usage"


def test_files_that_are_none(file: Path) -> None:
    assert read_config().values == {} and defaults() == {}
    file.write_bytes(b"seed = 1\nsystem = '\xff'\n")
    with pytest.raises(UserError, match="line 2: not valid UTF-8"):
        read_config()
    file.write_bytes(bytes(settings.MAX_BYTES + 1))
    with pytest.raises(UserError, match="a few lines"):
        read_config()
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match="directory"):
        read_config()


def test_a_wrong_value_is_one_line_and_a_code(file: Path) -> None:
    file.write_text("temprature = 2\n\x1b[31m")
    assert "not valid TOML" in refused("run", "nano", "hi", code=2)
    assert glmrun("list", "--json").returncode == 0  # needs no setting
    file.write_text('context = "32x"\n')
    assert "'32x' is not a size" in refused("run", "nano", "hi", code=2)
    file.unlink()
    for name, value, words in (
        ("GLMRUN_THREADS", "0", "at least 1"), ("GLMRUN_TOP_P", "2", "from 0 to 1"), ("GLMRUN_SEED", "x", "a whole number"),
    ):  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), name: value}
        assert f"{name} is" in (error := refused("run", "nano", "hi", code=2, env=environment)) and words in error


def test_show_tells_where_each_value_comes_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('# mine\n"top_k" = 40\nthink=false\ncontext = "64K"\n')
    monkeypatch.setenv("GLMRUN_THREADS", "2")
    monkeypatch.setenv("GLMRUN_TOP_K", "20")
    found = {key: (value, origin) for key, value, origin in origins()}
    assert list(found) == list(SETTINGS)
    assert found["threads"] == ("2", "GLMRUN_THREADS") and found["top_k"] == ("20", "GLMRUN_TOP_K")
    assert found["think"] == ("false", f"{file}, line 3") and found["context"] == ("64K", f"{file}, line 4")
    assert found["seed"][1] == "default"
    shown = glmrun("config", "show")
    assert shown.returncode == 0 and f"{file}, line 4".encode() in shown.stdout and b"GLMRUN_MIN_P" in shown.stdout
    listed = json.loads(glmrun("config", "show", "--json").stdout)
    assert {row["key"]: (row["value"], row["origin"]) for row in listed} == found
    assert glmrun("config", "path").stdout.decode().strip() == str(file) == str(config_path())


def test_the_table_tells_the_samplers_defaults_and_has_an_option_for_each_key() -> None:
    plain = Sampler()
    for key in ("temperature", "top_p", "top_k", "min_p", "repeat_penalty"):
        assert SETTINGS[key].default == f"the model file's value, else {getattr(plain, key)}"
    variables = {name for value in vars(options).values() for name in _variables(value)}
    assert variables | {"GLMRUN_MODEL"} == {setting.variable for setting in SETTINGS.values()}


def test_an_option_without_a_variable_is_no_setting(file: Path) -> None:
    """What bench measures must not depend on how its user likes to chat."""
    file.write_text('url = "http://127.0.0.1:1"\ndraft = "ngram"\nkv_type = "q8_0"\n')
    rows = json.loads(glmrun("bench", "nano", "-p", "4", "-n", "0", "-r", "1", "-o", "json").stdout)
    assert [(row["backends"], row["type_k"]) for row in rows] == [("numba-cpu", "q8_0")]
    assert "no server answers" in refused("run", "hello", code=1)


def _variables(option: object) -> list[str]:
    return [found.envvar for found in getattr(option, "__metadata__", ()) if getattr(found, "envvar", None)]


def test_the_shell_completes_commands_and_models(tmp_path: Path) -> None:
    (tmp_path / "GLM-4.7-Flash-Q4_K_M.gguf").write_bytes(b"GGUF")
    environment = {
        **os.environ, "PYTHONPATH": os.getcwd(), "GLMRUN_MODELS": str(tmp_path), "HF_HOME": str(tmp_path / "hf"),
        "_GLMRUN_COMPLETE": "complete_bash", "XDG_STATE_HOME": str(tmp_path),
    }  # fmt: skip
    (tmp_path / "glmrun" / "sessions").mkdir(parents=True)
    record = b'{"type":"session","version":1}', b'{"type":"message","message":{"role":"user","content":"hello"}}'
    lines = [b'{"crc32":"%08x","record":%s}\n' % (zlib.crc32(each), each) for each in record]
    (tmp_path / "glmrun" / "sessions" / "20260102-030405.jsonl").write_bytes(b"".join(lines))
    for words, expected in (
        ("glmrun ins", b"inspect"),
        ("glmrun chat GLM", b"GLM-4.7-Flash-Q4_K_M"),
        ("glmrun config s", b"show"),
        ("glmrun chat -r 2026", b"20260102-030405"),
    ):
        done = glmrun(env=environment | {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))})
        assert done.stdout.split() == [expected], done
