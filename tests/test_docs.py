"""What the project says of itself is true: generated pages are current, named files exist, the example works."""

import ast
import io
import json
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import compare
import make_docs
import make_recording
import pytest
from support.command_line import exit_code
from typer.testing import CliRunner

import glmrun
from glmrun.chat.tools import Tools
from glmrun.cli import app
from glmrun.kernels.team import Team

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_commands_page_is_current() -> None:
    assert make_docs.PAGE.read_text(encoding="utf-8") == make_docs.page(), "run python scripts/make_docs.py"


def test_the_speed_tables_are_those_of_the_results() -> None:
    text = compare.PAGE.read_text(encoding="utf-8")
    between = text.split(compare.BEGIN)[1].split(compare.END)[0]
    paths = sorted(compare.RESULTS.glob("compare-*.json"), key=lambda path: path.stem)
    expected = compare.table([json.loads(path.read_text(encoding="utf-8")) for path in paths])
    assert len(expected) > 20 and between.strip().splitlines() == expected, "run python benchmarks/compare.py --table"
    readme = re.findall(r"\| (AVX.*?) \(.*?\) \| (\d+) \| (.*) \|", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(readme) == 4
    for cpu, layers, cells in readme:
        lines = [line for line in expected if f"{layers} layers" in line and ("AVX2" in line) == (cpu == "AVX2")]
        for ours, theirs, ratio in re.findall(r"([\d.]+) : ([\d.]+) = ([\d.]+)", cells):
            assert any(f"| {ours} " in line and f"| {theirs} |" in line and line.endswith(f"| {ratio} |") for line in lines), ours
        assert cells.count(" : ") == 4


def test_no_page_names_a_folder_of_the_machine_that_made_it() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        assert not re.search(r"(?<![\w.~])/(?:home|root|tmp|work|Users)/", page.read_text(encoding="utf-8")), page.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_every_file_that_a_page_names_is_there() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = re.findall(r"`((?:tests|glmrun|quant|scripts|benchmarks|docs|examples)/[\w./-]+)`", text)
        linked = [name for name in re.findall(r"\]\(([\w./-]+)\)", text) if "//" not in name]
        for path in [*(ROOT / name for name in named), *(page.parent / name for name in linked)]:
            assert path.exists(), f"{page.name} names {path}"


def test_the_architecture_page_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = [path for path in (ROOT / "glmrun").glob("[a-z]*") if path.is_dir() or path.suffix == ".py"]
    missing = [path.name for path in rooms if f"`glmrun/{path.name}{'/' if path.is_dir() else ''}`" not in text]
    assert len(rooms) > 15 and not missing


def tokens_way() -> list[tuple[str, str]]:
    """(file, function) of the calls that the README names, from main() on."""
    way = re.search(
        r"A token of .*? takes (\d+) calls,.*? in (\d+) files (.*?)\. From", (ROOT / "README.md").read_text(), re.DOTALL
    )
    assert way is not None
    calls = []
    for module, functions in re.findall(r"`([\w.]+)`:((?:\s+`\w+`,?)+)", way[3]):
        name = module.replace(".", "/")
        places = (f"glmrun/{name}.py", f"glmrun/{name}/__init__.py", f"glmrun/kernels/{name}.py")
        file = next(place for place in places if (ROOT / place).exists())
        calls += [(file, function) for function in re.findall(r"`(\w+)`", functions)]
    assert (int(way[1]), int(way[2])) == (len(calls), len({file for file, _ in calls}))
    return calls


def test_a_token_takes_the_calls_that_the_readme_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Python, as they stand when a chat has a token computed; in a pipe instead of a terminal."""
    stacks, run = list[list[tuple[str, str]]](), Team.run

    def seen(team: Team, function: Callable[..., int], *arguments: Any) -> int:
        calls, frame = [], sys._getframe(1)
        while frame is not None:
            if (file := Path(frame.f_code.co_filename)).is_relative_to(ROOT / "glmrun"):
                calls.append((file.relative_to(ROOT).as_posix(), frame.f_code.co_name))
            frame = frame.f_back
        stacks.append(calls[::-1])
        return run(team, function, *arguments)

    monkeypatch.setattr(Team, "run", seen)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
    assert exit_code("chat", "nano", "--draft", "off", "--max-tokens", "3") == 0
    way = tokens_way()
    expected = [(file, function.replace("in_terminal", "in_pipe")) for file, function in way]
    assert stacks[-1] == expected[: way.index(("glmrun/kernels/team.py", "run"))]


def test_a_compiled_call_of_a_tokens_way_is_in_the_one_before_it() -> None:
    way = tokens_way()
    compiled = way[way.index(("glmrun/forward.py", "forward")) :]
    for (file, outer), (_, inner) in pairwise(compiled):
        tree = ast.parse((ROOT / file).read_text())
        (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == outer]
        called = [ast.unparse(node.func).rpartition(".")[2] for node in ast.walk(function) if isinstance(node, ast.Call)]
        assert inner in called, f"{outer} does not call {inner}"


def test_the_recording_is_asciinemas_and_shows_a_chat() -> None:
    header, *events = [json.loads(line) for line in (ROOT / "pictures" / "chat.cast").read_text(encoding="utf-8").splitlines()]
    assert header["version"] == 2 and (header["width"], header["height"]) == (make_recording.COLUMNS, make_recording.ROWS)
    times = [at for at, _, _ in events]
    assert times == sorted(times) and all(kind == "o" for _, kind, _ in events) and len(events) > 100
    shown = "".join(data for _, _, data in events)
    assert all(words in shown for _, words in make_recording.SCENE) and "42" in shown and "/tmp" not in shown
    assert list(make_recording.lines([(1.0, "a"), (9.0, "b")]))[1:] == ['[1.0, "o", "a"]', '[2.5, "o", "b"]']


def test_the_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in text and 'attr = "glmrun.__version__"' in text
    assert re.fullmatch(r"\d+\.\d+\.\d+", glmrun.__version__)


def test_the_weather_example_is_a_file_of_tools() -> None:
    with Tools(ROOT / "examples" / "weather.py") as tools:
        assert tools.names == ["get_weather"] and not tools.left_out
        result = tools.run({"function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}})
        assert "Rome" in result.text


def test_help_of_every_command_works() -> None:
    for name in ("chat", "run", "convert", "bench", "eval", "plan"):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0
    assert json.loads(CliRunner().invoke(app, ["plan", "Q4_K_M", "--json"]).stdout)
