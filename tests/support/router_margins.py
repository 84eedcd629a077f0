"""How close the calls of the routers are: where one is near a tie, rounding decides which expert is taken, and the logits jump."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from naive import Array, Naive, read_weights

from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf


class _Margins(Naive):
    """Notes by how much the last expert taken was preferred to the first one left out, the least over all layers."""

    margins: Array | float = np.inf

    def route(self, i: int, x: Array) -> tuple[Array, Array]:
        """Naive.route, and what preceded it."""
        scores = 1 / (1 + np.exp(-(x @ self.weight(f"blk.{i}.ffn_gate_inp.weight").T))) + self.weight(f"blk.{i}.exp_probs_b.bias")
        ranked, top = np.sort(scores, axis=-1)[:, ::-1], self.config.num_experts_per_tok
        self.margins = np.minimum(self.margins, ranked[:, top - 1] - ranked[:, top])
        return super().route(i, x)


def router_margins(path: Path, texts: Sequence[Sequence[int]]) -> Array:
    """Per position of all texts, one after another, the closest call of any (sigmoid) router of the model in a GGUF file."""
    weights, config, out = read_weights(path)[0], config_from_gguf(open_gguf(path)), []
    for text in texts:
        naive = _Margins(weights, config, dtype=np.float32)
        naive.logits(text)
        out.append(np.asarray(naive.margins))
    return np.concatenate(out)
