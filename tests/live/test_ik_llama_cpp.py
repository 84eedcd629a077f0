"""nano in ik_llama.cpp, which accepts 512 + 64 latent values and heads in fours only: its logits beside transformers' and ours."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.comparison import errors, top1

import glmrun

DRIVER = Path(__file__).parent.parent / "support" / "ik_llama.py"


@pytest.mark.parametrize("recipe,bound", [("BF16", 1e-4), ("Q8_0", 2e-3)])
def test_logits_of_the_same_file(nano, tmp_path, recipe, bound):
    """At the median position; the next-token layer stays out of the file, because that engine counts the tensors it knows."""
    path, text = tmp_path / "nano.gguf", nano.texts[0]
    convert = [sys.executable, "-m", "glmrun", "convert", str(nano.folder), "-q", recipe, "--no-mtp", "-o", str(path)]
    assert subprocess.run(convert, capture_output=True).returncode == 0
    (tmp_path / "ids.json").write_text(json.dumps(text))
    command = [sys.executable, str(DRIVER), str(path), str(tmp_path / "ids.json"), str(tmp_path / "logits.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "logits.npy")
    ours = glmrun.load(path, n_ctx=1024, n_threads=2).logits(text)
    truth = nano.truth[: len(text)]
    print(f"\n{recipe}: ik_llama.cpp {np.median(errors(theirs, truth)):.2e}, glmrun {np.median(errors(ours, truth)):.2e}")
    if recipe == "BF16":
        assert np.median(errors(theirs, truth)) <= bound and top1(theirs, truth) >= 0.99
    assert np.median(errors(ours, theirs)) <= bound
