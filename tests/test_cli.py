"""The command line as a program: what it prints where, and its exit codes."""

import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import make_synthetic
import pytest
from support.checkpoint_folder import write_folder
from support.scripted_model import ESCAPES
from support.tiny_model import ODD, Tiny
from synthetic_checkpoint import write_checkpoint
from typer import BadParameter

from glmrun.cli import app
from glmrun.cli.bench import parse_counts
from glmrun.cli.options import parse_size
from quant.config import FLASH

SCRIPT = str(Path(__file__).with_name("support") / "scripted_model.py")
COMMANDS = sorted(str(command.name) for command in app.registered_commands if not command.hidden)


def glmrun(*arguments: str, stdin: bytes = b"", scripted: bool = False, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m glmrun`, or the same with the scripted model behind it."""
    program = [SCRIPT] if scripted else ["-m", "glmrun"]
    options = {"capture_output": True, "timeout": 120, "env": {**os.environ, "PYTHONPATH": os.getcwd()}} | options
    return subprocess.run([sys.executable, *program, *arguments], input=stdin, **options)  # type: ignore[call-overload,no-any-return]


def refused(*arguments: str, code: int, **options: object) -> str:
    """The one line that a refused command prints on standard error."""
    done = glmrun(*arguments, **options)  # type: ignore[arg-type]
    lines = done.stderr.decode().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert done.returncode == code and done.stdout == b"" and len(errors) == 1 and lines[-1] == errors[0], done
    return errors[0]


def test_help_loads_nothing_heavy() -> None:
    heavy = {
        "numpy",
        "numba",
        "llvmlite",
        "rich",
        "prompt_toolkit",
        "gguf",
        "filelock",
        "jinja2",
        "tokenizers",
        "safetensors",
        "psutil",
        "platformdirs",
        "huggingface_hub",
        "httpx2",
        "llguidance",
        "docstring_parser",
    }
    code = f"import atexit, sys, glmrun.cli as c; atexit.register(lambda: print({heavy} & set(sys.modules))); c.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.splitlines()[-1] == b"set()"


@pytest.mark.parametrize("command", [*COMMANDS, "config show", "config path"])
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = glmrun(*command.split(), "--help")
    assert (
        done.returncode == 0 and b"Example" in done.stdout and f"  glmrun {command}".encode() in done.stdout and done.stderr == b""
    )


def test_without_a_command_the_help_is_printed() -> None:
    done = glmrun()
    assert done.returncode == 0 and all(name.encode() in done.stdout for name in COMMANDS)
    assert glmrun("--version").stdout.startswith(b"glmrun 0.")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frobnicate"], 2, "there is no command 'frobnicate'"),
        (["run", "--frob"], 2, "No such option"),
        (["run", "nosuch.gguf", "hi"], 3, "nosuch.gguf: no such file"),
        (["run", ".", "hi"], 3, "is a folder"),
        (["run", __file__, "hi"], 1, "not a GGUF file"),
        (["run", "a", "b", "-p", "c"], 2, "given twice"),
        (["run", "nano"], 2, "nothing to ask"),
        (["run", "nano", "hi", "-c", "32x"], 2, "is not a size"),
        (["chat", "nosuch.gguf"], 3, "no such file"),
        (["bench", "-m", "nosuch.gguf"], 3, "no such file"),
        (["bench", "-p", "x"], 2, "not a number"),
        (["bench", "-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["inspect", "nosuch.gguf"], 3, "no such file"),
        (["inspect", "."], 3, "is a folder"),
        (["inspect", "x.gguf", "--match", "("], 2, "regular expression"),
        (["pull", "flash"], 2, "names no model"),
        (["rm", "nosuch"], 3, "no model is called nosuch"),
        (["rm", "nano"], 2, "nano comes with glmrun and can't be deleted"),
        (["plan", "nosuch.gguf"], 3, "no such file"),
        (["plan", "-c", "300k"], 2, "at most 202,752"),
        (["plan", "--kv-type", "q3"], 2, "f32, f16, q8_0"),
        (["convert", "nosuch"], 3, "does not exist"),
        (["convert", "."], 3, "config.json"),
        (["convert", ".", "-q", "Q9_9"], 2, "Q4_K_M, Q6_K, Q8_0"),
        (["convert"], 2, "SRC"),
        (["convert", "nano", "-o", "-"], 2, "not standard output; name a file"),
        (["imatrix", "nano", "-f", __file__, "-o", "-"], 2, "not standard output; name a file"),
        (["eval", "nano", "-o", "-"], 2, "not standard output; name a file"),
    ],
)
def test_wrong_usage_is_one_line_and_a_code(arguments: list[str], code: int, words: str) -> None:
    assert words in refused(*arguments, code=code)


def test_a_file_that_is_no_whole_model_is_one_line(tmp_path: Path, tiny_gguf: Callable[..., Tiny]) -> None:
    whole = tiny_gguf("Q8_0").path.read_bytes()
    cut, pointer, hostile = tmp_path / "cut.gguf", tmp_path / "pointer.gguf", tmp_path / "a\x1b[31m.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    hostile.write_bytes(b"GGUF" + bytes(99))
    for command in (["inspect"], ["run"], ["bench", "-m"]):
        more = ["hi"] if command == ["run"] else []
        assert f"{len(whole) // 2:,}" in refused(*command, str(cut), *more, code=1)
        assert "git-lfs" in refused(*command, str(pointer), *more, code=1)
        assert "␛" in refused(*command, str(hostile), *more, code=1)


def test_standard_input_that_is_not_utf8_is_refused() -> None:
    assert "not valid UTF-8: byte 0xff at position 2" in refused("run", "nano", "hi", stdin=b"ab\xff", code=2, scripted=True)
    done = glmrun("chat", "nano", "--no-think", stdin=b"hello\n\xff\n", scripted=True)
    assert done.returncode == 2 and done.stdout == b"You said: hello\n" and b"line 2" in done.stderr


def test_arguments_are_model_and_question() -> None:
    assert glmrun("run", "--no-think", "just a question", scripted=True).stdout == b"You said: just a question\n"
    assert glmrun("run", "--no-think", "nano", "and a question", scripted=True).stdout == b"You said: and a question\n"
    assert glmrun("run", "--no-think", "nano", "-p", "named", scripted=True).stdout == b"You said: named\n"
    assert glmrun("run", "--no-think", "nano", stdin=b"piped\n", scripted=True).stdout == b"You said: piped\n"
    done = glmrun("run", "--no-think", "Sum up:", stdin="naïve\n".encode(), scripted=True)
    assert done.stdout.decode() == "You said: Sum up:\n\nnaïve\n" and b"no model given: using nano" in done.stderr
    assert "no such file" in refused("run", "nosuch", "-p", "hi", code=3)


def test_options_reach_the_model() -> None:
    given = [
        "--temp",
        "0",
        "--top-p",
        "0.5",
        "--top-k",
        "7",
        "--min-p",
        "0.1",
        "--repeat-penalty",
        "1.1",
        "--seed",
        "3",
        "--no-think",
    ]
    said = json.loads(glmrun("run", "nano", "messages", "-s", "Be brief.", *given, scripted=True).stdout)
    assert said == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "messages"}],
        "thinking": False, "temperature": 0.0, "top_p": 0.5, "top_k": 7, "min_p": 0.1, "repeat_penalty": 1.1, "seed": 3,
    }  # fmt: skip


def test_json_is_one_object_with_everything() -> None:
    done = glmrun("run", "nano", "escapes", "--json", scripted=True)
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["reasoning"], answer["finish_reason"], answer["tool_calls"]) == (
        ESCAPES,
        "Let me think.",
        "stop",
        [],
    )
    assert answer["usage"] == {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 44, "total_tokens": 45}
    assert set(answer) == {"model", "text", "reasoning", "tool_calls", "finish_reason", "usage", "timings"}
    assert answer["timings"]["predicted_per_second"] == 50.0 and done.stderr == b""


def test_a_limit_is_told_on_standard_error() -> None:
    done = glmrun("run", "nano", "hello", "-n", "2", scripted=True)
    assert done.returncode == 0 and done.stdout == b"" and b"limit of 2 tokens, still thinking" in done.stderr


def test_a_prompt_that_does_not_fit_names_both_numbers() -> None:
    error = refused("run", "nano", "long", scripted=True, code=1)
    assert "500" in error and "200" in error


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_interrupting_keeps_what_was_printed(form: list[str], tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "run", "nano", "slow answer", *form]
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "SCRIPTED_MODEL_WRITES": str(tmp_path / "writes")}
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    while form and not (tmp_path / "writes").exists() and process.poll() is None:
        time.sleep(0.02)
    first = b"" if form else process.stdout.read(10)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    text = json.loads(rest)["text"] if form else (first + rest).decode()
    assert process.returncode == 130 and text.startswith("tick tick ") and text.count("tick") < 400 and b"Traceback" not in errors


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} {SCRIPT} run nano 'slow answer' --no-think < /dev/null | head -c 4"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, timeout=60, env={**os.environ, "PYTHONPATH": "."}
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, b"tick", b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        for arguments in (["run", "nano", "hello", "--no-think"], ["inspect", "--help"]):
            done = glmrun(*arguments, scripted=True, capture_output=False, stdout=full, stderr=subprocess.PIPE)
            assert done.returncode == 1 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr
        long = glmrun("inspect", "nano", "--tensors", capture_output=False, stdout=full, stderr=subprocess.PIPE)  # beyond a buffer
        assert (long.returncode, long.stderr) == (1, b"error: the output can't be written: No space left on device\n")


def test_sizes_and_counts_are_read() -> None:
    assert [parse_size(text) for text in ("8192", "32k", "64K", " 1M ")] == [8192, 32000, 65536, 1 << 20]
    assert parse_counts("128,512") == [128, 512] and parse_counts("1-3,9") == [1, 2, 3, 9]
    assert parse_counts("0-8192+4096") == [0, 4096, 8192] and parse_counts("1-8*2") == [1, 2, 4, 8]
    for text in ("", "0", "-1", "1.5k", "k", "1e3", "9" * 13):
        with pytest.raises(BadParameter):
            parse_size(text)
    for text in ("", "a", "1,,2", "-1", "99999999999", "3-1", "0-8*2", "1-8*1", "1-8+0", "1-2000", "1-"):
        with pytest.raises(BadParameter):
            parse_counts(text)


def test_inspect_tells_what_the_file_holds(tiny_gguf: Callable[..., Tiny]) -> None:
    tiny = tiny_gguf("Q4_K_M")
    facts = json.loads(glmrun("inspect", str(tiny.path), "--json", "--tensors", "--metadata").stdout)
    weights = sum(values.size for values in tiny.weights.values())
    assert facts["parameters"] == weights == sum(facts["formats"].values())
    assert facts["file_bytes"] == tiny.path.stat().st_size and facts["config"]["n_routed_experts"] == ODD.n_routed_experts
    assert {t["name"]: t["format"] for t in facts["tensor_list"]} == tiny.formats
    assert [t["shape"] for t in facts["tensor_list"]] == [list(tiny.weights[t["name"]].shape) for t in facts["tensor_list"]]
    assert facts["metadata"]["deepseek2.expert_used_count"] == 3
    assert facts["metadata"]["tokenizer.ggml.tokens"]["length"] == ODD.vocab_size

    exps = 3 * ODD.moe_intermediate_size * ODD.hidden_size * (ODD.n_routed_experts - ODD.num_experts_per_tok) * 2  # two MoE layers
    assert facts["parameters_active"] == weights - exps - (ODD.vocab_size - 1) * ODD.hidden_size

    summary = glmrun("show", str(tiny.path)).stdout.decode()
    assert "deepseek2" in summary and "3 of 12, and 1 shared" in summary and f"{facts['file_bytes']:,} bytes" in summary
    listed = glmrun("inspect", str(tiny.path), "--tensors", "--match", r"blk\.1\.ffn_down_exps").stdout.decode().splitlines()
    assert len(listed) == 2 and listed[1].split()[:2] == ["blk.1.ffn_down_exps.weight", "12"]


def test_convert_writes_the_file_that_the_plan_promises(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "Tiny-1")
    planned = glmrun("convert", str(folder), "-q", "q6_k", "--dry-run", cwd=tmp_path).stdout.decode().splitlines()
    assert planned[0].split() == ["tensor", "shape", "from", "to", "bytes"]
    assert planned[1].split() == ["token_embd.weight", "320", "x", "256", "BF16", "Q6_K", "67,200"]
    done = glmrun("convert", str(folder), "-q", "q6_k", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == b"" and b"bits per weight" in done.stderr
    file = tmp_path / "Tiny-1-Q6_K.gguf"  # the folder's name and the quantization's
    assert f"the file: {file.stat().st_size:,} bytes" in planned[-1]
    facts = json.loads(glmrun("inspect", str(file), "--json").stdout)
    assert {row.split()[0] for row in planned[1:] if "  " in row} >= {"blk.3.nextn.eh_proj.weight"} and facts["mtp_layers"] == 1

    assert "exists already" in refused("convert", str(folder), "-q", "Q6_K", code=1, cwd=tmp_path)
    before = file.read_bytes()
    assert glmrun("convert", str(folder), "--quantize", "Q6_K", "--force", "-t", "1", cwd=tmp_path).returncode == 0
    assert file.read_bytes() == before
    assert glmrun("convert", str(folder), "--outtype", "f16", "--no-mtp", "--outfile", str(tmp_path / "no.gguf")).returncode == 0
    assert json.loads(glmrun("inspect", str(tmp_path / "no.gguf"), "--json").stdout)["mtp_layers"] == 0


def test_the_quantizations_are_listed() -> None:
    listed = glmrun("convert", "--list-quants").stdout.decode().splitlines()
    assert [line.split()[0] for line in listed] == ["name", "Q4_K_M", "Q6_K", "Q8_0", "F16", "BF16", "F32"]


def test_the_plan_for_the_real_model_has_llama_quantizes_totals(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, make_synthetic.FLASH)
    planned = glmrun("convert", str(tmp_path), "--dry-run", "--no-mtp").stdout.decode()
    assert "844 tensors" in planned and "18,123,246,080 bytes of tensor data" in planned


def test_a_disk_that_fills_up_at_once_leaves_nothing_behind(tmp_path: Path) -> None:
    folder, out = write_folder(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))  # the same as a full disk: a write that fails
    error = refused("convert", str(folder), "-o", str(out / "x.gguf"), code=1, preexec_fn=limit)
    assert "x.gguf" in error and list(out.iterdir()) == []


def test_an_interrupted_conversion_says_how_to_go_on(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "big", replace(FLASH, num_hidden_layers=2, num_nextn_predict_layers=0))
    out = tmp_path / "out"
    out.mkdir()
    arguments = ["convert", str(tmp_path / "big"), "-o", str(out / "x.gguf"), "-q", "q8_0", "--tensor-type", "ffn_=f16"]
    process = subprocess.Popen([sys.executable, "-m", "glmrun", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None and b'"at"' not in (b"".join(path.read_bytes() for path in out.glob(".*.journal"))):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    said = stderr.decode().splitlines()[-1]
    assert (process.returncode, stdout) == (130, b"") and "The same command continues: glmrun convert" in said
    assert sorted(path.name for path in out.iterdir()) == [".x.gguf.journal", ".x.gguf.partial"]
    assert shlex.split(said[said.index("glmrun convert") :])[1:] == arguments


def test_verify(tmp_path: Path, tiny_gguf: Callable[..., Tiny]) -> None:
    folder = write_folder(tmp_path / "Tiny-1")
    assert glmrun("convert", str(folder), "-q", "f32", "--report", "r.json", cwd=tmp_path).returncode == 0
    file = tmp_path / "Tiny-1-F32.gguf"
    done = glmrun("verify", str(file))
    assert (done.returncode, done.stdout) == (0, b"") and b": intact, " in done.stderr
    for place, words in ((".", ". is a folder"), ("no/r.json", "folder no does not exist")):
        second = ("convert", str(folder), "-q", "f32", "-o", "second.gguf", "--report", place)
        assert words in refused(*second, code=2, cwd=tmp_path)
    assert not (tmp_path / "second.gguf").exists()  # refused before the work
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["file_bytes"] == file.stat().st_size and report["tensors"][0]["relative_error"] == 0
    data = bytearray(file.read_bytes())
    data[-10_000] ^= 4
    file.write_bytes(data)
    done = glmrun("verify", str(file))
    assert (done.returncode, done.stdout) == (1, b"damaged: output.weight\n")
    assert "carries no checksums" in refused("verify", str(tiny_gguf().path), code=1)
    assert "no such file" in refused("verify", str(tmp_path / "none.gguf"), code=3)


def test_nano_answers_a_question() -> None:
    given = ["run", "nano", "What is 2 + 3?", "--temp", "0", "-n", "40", "-c", "256", "--json"]
    answer, again = (json.loads(glmrun(*given).stdout) for _ in range(2))
    assert (answer["text"], answer["reasoning"]) == (again["text"], again["reasoning"]) and answer["text"] + answer["reasoning"]
    assert answer["finish_reason"] in ("stop", "length") and answer["usage"]["completion_tokens"] <= 40
    done = glmrun(*given[:-1])
    assert done.stdout.decode() == (answer["text"] + "\n" if answer["text"] else "")
    assert answer["reasoning"] in done.stderr.decode()


def test_nano_chats_and_finds_its_first_turn_in_the_cache() -> None:
    done = glmrun("chat", "nano", "--no-think", "--temp", "0", "-n", "8", "-c", "256", stdin=b"Hello!\nAnd again.\n")
    assert done.returncode == 0 and len(done.stdout.splitlines()) >= 2
    assert re.findall(r"· (\d+) cached", done.stderr.decode())


def test_nano_is_measured_in_three_quantizations() -> None:
    done = glmrun("bench", "-p", "8", "-n", "2", "-r", "2", "-t", "1", "-o", "json")
    rows = json.loads(done.stdout)
    kinds = ["Q4_K - Medium", "Q6_K", "Q8_0"]
    assert [row["model_type"] for row in rows] == [f"deepseek2 ?B {kind}" for kind in kinds for _ in range(2)]
    assert [(row["n_prompt"], row["n_gen"]) for row in rows] == [(8, 0), (0, 2)] * 3
    assert all(row["n_threads"] == 1 and len(row["samples_ns"]) == 2 and row["avg_ts"] > 0 for row in rows)
    assert rows[0]["model_size"] < rows[2]["model_size"] < rows[4]["model_size"]
    lines = glmrun("bench", "-m", "nano,nano", "-p", "8", "-n", "0", "-r", "1", "-o", "csv").stdout.decode().splitlines()
    assert len(lines) == 3 and lines[0].startswith("build_commit,build_number,cpu_info,") and lines[1].startswith('"glmrun-')


def test_the_demo_goes_through() -> None:
    done = glmrun("demo")
    shown = done.stdout.decode()
    assert done.returncode == 0 and "\x1b" not in shown
    assert all(words in shown for words in (" MiB ", ">>> What is", "thinking", "glmrun pull ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M"))
    tests = [line.split("|")[6].strip() for line in shown.splitlines() if line.startswith("| deepseek2")]
    assert tests == ["pp512", "tg64"] * 3


def test_an_interrupt_while_the_program_is_read() -> None:
    """Half of a start is reading modules; Ctrl-C there printed where in them it had been."""
    code = (
        "import os, signal, sys\n"
        "module = sys.argv.pop(1)\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == module: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "from glmrun.__main__ import main\n"
        "main()\n"
    )
    for module, expected in (("typer", -2), ("glmrun.cli.serve", -2), ("glmrun.store.local", 130)):
        done = subprocess.run([sys.executable, "-c", code, module, "list"], capture_output=True, env=os.environ, timeout=60)
        assert done.returncode == expected and done.stdout == done.stderr == b"", (module, done)
