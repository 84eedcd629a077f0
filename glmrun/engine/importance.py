"""Collect an importance matrix: run text through a model and sum the squares of what its matrices read.

collector = Collector(model, ["text.txt"])
collector.read(ids)             # some hundred tokens at a time
collector.result()
"""

from collections.abc import Sequence

import numpy as np

from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.kernels.importance import ATTENTION, ATTENTION_OUTPUT, DOWN, EXPERTS, EXPERTS_DOWN, FFN, K_B, N_INPUTS, Q_B, V_B
from quant.config import Config
from quant.importance import Importance

_OUTPUT_TOKENS = 32  # of each step: asking the output matrix costs as much as half a layer, and its one input is seen often enough


class Collector:
    """The sums so far, which the kernels add to."""

    def __init__(self, model: Model, datasets: list[str]) -> None:
        self._model, self._datasets, self._n_chunks, self._chunk_size = model, datasets, 0, 0
        config = model.config
        self._table = np.zeros((config.num_hidden_layers + 1, N_INPUTS), np.int64)  # addresses
        self._sums: dict[str, np.ndarray] = {}  # float32 (matrices, columns + 1): sums of squares, and how many vectors
        for i in range(config.num_hidden_layers):
            for kind, (n_matrices, columns, readers) in _inputs(config, i).items():
                self._add(i, kind, n_matrices, columns, [f"blk.{i}.{name}.weight" for name in readers])
        output = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
        self._add(config.num_hidden_layers, 0, 1, config.hidden_size, [output])

    def _add(self, layer: int, kind: int, n_matrices: int, columns: int, readers: list[str]) -> None:
        sums = np.zeros((n_matrices, columns + 1), np.float32)
        self._table[layer, kind] = sums.ctypes.data
        self._sums |= dict.fromkeys(readers, sums)

    def read(self, ids: Sequence[int]) -> None:
        """Add one chunk of tokens, read from an empty cache."""
        model, sequence, table = self._model, self._model.latest, self._table.ctypes.data
        checked = model.checked(ids)  # int64 (tokens,)
        model.finite()
        logits = np.empty((min(_OUTPUT_TOKENS, len(checked)), model.config.vocab_size), np.float32)  # float32 (tokens, n_vocab)
        sequence.truncate(0)
        try:
            for start in range(0, len(checked), model.runner.max_tokens):
                part = checked[start : start + model.runner.max_tokens]
                model.runner.step([Run(sequence, part, logits[: len(part)])], importance=table)
        finally:
            sequence.truncate(0)
        self._n_chunks, self._chunk_size = self._n_chunks + 1, max(self._chunk_size, len(ids))

    def result(self) -> Importance:
        """A copy of the sums."""
        sums = {name: both[:, :-1].copy() for name, both in self._sums.items()}
        counts = {name: both[:, -1].copy() for name, both in self._sums.items()}
        for name in sums:
            if "attn_k_b" in name or "attn_v_b" in name:  # the heads share a count
                sums[name], counts[name] = sums[name].reshape(1, -1), counts[name][:1]
        return Importance(sums, counts, self._datasets, self._n_chunks, self._chunk_size)


def _inputs(c: Config, i: int) -> dict[int, tuple[int, int, tuple[str, ...]]]:
    """{input of layer i: matrices, columns, the tensors that read it}."""
    found: dict[int, tuple[int, int, tuple[str, ...]]] = {
        ATTENTION: (1, c.hidden_size, ("attn_q_a", "attn_kv_a_mqa")),
        Q_B: (1, c.q_lora_rank, ("attn_q_b",)),
        K_B: (c.num_attention_heads, c.qk_nope_head_dim, ("attn_k_b",)),
        V_B: (c.num_attention_heads, c.kv_lora_rank, ("attn_v_b",)),
        ATTENTION_OUTPUT: (1, c.num_attention_heads * c.v_head_dim, ("attn_output",)),
    }
    if i < c.first_k_dense_replace:
        return found | {FFN: (1, c.hidden_size, ("ffn_gate", "ffn_up")), DOWN: (1, c.intermediate_size, ("ffn_down",))}
    return found | {
        FFN: (1, c.hidden_size, ("ffn_gate_shexp", "ffn_up_shexp")),
        DOWN: (1, c.n_shared_experts * c.moe_intermediate_size, ("ffn_down_shexp",)),
        EXPERTS: (c.n_routed_experts, c.hidden_size, ("ffn_gate_exps", "ffn_up_exps")),
        EXPERTS_DOWN: (c.n_routed_experts, c.moe_intermediate_size, ("ffn_down_exps",)),
    }
