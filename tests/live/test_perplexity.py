"""The perplexity of nano's BF16 file: transformers' and llama.cpp's logits, scored by the rule written out once more."""

import numpy as np
import torch
from support import llama
from transformers import Glm4MoeLiteForCausalLM

import glmrun
from glmrun.measure.perplexity import score
from glmrun.measure.windows import cut
from glmrun.store.nano import CHECKPOINT

WINDOWS, N_CTX = 12, 512


def by_definition(logits: list[np.ndarray], windows: np.ndarray) -> float:
    """exp(-mean log p) of the tokens after each window's middle, float64, from logits (n_ctx, n_vocab) of whole windows."""
    nll = []
    for rows, ids in zip(logits, windows, strict=True):
        for i in range(N_CTX // 2, N_CTX - 1):
            x = rows[i].astype(np.float64)
            nll.append(np.log(np.sum(np.exp(x - x.max()))) + x.max() - x[ids[i + 1]])
    assert len(nll) == WINDOWS * 255
    return float(np.exp(np.mean(nll)))


@torch.no_grad()
def test_perplexity_is_transformers_and_llama_cpps(nano, gguf_of):
    path = gguf_of(nano, "BF16")
    model = glmrun.load(path, n_ctx=N_CTX, n_threads=2)
    windows = cut(model, (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8"), N_CTX, WINDOWS, special=True)
    *_, (_, scores) = score(model, windows)
    ours, error = scores.perplexity
    original = Glm4MoeLiteForCausalLM.from_pretrained(nano.folder, dtype=torch.float32).eval()
    theirs = by_definition(
        [original(torch.tensor(ids[None], dtype=torch.long)).logits[0].numpy() for ids in windows.ids], windows.ids
    )
    llamas = by_definition(llama.logits(path, windows.ids.tolist()), windows.ids)
    print(f"\nnano BF16, {WINDOWS} windows: glmrun {ours:.6f} +- {error:.6f}, transformers {theirs:.6f}, llama.cpp {llamas:.6f}")
    assert abs(ours / theirs - 1) <= 5e-5
    assert abs(ours / llamas - 1) <= 1e-3  # llama.cpp rounds activations to bfloat16 beside such weights
