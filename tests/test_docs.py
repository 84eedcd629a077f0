"""What the project says of itself is true: generated pages are current, named files exist, the example works."""

import json
import re
from pathlib import Path

import compare
import make_docs
import make_recording
from typer.testing import CliRunner

import glmrun
from glmrun.chat.tools import Tools
from glmrun.cli import app

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
    row = re.compile(r"\| (AVX.*?) \(Zen \d\) \| (\d+) \| .*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|")
    readme = row.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(readme) == 12
    for cpu, layers, ours, theirs, ratio in readme:
        lines = [line for line in expected if f"{layers} layers" in line and ("AVX2" in line) == (cpu == "AVX2")]
        assert any(f"| {ours} " in line and f"| {theirs} |" in line and line.endswith(f"| {ratio} |") for line in lines), ours


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


def test_the_modules_on_a_tokens_way_are_there() -> None:
    way = re.search(r"A token passes (.*?)\. A token's", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert way is not None
    names = re.findall(r"`((?:cli|repl|chat|terminal|engine|kernels|formats)\.\w+|forward|experts|matmul)", way[1])
    assert len(names) >= 14
    for name in names:
        folder = ROOT / "glmrun" / ("kernels" if name.startswith(("formats", "experts", "matmul")) else "")
        assert (folder / (name.replace(".", "/") + ".py")).exists(), name


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
