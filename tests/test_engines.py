"""`glmrun plan --engine`: the commands that start the model in programs for GPUs."""

import json
import shlex
from pathlib import Path

import pytest
from test_cli import glmrun, refused

from glmrun.measure.engines import shares
from quant.config import FLASH


@pytest.mark.parametrize(
    ("gpus", "together", "copies"), [(1, 1, 1), (2, 2, 1), (3, 1, 3), (4, 4, 1), (6, 2, 3), (8, 4, 2), (20, 4, 5)]
)
def test_heads_and_experts_are_shared_evenly(gpus: int, together: int, copies: int) -> None:
    assert shares(gpus) == (together, copies) and together * copies == gpus
    assert FLASH.num_attention_heads % together == FLASH.moe_intermediate_size % together == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--engine", "vllm", "--gpus", "8", "-c", "64K"],
         "vllm serve zai-org/GLM-4.7-Flash --served-model-name glm-4.7-flash --host 127.0.0.1 --port 8000 --tensor-parallel-size 4 "
         "--data-parallel-size 2 --max-model-len 65536 --speculative-config.method mtp "
         "--speculative-config.num_speculative_tokens 1 --tool-call-parser glm47 --reasoning-parser glm45 "
         "--enable-auto-tool-choice"),
        (["zai-org/GLM-4.7-Flash", "--engine", "sglang"],
         "python3 -m sglang.launch_server --model-path zai-org/GLM-4.7-Flash --served-model-name glm-4.7-flash --host 127.0.0.1 "
         "--port 8000 --tp-size 1 --tool-call-parser glm47 --reasoning-parser glm45 --speculative-algorithm EAGLE "
         "--speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4"),
        (["q8_0", "--engine", "llama-server", "--gpus", "2"],
         "llama-server -hf ggml-org/GLM-4.7-Flash-GGUF:Q8_0 --alias glm-4.7-flash --host 127.0.0.1 --port 8000 -c 32768 -ngl 99 "
         "--jinja --temp 1.0 --top-p 0.95 --min-p 0.01"),
    ],
)  # fmt: skip
def test_the_command_for_another_program(arguments: list[str], expected: str) -> None:
    done = glmrun("plan", *arguments)
    assert done.returncode == 0 and shlex.split(done.stdout.decode().replace("\\\n", "")) == expected.split()
    assert b"glmrun chat --url http://127.0.0.1:8000/v1 glm-4.7-flash" in done.stderr
    assert json.loads(glmrun("plan", *arguments, "--json").stdout)["command"] == expected.split()


def test_a_folder_with_a_blank_is_one_word(tmp_path: Path) -> None:
    folder = tmp_path / "my model; rm x"
    folder.mkdir()
    done = glmrun("plan", str(folder), "--engine", "vllm", "--gpus", "2")
    assert shlex.split(done.stdout.decode().replace("\\\n", ""))[2] == str(folder) and b"holds 31.2 GB" in done.stderr
    assert "runs the checkpoint" in refused("plan", "Q4_K_M", "--engine", "vllm", code=2)
    assert "say for which program" in refused("plan", "--gpus", "2", code=2)
    assert "takes at most 202,752" in refused("plan", "--engine", "vllm", "-c", "300k", code=2)
    for option, value in (("--threads", ["4"]), ("--kv-type", ["f16"]), ("--devices", []), ("--measure", [])):
        assert f"no place for {option};" in refused("plan", "--engine", "vllm", option, *value, code=2)
