"""llama.cpp, through llama-cpp-python's low-level interface: logits of a GGUF file, and llama.cpp's own quantizer."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import llama_cpp
import numpy as np

_errors: list[str] = []


@llama_cpp.llama_log_callback
def _keep_warnings(level: int, text: bytes, _data: object) -> None:
    if level >= 3:  # GGML_LOG_LEVEL_WARN
        _errors.append(text.decode(errors="replace").strip())


llama_cpp.llama_log_set(_keep_warnings, ctypes.c_void_p(0))
llama_cpp.llama_backend_init()

FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q4_K_M": 15}
FILE_TYPES |= {  # which convert does not write
    "Q4_0": 2, "Q4_1": 3, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q5_K_M": 17, "IQ4_NL": 25, "IQ4_XS": 30,
    "MXFP4_MOE": 38,
}  # fmt: skip


def logits(
    path: Path, prompts: Sequence[Sequence[int]], flash: bool = False, threads: int = 2, repack: bool = False
) -> list[np.ndarray]:
    """[float32 (len(prompt), n_vocab)] of each prompt from an empty cache, KV cache in float32.

    flash   llama.cpp's flash attention on or off
    repack  let llama.cpp rearrange the weights for speed at load (its default), which changes the order of its sums
    """
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = repack
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
    assert model, f"llama.cpp does not load {path}: {_errors[-3:]}"
    longest = max(map(len, prompts))
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = longest
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = 1 if flash else 0
    params.type_k = params.type_v = 0  # GGML_TYPE_F32
    context = llama_cpp.llama_init_from_model(model, params)
    assert context, f"llama.cpp makes no context: {_errors[-3:]}"
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    out = []
    for prompt in prompts:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(len(prompt), 0, 1)
        batch.n_tokens = len(prompt)
        for position, token in enumerate(prompt):
            batch.token[position], batch.pos[position] = int(token), position
            batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        address = llama_cpp.llama_get_logits(context)
        out.append(np.ctypeslib.as_array(address, shape=(len(prompt), n_vocab)).copy())
        llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return out


def quantize(source: Path, target: Path, recipe: str, importance: Mapping[str, np.ndarray] | None = None) -> None:
    """What llama-quantize makes of a GGUF file.

    importance   {tensor name: mean squares of its columns' inputs, all its matrices one after the other}
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FILE_TYPES[recipe], 2
    arrays = {name.encode(): np.ascontiguousarray(values, np.float32).reshape(-1) for name, values in (importance or {}).items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()  # a name of NULL ends them
    for entry, (name, values) in zip(entries, arrays.items(), strict=False):
        entry.name, entry.size = name, values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if arrays:
        params.imatrix = entries
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0, _errors[-3:]
