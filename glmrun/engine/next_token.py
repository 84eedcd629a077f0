"""The next-token-prediction layer at work: its rows are filled behind the trunk, and it guesses what comes next.

At position p it reads the trunk's state there and the embedding of token p + 1, and predicts token p + 2.
"""

import numpy as np

from glmrun.engine.passes import Passes
from glmrun.engine.sequence import Sequence
from glmrun.engine.workspace import Part

WAITING = 32  # states that may wait before the layer reads them: a pass for many reads its weights once


def fill(passes: Passes, sequence: Sequence, at_once: bool) -> None:
    """Have the layer's rows of all positions but the last, whose next token is not known; unless few states wait and may wait.

    What is cancelled is done another time.
    """
    if sequence.states is None or not (at_once or len(sequence.states) > WAITING):
        return
    while (n := min(len(sequence.states) - 1, passes.workspace.max_tokens)) > 0:
        at, states = sequence.n_ahead, sequence.states
        if read(passes, Part(sequence.cache, at, n, 0), sequence.tokens[at + 1 : at + 1 + n], states[:n]) is None:
            return
        sequence.n_ahead, sequence.states = at + n, states[n:]


def guess(passes: Passes, sequence: Sequence, token: int, n: int) -> list[int] | None:
    """The n tokens that the layer expects behind `token`, which follows what the sequence holds; None: cancelled.

    From the second on it reads its own state, for want of the trunk's. The rows that it fills so are filled again when that is
    known. No tokens where the sequence lacks states.
    """
    fill(passes, sequence, at_once=False)
    states, guessed = sequence.states, list[int]()
    if states is None or not len(states) or sequence.n_whole < len(sequence.tokens):
        return guessed
    at, tokens = sequence.n_ahead, [*sequence.tokens[sequence.n_ahead + 1 :], token]
    while True:
        found = read(passes, Part(sequence.cache, at, len(tokens), 1, likeliest=True), tokens, states)
        if found is None:
            return None
        if not guessed:
            sequence.n_ahead, sequence.states = len(sequence.tokens), states[:0]
        at += len(tokens)
        guessed.append(int(found[0].argmax()))
        if len(guessed) == n:
            return guessed
        tokens, states = guessed[-1:], found[1]


def read(passes: Passes, part: Part, tokens: list[int], states: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Fill the layer's rows of a part from its positions' states and next tokens.

    Returns the logits, float32 (n_logits, rows of the head), and the layer's own states, float32 (n_logits, hidden_size), of the
    part's last positions. Those whose logits nobody wants fill their rows and do not attend.
    """
    weights, n = passes.weights, part.n_tokens
    layer = weights.next_token
    assert layer is not None
    embeddings = weights.embed(np.array(tokens, np.int64), layer.embed)  # float32 (n, hidden_size)
    x = [np.empty((n, weights.config.hidden_size), np.float32) for _ in range(2)]  # float32 (n, hidden_size) each
    halves = (layer.embedding, embeddings, x[0]), (layer.state, states, x[1])
    for half, read, out in halves:
        if passes.run(half, [part._replace(n_logits=n, likeliest=False)], read, out) is None:
            return None
    logits = np.empty((part.n_logits, int(layer.layer.model["output"]["rows"])), np.float32)  # float32 (n_logits, rows)
    rows = passes.run(layer.layer, [part], x[0] + x[1], logits)
    if rows is None:
        return None
    return logits, passes.norm(passes.workspace.x[rows[0] : rows[0] + part.n_logits], layer.norm)
