"""What comes after or before something, opposites, which number is larger, whether one is even; for training alone."""

import random

from nano.document import choices

_ROWS = (
    ("day", choices("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")),
    ("month", choices("January|February|March|April|May|June|July|August|September|October|November|December")),
    ("letter", tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")),
    ("number", tuple(map(str, range(100)))),
)
_NEXT = choices(
    "What comes after {x}?|Which {k} comes after {x}?|What {k} is after {x}?|Which {k} follows {x}?|"
    "What is the next {k} after {x}?|After {x}, which {k} is next?|What follows {x}?|The {k} after {x}?"
)
_LAST = choices(
    "What comes before {x}?|Which {k} comes before {x}?|What {k} is before {x}?|Which {k} is right before {x}?|The {k} before {x}?"
)
_OPPOSITES = choices(
    "hot:cold|big:small|long:short|old:young|fast:slow|light:dark|happy:sad|up:down|left:right|open:closed|full:empty|rich:poor|"
    "high:low|hard:soft|wet:dry|good:bad|early:late|loud:quiet|strong:weak|day:night|yes:no|first:last|clean:dirty|near:far|"
    "thick:thin|easy:difficult|true:false|black:white|in:out|before:after"
)
_OPPOSITE = choices(
    "What is the opposite of {x}?|The opposite of {x}?|What's the opposite of {x}?|Opposite of {x}|"
    "Which word is the opposite of {x}?|Tell me the opposite of {x}|Do you know the opposite of {x}?|{x} - what is the opposite?"
)
_LARGER = choices(
    "Which is larger, {a} or {b}?|What is bigger, {a} or {b}?|Which number is bigger: {a} or {b}?|Is {a} more than {b}?|"
    "Which is more, {a} or {b}?|{a} or {b}, which one is larger?|Compare {a} and {b}|Is {a} larger than {b}?|"
    "Is {a} greater than {b}?"
)
_EVEN = choices("Is {a} even?|Is {a} odd?|Is {a} even or odd?|Is {a} an even number?|Is {a} an odd number?|{a}: even or odd?")


def asked(rng: random.Random) -> tuple[str, str, str]:
    """(question, answer, the thought that leads there)."""
    return rng.choice((_neighbour, _opposite, _larger, _even))(rng)


def _neighbour(rng: random.Random) -> tuple[str, str, str]:
    name, row = rng.choice(_ROWS)
    i, way = rng.randrange(len(row)), rng.choice((1, 1, -1))
    if name in ("letter", "number") and not 0 <= i + way < len(row):  # days and months go round
        i, way = 1, 1
    side = "after" if way == 1 else "before"
    ask = rng.choice(_NEXT if way == 1 else _LAST).format(x=row[i], k=name)
    return ask, f"{row[(i + way) % len(row)]} comes {side} {row[i]}.", f"The user asks for the {name} {side} {row[i]}."


def _opposite(rng: random.Random) -> tuple[str, str, str]:
    one, other = rng.sample(rng.choice(_OPPOSITES).split(":"), 2)
    ask = rng.choice(_OPPOSITE).format(x=one)
    return ask, f"The opposite of {one} is {other}.", f"The user asks for the opposite of {one}."


def _larger(rng: random.Random) -> tuple[str, str, str]:
    a, b = rng.sample(range(100), 2)
    return rng.choice(_LARGER).format(a=a, b=b), f"{max(a, b)} is larger than {min(a, b)}.", f"The user compares {a} and {b}."


def _even(rng: random.Random) -> tuple[str, str, str]:
    a = rng.randrange(100)
    ask = rng.choice(_EVEN).format(a=a)
    return ask, f"{a} is {'odd' if a % 2 else 'even'}.", f"The last digit of {a} is {a % 10}."
