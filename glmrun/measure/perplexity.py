"""Perplexity of a text, and how far a model's predictions are from a reference's, by llama-perplexity's rules.

The text is cut into windows of n_ctx tokens, each read from an empty cache. What follows its middle is scored, so that every
scored token has had half a window of context:

    first = n_ctx // 2      scored: tokens first + 1 ... n_ctx - 1, by the logits behind tokens first ... n_ctx - 2

    perplexity         exp(mean of -log q(token))
    KL divergence      mean of sum_i p_i (log p_i - log q_i): p the reference, q this model; tokens below exp(-16) in p are left out
    delta p            q(token) - p(token) of the text's own next token
    same top           both find the same token likeliest
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from glmrun.measure.windows import Windows
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.engine.model import Model
    from glmrun.measure.reference import Reference, ReferenceWriter

_ROWS = 16  # positions scored at once: 154,880 logits each stay in the cache
_LEAST_LOG_P = -16.0
KLD_FRACTIONS = (0.999, 0.99, 0.95, 0.90, 0.10, 0.05, 0.01, 0.001)
DELTA_FRACTIONS = (0.999, 0.99, 0.95, 0.90, 0.75, 0.25, 0.10, 0.05, 0.01, 0.001)


@dataclass
class Scores:
    """What was found at each scored position so far, float64 (n,) each when concatenated; the last four against a reference."""

    nll: list[np.ndarray]
    nll_base: list[np.ndarray]
    kld: list[np.ndarray]
    delta_p: list[np.ndarray]
    same_top: list[np.ndarray]

    @property
    def perplexity(self) -> tuple[float, float]:
        """(perplexity, its standard error)."""
        return exp_with_error(*mean_and_error(np.concatenate(self.nll)))


def score(
    model: "Model", windows: Windows, reference: "Reference | None" = None, writer: "ReferenceWriter | None" = None
) -> Iterator[tuple[int, Scores]]:
    """Read one window after another; yields (windows read, all scores so far) after each.

    reference   compare with what another model predicted on the same windows
    writer      store what this model predicts
    """
    scores = Scores([], [], [], [], [])
    for i, ids in enumerate(windows.ids):
        read = ids[:-1].copy()
        if windows.bos is not None:
            read[0] = windows.bos
        first = windows.n_ctx // 2
        at = first + 1
        for part in model.logits_after(read, first):
            for logits in (part[start : start + _ROWS] for start in range(0, len(part), _ROWS)):
                _score_rows(logits, ids[at : at + len(logits)], scores, reference, writer)
                at += len(logits)
        yield i + 1, scores


def _score_rows(
    logits: np.ndarray, tokens: np.ndarray, scores: Scores, reference: "Reference | None", writer: "ReferenceWriter | None"
) -> None:
    """Score float32 logits (rows, n_vocab) by the tokens that came next, int32 (rows,)."""
    top = logits.max(axis=1, keepdims=True)
    log_q = logits - top
    log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)  # float32 (rows, n_vocab)
    if not np.isfinite(log_q).all():
        raise UserError("the logits are not finite: the model's numbers overflowed")
    place = np.arange(len(tokens)), tokens
    scores.nll.append(-log_q[place].astype(np.float64))
    if writer is not None:
        writer.write(log_q, scores.nll[-1])
    if reference is not None:
        log_p, nll = reference.read(tokens)
        scores.nll_base.append(nll.astype(np.float64))
        p = np.where(log_p > _LEAST_LOG_P, np.exp(log_p), np.float32(0))
        scores.kld.append(np.einsum("ij,ij->i", p, log_p - log_q, dtype=np.float64))
        scores.delta_p.append(np.exp(-scores.nll[-1]) - np.exp(-scores.nll_base[-1]))
        scores.same_top.append((log_p.argmax(axis=1) == log_q.argmax(axis=1)).astype(np.float64))


# ---- statistics ------------------------------------------------------------------------------------------------------


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """(mean, its standard error) of independent values (n,); the error of one value is unknown, 0."""
    return float(values.mean()), float(values.std() / np.sqrt(max(1, len(values) - 1)))


def exp_with_error(mean: float, error: float) -> tuple[float, float]:
    """(exp(mean), its error to first order)."""
    return float(np.exp(mean)), float(np.exp(mean) * error)


def statistics(scores: Scores) -> dict[str, Any]:
    """The numbers of llama-perplexity's report: {name: [value, error]}, and {name: value} for extremes and percentiles.

    Values of percentages are fractions.
    """
    q, base, kld, delta = (np.concatenate(x) for x in (scores.nll, scores.nll_base, scores.kld, scores.delta_p))
    same = np.concatenate(scores.same_top)
    n = len(q)
    (ln_q, error_q), (ln_base, error_base) = mean_and_error(q), mean_and_error(base)
    covariance = float(np.mean(q * base) - ln_q * ln_base) / max(1, n - 1)
    ratio_error = float(np.sqrt(max(0.0, error_q**2 + error_base**2 - 2 * covariance)))
    ppl, ppl_base = exp_with_error(ln_q, error_q), exp_with_error(ln_base, error_base)
    difference_error = np.sqrt(max(0.0, ppl[1] ** 2 + ppl_base[1] ** 2 - 2 * ppl[0] * ppl_base[0] * covariance))
    mean_square, error_square = mean_and_error(delta**2)
    rms = float(np.sqrt(mean_square))
    agreement = float(same.mean())
    return {
        "ppl": list(ppl),
        "ppl_base": list(ppl_base),
        "correlation": covariance / (error_q * error_base) if error_q * error_base else 1.0,
        "ln_ppl_ratio": [ln_q - ln_base, ratio_error],
        "ppl_ratio": list(exp_with_error(ln_q - ln_base, ratio_error)),
        "ppl_difference": [ppl[0] - ppl_base[0], float(difference_error)],
        "kld": list(mean_and_error(kld)),
        "kld_percentiles": _percentiles(kld, KLD_FRACTIONS),
        "delta_p": list(mean_and_error(delta)),
        "delta_p_percentiles": _percentiles(delta, DELTA_FRACTIONS),
        "rms_delta_p": [rms, 0.5 * error_square / rms if rms else 0.0],
        "same_top_p": [agreement, float(np.sqrt(agreement * (1 - agreement) / max(1, n - 1)))],
    }


def _percentiles(values: np.ndarray, fractions: Sequence[float]) -> dict[str, float]:
    """{"maximum": .., "99.9%": .., ..., "median": .., ..., "minimum": ..}, falling."""
    upper, lower = [f for f in fractions if f > 0.5], [f for f in fractions if f < 0.5]
    named = [
        ("maximum", 1.0),
        *((f"{f:.1%}", f) for f in upper),
        ("median", 0.5),
        *((f"{f:.1%}", f) for f in lower),
        ("minimum", 0.0),
    ]
    return {name: float(np.quantile(values, fraction)) for name, fraction in named}
