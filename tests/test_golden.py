"""nano as glmrun computes it against nano as transformers computes it, from files that scripts/make_golden.py wrote."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.comparison import errors, greedy_tokens, nmse, top1

import glmrun
from glmrun.chat.request import ChatRequest
from quant.checkpoint import Checkpoint
from quant.convert import convert, plan

NANO, GOLDEN = Path(glmrun.__file__).parent / "nano", Path(__file__).parent / "golden"
CERTIFICATE = json.loads((GOLDEN / "certificate.json").read_text(encoding="utf-8"))
GREEDY = json.loads((GOLDEN / "nano_greedy.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], "glmrun.Model"]:
    """nano in a recipe, converted once."""
    folder, models = tmp_path_factory.mktemp("nano"), {}

    def load(recipe: str) -> "glmrun.Model":
        if recipe not in models:
            path = folder / f"{recipe}.gguf"
            for _ in convert(plan(Checkpoint.open(NANO), recipe), path):
                pass
            models[recipe] = glmrun.load(path, n_ctx=512, n_threads=2)
        return models[recipe]

    return load


def test_the_goldens_are_of_this_checkpoint():
    total = hashlib.sha256()
    for path in sorted(p for p in NANO.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    assert total.hexdigest() == CERTIFICATE["checkpoint_sha256"], "nano has changed: run scripts/make_golden.py"


@pytest.mark.parametrize("recipe", ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q4_K_M"])
def test_logits_against_transformers(nano, recipe, capsys):
    """F32, BF16 and F16 by a fixed bound; the quantized files by llama.cpp's error on the same file, the larger of two.

    Positions where a router is near a tie are not among them: there one rounding decides which expert is taken, in either program.
    """
    with np.load(GOLDEN / "nano_logits.npz") as stored:
        positions, expected = stored["positions"], stored["logits"]
    got = np.concatenate([nano(recipe).logits(entry["prompt"] + entry["greedy"]) for entry in GREEDY])[positions]
    ours = {"nmse": nmse(got, expected), "median": float(np.median(errors(got, expected)))}
    theirs = {key: max(found[key] for found in CERTIFICATE["llama_cpp_errors"][recipe].values()) for key in ours}
    with capsys.disabled():
        print(f"\nnano {recipe:7} error {ours['nmse']:.2e}, median position {ours['median']:.2e}", end="")
        print(f" (llama.cpp {theirs['nmse']:.2e}, {theirs['median']:.2e}); same likeliest token {top1(got, expected):.1%}")
    if recipe in ("F32", "BF16", "F16"):
        assert ours["nmse"] <= {"F32": 1e-5, "BF16": 1e-4, "F16": 1e-4}[recipe]
    else:
        # A median of 160 positions moves by some hundredths with their choice.
        assert ours["median"] <= 1.05 * theirs["median"] and ours["nmse"] <= theirs["nmse"]


@pytest.mark.parametrize("entry", GREEDY, ids=[entry["user"] for entry in GREEDY])
def test_greedy_text_is_transformers_text(nano, entry):
    assert len(entry["greedy"]) == 100 and entry["margin"] >= 0.02
    assert greedy_tokens(nano("BF16"), entry["prompt"], 100) == entry["greedy"]


@pytest.mark.parametrize("entry", GREEDY, ids=[entry["user"] for entry in GREEDY])
def test_prompts_are_rendered_and_cut_as_transformers_does(nano, entry):
    request = ChatRequest([{"role": "user", "content": entry["user"]}], entry["tools"], entry["thinking"])
    assert nano("BF16").chat_format.encode(request) == entry["prompt"]
