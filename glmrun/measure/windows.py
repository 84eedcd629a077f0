"""A text in windows of n_ctx tokens, as llama-perplexity cuts it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from quant.errors import UserError, brief

if TYPE_CHECKING:
    from glmrun.engine.model import Model


@dataclass(frozen=True)
class Windows:
    """What is read: ids int32 (windows, n_ctx); bos takes the place of each window's first token, if the file wants one."""

    ids: np.ndarray
    bos: int | None

    @property
    def n_ctx(self) -> int:
        return self.ids.shape[1]

    @property
    def n_scored(self) -> int:
        """Positions that are scored in each window."""
        return self.n_ctx - 1 - self.n_ctx // 2


def bos_of(model: "Model") -> int | None:
    """The token that the file wants before every text, or None."""
    if model.file.metadata.get("tokenizer.ggml.add_bos_token") is not True:
        return None
    token = model.file.metadata.get("tokenizer.ggml.bos_token_id")
    if not isinstance(token, int) or not 0 <= token < model.config.vocab_size:
        raise UserError(f"{model.path}: add_bos_token is set and bos_token_id is {brief(token)}; expected a token id")
    return token


def cut(model: "Model", text: str, n_ctx: int, n_chunks: int | None = None, special: bool = False) -> Windows:
    """The whole windows of a text, at most n_chunks; special as in Tokenizer.encode(). Raises UserError for too short a text."""
    bos = bos_of(model)
    ids = ([] if bos is None else [bos]) + model.tokenizer.encode(text, special=special)
    n_windows = min(len(ids) // n_ctx, n_chunks or len(ids))
    if not n_windows:
        raise UserError(f"the text has {len(ids):,} tokens; at least one window of {n_ctx:,} is needed", "refused", "n_ctx")
    return Windows(np.array(ids[: n_windows * n_ctx], np.int32).reshape(n_windows, n_ctx), bos)  # int32 (windows, n_ctx)
