"""How far apart two sets of logits are, and what a model generated."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def errors(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Per position, squared distance over squared length: (..., n_vocab) twice -> (...)."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return ((got - expected) ** 2).sum(-1) / (expected**2).sum(-1)


def nmse(got: np.ndarray, expected: np.ndarray) -> float:
    """Sum of squared differences over the sum of squares expected."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


def top1(got: np.ndarray, expected: np.ndarray) -> float:
    """Share of positions whose likeliest token is the same."""
    return float((got.argmax(-1) == expected.argmax(-1)).mean())


def tokens_of(chunks: Iterable[Any]) -> list[int]:
    """The token ids in what a model yielded."""
    return [chunk.token for chunk in chunks if chunk.token is not None]


def text_of(chunks: Iterable[Any]) -> str:
    """The text in what a model yielded."""
    return "".join(chunk.text for chunk in chunks)


def greedy_tokens(model: Any, prompt: Sequence[int], n: int) -> list[int]:
    """The n likeliest tokens after prompt, one after another, ends of answers passed over."""
    tokens: list[int] = []
    while len(tokens) < n:
        chunks = list(model.generate([*prompt, *tokens], max_tokens=n - len(tokens), temperature=0))
        tokens += tokens_of(chunks)
        if chunks[-1].finish_reason == "stop" and len(tokens) < n and tokens[-1:] and tokens[-1] not in model.tokenizer.eog_ids:
            tokens.append(int(model.logits([*prompt, *tokens])[-1].argmax()))
            assert tokens[-1] in model.tokenizer.eog_ids
    return tokens
