"""Short and offhand wordings, made by grammar, and questions that only make sense after the one before; for training alone.

In a grammar of offhand.txt "[a|b|]" is one of its alternatives, from the inside out: few lines give thousands of sentences.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from nano import arithmetic, text_tasks
from nano.document import FIRST_NAMES, Document, as_people_type, assistant, choices, invented_name, user
from nano.functions import FUNCTIONS, answer_with
from nano.topics import CAPITALS, TOPICS, answer_about

LANGUAGES = {
    "Python": ("python", "py", "Python"),
    "JavaScript": ("javascript", "js", "JS"),
    "C": ("c", "C"),
    "Bash": ("bash", "sh"),
}
_OPTION = re.compile(r"\[([^\[\]]*)\]")


def _read(path: Path) -> dict[str, str]:
    """The grammars of offhand.txt by their names."""
    blocks = (block.split("\n") for block in path.read_text(encoding="utf-8").split("=== ")[1:])
    return {name: "".join(lines) for name, *lines in blocks}


GRAMMARS = _read(Path(__file__).with_name("offhand.txt"))
SAYS, WANTS = (tuple(name for name in GRAMMARS if name.startswith(kind)) for kind in ("says: ", "wants: "))
_BY_NAME = {topic.name: topic for topic in TOPICS}


def sentence(rng: random.Random, name: str) -> str:
    """One sentence of a grammar; its own alternatives are as likely as each other."""
    grammar = GRAMMARS[name]
    while True:
        flat, n = _OPTION.subn(lambda found: rng.choice(found[1].split("|")), grammar)
        if not n:
            return rng.choice(flat.split("|")).strip().replace("  ", " ")
        grammar = flat


def _typed(rng: random.Random, text: str) -> str:
    """As somebody types who may or may not begin with a capital and end with a mark."""
    if rng.random() < 0.55:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.3:
        text = re.sub(r"\bi\b", "I", text)
    return as_people_type(rng, text, polite=rng.random() < 0.15)


def _document(rng: random.Random, skill: str, ask: str, answer: str, thought: str, key: str = "") -> Document:
    return Document(skill, key or ask, [user(_typed(rng, ask)), assistant(answer, thought)])


def _exact(skill: str, ask: str, answer: str, thought: str) -> Document:
    """With the letters of the question as they are: they come back in the answer."""
    return Document(skill, ask, [user(ask), assistant(answer, thought)])


def _topic(rng: random.Random, thinking: bool) -> list[Document]:
    if rng.random() < 0.5:
        name = rng.choice(SAYS)
        ask = sentence(rng, name)
    else:
        name = rng.choice(WANTS)
        ask = f"{sentence(rng, 'how to')} {sentence(rng, name)}{rng.choice(('', '?', '?'))}"
    topic = _BY_NAME[name.partition(": ")[2]]
    return [_document(rng, "chat", ask, topic.answer, topic.thought if thinking else "")]


def _capitals(rng: random.Random, thinking: bool) -> list[Document]:
    """Two to four capitals, each country after the first by its name alone."""
    found = []
    for i, country in enumerate(rng.sample(list(CAPITALS), rng.randrange(2, 5))):
        ask = sentence(rng, "next capital" if i else "capital").replace("{c}", country)
        found.append(_document(rng, "capitals", ask, *answer_about(country, thinking)))
    return found


def _sums(rng: random.Random, thinking: bool) -> list[Document]:
    """A short sum or story, then up to four that go on with the last result."""
    a, op, b = arithmetic.draw(rng)
    if op == "-" and a < b:
        a, b = b, a
    word, sign = {"+": ("plus", "+"), "-": ("minus", "-"), "*": ("times", rng.choice("*x"))}[op]
    shapes = ("{a}{s}{b}", "{a} {s} {b}", "{a}{s}{b}?", "whats {a} {s} {b}", "what's {a}{s}{b}?", "{a} {w} {b}")
    n, m = rng.sample(FIRST_NAMES, 2)
    ask = rng.choice(shapes) if rng.random() < 0.4 else sentence(rng, f"story {op}")
    ask = ask.format(a=a, b=b, s=sign, w=word, t=rng.choice(text_tasks.WORDS[:18]), n=n, m=m)
    found = []
    while True:
        found.append(_document(rng, arithmetic.skill_of(thinking), ask, *arithmetic.answer_to(a, op, b, thinking), f"{a}{op}{b}"))
        _, result = arithmetic.steps(a, op, b)
        if len(found) == 5 or not 0 <= result < 100 or rng.random() < 0.3:
            return found
        a, op = result, rng.choice("++--*")
        b = rng.randrange(100) if op == "+" else rng.randrange(a + 1) if op == "-" else rng.randrange(2, 10)
        ask = sentence(rng, f"more {op}").replace("{b}", str(b))


def _counts(rng: random.Random, thinking: bool) -> list[Document]:
    """Up or down, then perhaps back."""
    low = rng.choice((0, 1, 1, 1, rng.randrange(80)))
    ends = (low, low + rng.randrange(3, 13))
    if rng.random() < 0.3:
        ends = ends[::-1]
    grammar = "count down" if ends[0] > ends[1] else "count to" if ends[0] == 1 and rng.random() < 0.4 else "count"
    ask = sentence(rng, grammar).format(a=ends[0], b=ends[1])
    found = []
    while True:
        first, last = ends
        way = 1 if first < last else -1
        thought = f"From {first} to {last}: {'up' if way == 1 else 'down'}." if thinking else ""
        answer = ", ".join(map(str, range(first, last + way, way)))
        found.append(_document(rng, "counting", ask, answer, thought, f"count {first} {last} 1"))
        if len(found) == 2 or rng.random() < 0.4:
            return found
        ends, ask = ends[::-1], sentence(rng, "backwards")


def _name(rng: random.Random, thinking: bool) -> list[Document]:
    """A name told by the way, asked for after something else or at once."""
    name = rng.choice(FIRST_NAMES) if rng.random() < 0.5 else invented_name(rng)
    thought = f"The user's name: {name}." if thinking else ""
    said = sentence(rng, "tells name").replace("{v}", name if rng.random() < 0.8 else name.lower())
    told = Document("remembers across turns", said, [user(said), assistant(f"Nice to meet you, {name}!", thought)])
    ask = sentence(rng, "asks name")
    asked = _document(rng, "remembers across turns", ask, f"Your name is {name}.", thought, f"{name}: {ask}")
    between = [part for _ in range(rng.choice((0, 1, 1, 2, 3))) for part in rng.choice(_OTHERS)(rng, thinking)]
    return [told, *between, asked]


def _codes(rng: random.Random, thinking: bool) -> list[Document]:
    """A function in few words, then the same in other languages."""
    function = rng.choice(FUNCTIONS)
    language, _, what, name, _ = function
    verb, _, rest = what.partition(" ")
    plain = {"says": "check", "greets": "greet", "finds": "find"}.get(verb, verb.removesuffix("s"))
    do = f"{plain} {rest.replace('whether', rng.choice(('whether', 'if'))) if verb == 'says' else rest}"
    ask = sentence(rng, "code").replace("{do}", do).replace("{name}", name)
    others = [other for other in FUNCTIONS if other[2] == what and other[0] != language]
    rng.shuffle(others)
    found = []
    while True:
        asked = ask.replace("{l}", rng.choice(LANGUAGES[function[0]]))
        found.append(_document(rng, "code", asked, *answer_with(function, thinking)))
        if not others or rng.random() < 0.2:
            return found
        function, ask = others.pop(), sentence(rng, "same code")


def _lists(rng: random.Random, thinking: bool) -> list[Document]:
    """Lists turned round, words replaced, arrays and objects of JSON."""
    kind, words = rng.randrange(4), [rng.choice(text_tasks.WORDS), invented_name(rng), invented_name(rng).lower()]
    words += rng.sample(text_tasks.WORDS, rng.randrange(1, 5))
    rng.shuffle(words)
    thought = "I work on the text the user gave." if thinking else ""
    if kind == 0:
        ask = sentence(rng, "reverse").replace("{x}", ", ".join(words))
        return [_exact("copies and edits", ask, ", ".join(reversed(words)), thought)]
    if kind == 1:
        text = sentence(rng, "statement").format(*words)
        old, new = rng.choice([word for word in words if word in text.split()]), invented_name(rng).lower()
        ask = sentence(rng, "replace").replace("{o}", old).replace("{n}", new).replace("{x}", text)
        return [_exact("copies and edits", ask, " ".join(new if word == old else word for word in text.split()), thought)]
    thought = "The user wants JSON." if thinking else ""
    if kind == 2:
        return [_exact("JSON on request", sentence(rng, "array").replace("{x}", ", ".join(words)), json.dumps(words), thought)]
    return _objects(rng, words, thought)


def _objects(rng: random.Random, words: list[str], thought: str) -> list[Document]:
    """An object from keys and values, then perhaps one value more."""
    keys = rng.sample(choices("name|port|host|age|lang|path|user|colour|size|price|town|level|kind|count|title|day"), 4)
    values = [rng.choice((word, word.capitalize(), rng.randrange(1, 9000))) for word in words[:4]]
    fields = dict(zip(keys, values, strict=False))
    joint, mark, around = rng.choice(
        ((", ", ": ", "{%s}"), (", ", "=", "%s"), (" ", "=", "%s"), (", ", " ", "%s"), (", ", ": ", "%s"), (", ", " is ", "%s"))
    )
    told = list(fields.items())
    last = told.pop() if len(told) > 2 and rng.random() < 0.4 else None
    ask = sentence(rng, "object").replace("{x}", around % joint.join(f"{key}{mark}{value}" for key, value in told))
    found = [_exact("JSON on request", ask, json.dumps(dict(told), ensure_ascii=False), thought)]
    if last:
        ask = sentence(rng, "add field").replace("{f}", f"{last[0]}{rng.choice((' ', ' = ', ': ', ' is '))}{last[1]}")
        found.append(_exact("JSON on request", ask, json.dumps(fields, ensure_ascii=False), thought))
    return found


_OTHERS: tuple[Callable[[random.Random, bool], list[Document]], ...] = (_topic, _capitals, _sums, _counts, _codes, _lists)


def practice(rng: random.Random) -> list[Document]:
    """A conversation of up to a dozen turns of these."""
    thinking, found = rng.random() < 0.6, list[Document]()
    while len(found) < 1 or (len(found) < 12 and rng.random() < 0.75):
        found += rng.choice((_topic, _topic, _topic, _name, _name, *_OTHERS))(rng, thinking)
    return found
