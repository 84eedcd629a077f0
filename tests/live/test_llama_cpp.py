"""glmrun and llama.cpp on the same files: both against transformers, and against each other.

The measure is the squared distance between two logit vectors over the squared length of the second. A router near a tie makes a few
positions jump (another expert is taken), in llama.cpp against itself as well, so engines are compared by the median position and the
jumping ones are counted and looked into.
"""

import subprocess
import sys
from pathlib import Path

import llama
import numpy as np
import pytest
from comparison import errors, nmse, text_of, tokens_of, top1
from naive import Naive, read_weights

import glmrun

RECIPES = ["F32", "BF16", "F16", "Q8_0", "Q6_K", "Q4_K_M"]
ROOT = Path(__file__).parent.parent.parent


def ours_on(path: Path, texts: list[list[int]]) -> np.ndarray:
    """glmrun's logits, all positions of all texts."""
    model = glmrun.load(path, n_ctx=max(map(len, texts)), n_threads=2)
    return np.concatenate([model.logits(text) for text in texts])


def theirs_on(path: Path, texts: list[list[int]], flash: bool = False) -> np.ndarray:
    """llama.cpp's."""
    return np.concatenate(llama.logits(path, texts, flash))


class Margins(Naive):
    """Notes by how much the last expert taken was preferred to the first one left out, the least over all layers."""

    def route(self, i, x):
        """Naive.route, noting margins on the way."""
        scores = 1 / (1 + np.exp(-(x @ self.weight(f"blk.{i}.ffn_gate_inp.weight").T))) + self.weight(f"blk.{i}.exp_probs_b.bias")
        ranked = np.sort(scores, axis=-1)[:, ::-1]
        margin = ranked[:, self.config.num_experts_per_tok - 1] - ranked[:, self.config.num_experts_per_tok]
        self.margins = np.minimum(getattr(self, "margins", np.inf), margin)
        return super().route(i, x)


def router_margins(path: Path, texts: list[list[int]]) -> np.ndarray:
    """Per position, the closest call of any router."""
    weights, config, out = read_weights(path)[0], glmrun.load(path, n_ctx=8).config, []
    for text in texts:
        naive = Margins(weights, config, dtype=np.float32)
        naive.logits(text)
        out.append(naive.margins)
    return np.concatenate(out)


@pytest.mark.parametrize("name", ["nano", "odd"])
def test_errors_against_transformers_beside_llama_cpps(name, request, gguf_of):
    """F32 and BF16 within fixed bounds, the quantized files no worse than llama.cpp on the same file."""
    case = request.getfixturevalue(name)
    print(f"\n\n{name}: error against transformers' float32 logits, {len(case.truth)} positions (NMSE over all; median position)")
    print(f"{'file':8}{'glmrun':>22}{'llama.cpp':>22}{'with flash attention':>24}{'same top token: ours':>24}{'llama.cpp':>12}")
    failed = []
    for recipe in RECIPES:
        path = gguf_of(case, recipe)
        ours, theirs, flash = ours_on(path, case.texts), theirs_on(path, case.texts), theirs_on(path, case.texts, flash=True)
        cells = [f"{nmse(x, case.truth):.2e}  {np.median(errors(x, case.truth)):.2e}" for x in (ours, theirs, flash)]
        agreement = [f"{top1(x, case.truth):.1%}" for x in (ours, theirs)]
        print(f"{recipe:8}{cells[0]:>22}{cells[1]:>22}{cells[2]:>24}{agreement[0]:>24}{agreement[1]:>12}")
        bound = {"F32": 1e-5, "BF16": 1e-4, "F16": 1e-4}.get(recipe, nmse(theirs, case.truth))
        if not nmse(ours, case.truth) <= bound:
            failed.append(f"{recipe}: {nmse(ours, case.truth):.3e}, allowed {bound:.3e}")
    assert not failed


@pytest.mark.parametrize("name", ["nano", "odd"])
def test_both_engines_agree_on_the_same_file(name, request, gguf_of):
    """The median distance is at most three times llama.cpp's distance to itself with flash attention on."""
    case = request.getfixturevalue(name)
    print(
        f"\n\n{name}: distance between engines on the same file, median position; jumping positions and how close their routers were"
    )
    print(
        f"{'file':8}{'glmrun-llama.cpp':>18}{'llama.cpp flash on-off':>24}{'jump: ours':>12}{'theirs':>8}{'their router margin':>22}{'all':>10}"
    )
    failed = []
    for recipe in RECIPES:
        path = gguf_of(case, recipe)
        theirs = theirs_on(path, case.texts)
        between = errors(ours_on(path, case.texts), theirs)
        itself = errors(theirs_on(path, case.texts, flash=True), theirs)
        jump = max(1e-3, 30 * np.median(itself))
        ours_jump, margins = between > jump, router_margins(path, case.texts)
        closest = f"{np.median(margins[ours_jump]):.1e}" if ours_jump.any() else "-"
        print(
            f"{recipe:8}{np.median(between):18.2e}{np.median(itself):24.2e}{ours_jump.sum():12}{(itself > jump).sum():8}"
            f"{closest:>22}{np.median(margins):10.1e}"
        )
        if not np.median(between) <= 3 * np.median(itself):
            failed.append(f"{recipe}: {np.median(between):.2e}, llama.cpp itself {np.median(itself):.2e}")
        if not ours_jump.mean() <= max(2 * (itself > jump).mean(), 0.02):
            failed.append(f"{recipe}: {ours_jump.sum()} of {len(between)} positions jump, llama.cpp itself {(itself > jump).sum()}")
    assert not failed


@pytest.mark.parametrize("name", ["nano", "odd"])
@pytest.mark.parametrize("recipe", ["Q8_0", "Q6_K", "Q4_K_M"])
def test_a_file_of_llama_cpps_own_quantizer_runs_as_well(name, recipe, request, gguf_of, tmp_path):
    case = request.getfixturevalue(name)
    path = tmp_path / "theirs.gguf"
    llama.quantize(gguf_of(case, "BF16"), path, recipe)
    ours_formats, theirs_formats = read_weights(gguf_of(case, recipe))[1], read_weights(path)[1]
    assert ours_formats == theirs_formats
    theirs = theirs_on(path, case.texts)
    between, itself = errors(ours_on(path, case.texts), theirs), errors(theirs_on(path, case.texts, flash=True), theirs)
    print(
        f"\n{name} {recipe} by llama.cpp's quantizer: glmrun-llama.cpp {np.median(between):.2e}, flash on-off {np.median(itself):.2e}"
    )
    assert np.median(between) <= 3 * np.median(itself)


def test_a_full_shape_model_cut_to_a_few_layers_runs_in_both(tmp_path):
    path = tmp_path / "cut.gguf"
    command = [sys.executable, str(ROOT / "scripts" / "make_synthetic.py"), "--layers", "3", "-q", "Q4_K_M", "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = np.random.default_rng(0).integers(0, 150_000, 24).tolist()
    theirs = theirs_on(path, [text])
    between, itself = errors(ours_on(path, [text]), theirs), errors(theirs_on(path, [text], flash=True), theirs)
    print(f"\nfull shape, 3 layers, Q4_K_M: glmrun-llama.cpp {np.median(between):.2e}, flash on-off {np.median(itself):.2e}")
    assert np.median(between) <= 3 * np.median(itself)
    model = glmrun.load(path, n_ctx=64, n_threads=2)
    chunks = list(model.generate(text, max_tokens=8, temperature=0))
    assert len(tokens_of(chunks)) == 8 and isinstance(text_of(chunks), str)
