"""Drafts: tokens that are guessed from the text so far and verified in one pass, and when that pays.

A draft changes no choice: the sampler draws every token from the model's logits as it would without one, and what it draws differs
from the draft sooner or later; what was computed behind that place is thrown away.
"""

from collections import deque
from collections.abc import Callable, Sequence
from statistics import median

from glmrun.engine.draft_kinds import chain_of

LENGTHS = (1, 2, 3, 7, 16)  # of a draft
EXACT = 3  # up to here each token in a run of its own costs no more: fewer than FEW meet the matrices row by row in any case
_KEY = 3  # tokens that must have come before
_LONGEST = 32  # tokens of a match that are looked at
_CANDIDATES = 8  # earlier places that are compared
_PAYS = 1.05  # tokens for the price of one pass of a single token, from which on a draft is made
_MEMORY = 32  # tokens over which it is counted how often a copy is right
_FADING = 256  # passes of one token after which a measured cost is forgotten
_MEASURED = 5  # passes whose median counts
_GUESS = 0.15  # passes of one token that the prediction layer takes for a guess until it is measured: a layer and a head for drafts
_TRUST = 4.0, 3.0  # guesses that are taken for seen, and for right, before any was made


class PassCosts:
    """What a pass of n tokens of one sequence costs on this machine, n logits included, in passes of one token.

    The median of the last few that were measured: one that took long for reasons of its own must not end the drafts. Until there
    are some a further token is taken for 0.4 passes: the bytes of 64 experts of which each token reads four. What was measured is
    forgotten in time, so that what did not pay is tried again.
    """

    def __init__(self) -> None:
        self._one: deque[float] = deque(maxlen=_MEASURED)  # seconds
        self._n = 0  # passes of one token
        # In passes of one token, as the next one is.
        self._ratios = {1 + n: deque([self._prior(1 + n)] * 2, maxlen=_MEASURED) for n in LENGTHS}
        self._guess = deque([_GUESS], maxlen=_MEASURED)

    @staticmethod
    def _prior(n_tokens: int) -> float:
        return 1 + 0.4 * (n_tokens - 1)

    def guess(self, n: int) -> float:
        """The cost of n guesses of the prediction layer, one after the other."""
        return n * median(self._guess)

    def add_guess(self, n: int, seconds: float) -> None:
        """n guesses were measured."""
        if self._one:
            self._guess.append(seconds / median(self._one) / n)

    def ratio(self, n_tokens: int) -> float:
        """The cost of a pass of 1 + one of LENGTHS tokens."""
        return median(self._ratios[n_tokens])

    def add(self, n_tokens: int, seconds: float) -> None:
        """A pass was measured."""
        if n_tokens == 1:
            self._one.append(seconds)
            self._n += 1
            if self._n % (_FADING // _MEASURED) == 0:
                self._guess.append(_GUESS)
                for n, ratios in self._ratios.items():
                    ratios.append(self._prior(n))
        elif self._one and n_tokens in self._ratios:
            self._ratios[n_tokens].append(seconds / median(self._one))


class Copies:
    """Prompt and answer as an index: what followed where the text last ended as it ends now.

    match   tokens that the two ends share, at least _KEY; 0 if there is no such place
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)
        self._latest: dict[tuple[int, ...], int] = {}  # _KEY tokens -> the last place behind them
        self._earlier = [0] * len(self._tokens)  # place -> the one before it behind the same tokens, or 0
        keys = zip(self._tokens, self._tokens[1:], self._tokens[2:], strict=False)
        for place, key in zip(range(_KEY, len(self._tokens)), keys, strict=False):
            self._earlier[place] = self._latest.get(key, 0)
            self._latest[key] = place
        self._place = 0  # of what is copied next
        self.match = 0
        self._find()

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        key, place = tuple(self._tokens[-_KEY:]), len(self._tokens)
        self._earlier.append(self._latest.get(key, 0) if place >= _KEY else 0)
        if place >= _KEY:
            self._latest[key] = place
        goes_on = self.match and self._tokens[self._place] == token
        self._tokens.append(token)
        if goes_on:
            self.match, self._place = self.match + 1, self._place + 1
        else:
            self._find()

    def _find(self) -> None:
        tokens, self.match = self._tokens, 0
        place = self._latest.get(tuple(tokens[-_KEY:]), 0)
        for _ in range(_CANDIDATES):
            if not place:
                return
            n = _KEY
            while n < min(_LONGEST, place) and tokens[place - 1 - n] == tokens[-1 - n]:
                n += 1
            if n > self.match:
                self.match, self._place = n, place
            place = self._earlier[place]

    def draft(self, n: int) -> list[int]:
        """The n tokens that followed; where they reach into the end of the text, that goes on in the same way."""
        copied = self._tokens[self._place : self._place + n]
        period = len(self._tokens) - self._place
        while len(copied) < n:
            copied.append(copied[-period])
        return copied


class Guesses:
    """How often the prediction layer is right: at its first guess, and at each that follows right ones.

    What was counted fades where nothing is guessed, so that a layer that was wrong is asked again in time.
    """

    def __init__(self) -> None:
        self._seen, self._right = [_TRUST[0]] * EXACT, [_TRUST[1]] * EXACT
        self._open: list[int] = []  # the last draft, as far as it has come true
        self._n = 0  # tokens of it that came true

    def made(self, draft: list[int]) -> None:
        """A draft was guessed."""
        self._open, self._n = list(draft), 0

    def add(self, token: int) -> None:
        """The text goes on with this token."""
        if self._n < len(self._open):
            right, keep = self._open[self._n] == token, 1 - 1 / _MEMORY
            self._seen[self._n] = keep * self._seen[self._n] + 1
            self._right[self._n] = keep * self._right[self._n] + right
            self._n += 1
            if not right:
                self._open = []
            return
        for i in range(EXACT):
            self._seen[i] += (_TRUST[0] - self._seen[i]) / _FADING
            self._right[i] += (_TRUST[1] - self._right[i]) / _FADING

    def best(self, longest: int, costs: PassCosts) -> tuple[int, float]:
        """How many guesses give most tokens for their time and that of their pass, and how many for the time of a pass of one.

        (0, 0) if none pay.
        """
        best, gain, stands, expected = 0, 0.0, 1.0, 1.0
        for n in range(1, min(longest, EXACT) + 1):
            stands *= self._right[n - 1] / self._seen[n - 1]
            expected += stands
            if (now := expected / (costs.ratio(1 + n) + costs.guess(n))) > max(gain, _PAYS):
                best, gain = n, now
        return best, gain


class Drafter:
    """Drafts for one answer: told each token that stands, it gives what may follow.

    kind    ngram drafts wherever the text repeats itself, mtp whatever the prediction layer guesses; auto takes either, only
            where costs and what was right so far say that it pays
    exact   drafts so short that their passes compute what a pass of one token computes, bit for bit
    guess   guess(token, n): up to n tokens that the prediction layer expects behind the last one; None: there is no such layer
    guessed whether the last draft is the layer's
    """

    def __init__(
        self,
        tokens: Sequence[int],
        costs: PassCosts,
        kind: str,
        exact: bool,
        guess: Callable[[int, int], list[int]] | None = None,
    ) -> None:
        self._copies, self._costs, self._kind = Copies(tokens), costs, kind
        self._guess, self._guesses, self._last, self.guessed = guess, Guesses(), tokens[-1] if tokens else 0, False
        self._longest = EXACT if exact else max(LENGTHS)
        self._seen = [2.0] * (_LONGEST.bit_length() + 1)  # by how long a match was: copies that were looked at, and were right
        self._right = [1.0] * len(self._seen)

    def add(self, token: int) -> None:
        """The text goes on with this token. Whether it would have been copied is counted, drafted or not."""
        if self._copies.match:
            size, keep = _size(self._copies.match), 1 - 1 / _MEMORY
            self._seen[size] = keep * self._seen[size] + 1
            self._right[size] = keep * self._right[size] + (self._copies.draft(1) == [token])
        self._copies.add(token)
        self._guesses.add(token)
        self._last = token

    def next(self, room: int) -> list[int]:
        """At most `room` tokens that may come next; none where nothing is known or where it does not pay."""
        longest, n_guessed = min(room, self._longest), chain_of(self._kind)
        n_copied = longest if self._kind == "ngram" and self._copies.match else 0
        if self._kind == "auto":
            n_copied, gain = self._best(longest) if self._copies.match else (0, 0.0)
            n_guessed, other = self._guesses.best(longest, self._costs)
            n_guessed = n_guessed if other > gain else 0
        n_guessed = min(n_guessed, longest)
        self.guessed = self._guess is not None and n_guessed > 0
        if self._guess is not None and n_guessed > 0:
            draft = self._guess(self._last, n_guessed)
            self._guesses.made(draft)
            return draft
        return self._copies.draft(n_copied)

    def _best(self, longest: int) -> tuple[int, float]:
        """As Guesses.best(), of copies."""
        best, gain, stands, expected = 0, _PAYS, 1.0, 1.0
        for n in range(1, longest + 1):
            size = _size(self._copies.match + n - 1)
            stands *= self._right[size] / self._seen[size]
            expected += stands
            if n in LENGTHS and expected / self._costs.ratio(1 + n) > gain:
                best, gain = n, expected / self._costs.ratio(1 + n)
        return best, gain


def _size(match: int) -> int:
    """Matches whose copies are counted together: 3, 4 to 7, 8 to 15, 16 to 31, longer ones."""
    return min(match, _LONGEST).bit_length()
