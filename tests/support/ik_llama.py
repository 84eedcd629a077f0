"""ik_llama.cpp, through the wheel ik-llama-cpp-python: logits of a GGUF file.

    python tests/support/ik_llama.py MODEL.gguf IDS.json LOGITS.npy

A process of its own, because its libraries carry the same names of functions as llama.cpp's.
"""

import json
import sys
from collections.abc import Sequence

import numpy as np


def logits(path: str, ids: Sequence[int]) -> np.ndarray:
    """float32 (len(ids), n_vocab) from an empty cache in 16 bits, without flash attention."""
    from ik_llama_cpp import _ctypes_api as ik  # type: ignore[import-not-found]

    ik.llama_backend_init()
    model = ik.llama_model_load_from_file(path.encode(), ik.llama_model_default_params())
    assert model, f"ik_llama.cpp does not load {path}"
    params = ik.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(len(ids), 32)
    params.n_threads = params.n_threads_batch = 2
    params.flash_attn, params.mla_attn, params.logits_all = False, 3, True
    context = ik.llama_init_from_model(model, params)
    assert context, "ik_llama.cpp makes no context"
    batch = ik.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for position, token in enumerate(ids):
        batch.token[position], batch.pos[position] = int(token), position
        batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
    assert ik.llama_decode(context, batch) == 0
    width = ik.llama_vocab_n_tokens(ik.llama_model_get_vocab(model))
    rows = [np.ctypeslib.as_array(ik.llama_get_logits_ith(context, i), shape=(width,)).copy() for i in range(len(ids))]
    return np.stack(rows)


if __name__ == "__main__":
    model_path, ids_path, out_path = sys.argv[1:]
    with open(ids_path, encoding="utf-8") as file:
        np.save(out_path, logits(model_path, json.load(file)))
