"""Two checkpoints, what transformers computes for them, and the GGUF files that glmrun makes of them."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from support import checkpoint
from support.checkpoint import Case
from transformers import Glm4MoeLiteForCausalLM

import glmrun

torch.set_num_threads(2)
GOLDEN = Path(__file__).parent.parent / "golden"


def _case(name: str, folder: Path, texts: list[list[int]]) -> Case:
    model = Glm4MoeLiteForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return Case(name, folder, texts, np.concatenate([model(torch.tensor([text])).logits[0].numpy() for text in texts]))


@pytest.fixture(scope="session")
def nano() -> Case:
    """The model that comes along, on ten dialogues as it continues them."""
    dialogues = json.loads((GOLDEN / "nano_greedy.json").read_text(encoding="utf-8"))
    return _case("nano", Path(glmrun.__file__).parent / "nano", [d["prompt"] + d["greedy"] for d in dialogues])


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A random model of other dimensions in eleven shards, on random tokens."""
    folder = checkpoint.save(tmp_path_factory.mktemp("odd"))
    rng = np.random.default_rng(1)
    return _case("odd", folder, [rng.integers(0, 950, 100).tolist() for _ in range(6)])


@pytest.fixture(scope="session")
def gguf_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, str], Path]:
    """The file that `glmrun convert` makes of a checkpoint, made once."""

    @cache
    def convert(folder: Path, recipe: str) -> Path:
        path = tmp_path_factory.mktemp("gguf") / f"{recipe}.gguf"
        command = [sys.executable, "-m", "glmrun", "convert", str(folder), "-q", recipe, "-o", str(path), "-t", "2"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path

    return lambda case, recipe: convert(case.folder, recipe)
