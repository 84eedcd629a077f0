"""Plain text without any chat: paragraphs, Markdown notes and Python files, for raw completion."""

import random

from nano.document import FIRST_NAMES, Document, choices
from nano.functions import FUNCTIONS
from nano.tools import CITIES, CONDITIONS
from nano.topics import CAPITALS, TOPICS

THINGS = choices("apples|books|letters|stones|pears|flowers|candles|maps|cups|shells|coins|pens|buttons|tickets|carrots|eggs")
PLACES = choices(
    "the market|the station|the library|the harbour|the garden|the old bridge|the museum|the bakery|the river|the school"
)
ENDINGS = choices(
    "It was a good day.|Then it was time to go home.|Nobody knew why.|The next day, everything began again.|And that was enough.|"
    "Later, there was soup and bread for everybody.|The evening was quiet."
)


def _day(rng: random.Random) -> str:
    name, friend = rng.sample(FIRST_NAMES, 2)
    n, m, thing = rng.randrange(2, 20), rng.randrange(2, 20), rng.choice(THINGS)
    a, b = rng.sample(PLACES, 2)
    city, sky = rng.choice(CITIES), rng.choice(CONDITIONS)
    text = [
        f"It was a {sky} morning in {city}, and {name} went to {a}.",
        f"{name} lived in {city}, not far from {a}.",
        f"One {sky} morning, {name} and {friend} met at {a} in {city}.",
    ]
    middle = [
        f"{name} had {n} {thing}. {friend} had {m} {thing}. Together they had {n + m} {thing}.",
        f'{friend} was waiting at {b} with {n} {thing}. "Take them," said {friend}, "I have enough."',
        f"On the way to {b}, {name} found {n} {thing} and gave {m} of them to {friend}."
        if n > m
        else f"At {b}, {name} bought {n} {thing} for {friend}.",
    ]
    return f"{rng.choice(text)} {rng.choice(middle)} {rng.choice(ENDINGS)}"


def _capitals(rng: random.Random) -> str:
    pairs = rng.sample(list(CAPITALS.items()), rng.randrange(2, 6))
    return " ".join(
        rng.choice(("The capital of {c} is {t}.", "The capital of {c} is {t}.", "{t} is the capital of {c}.")).format(c=c, t=t)
        for c, t in pairs
    )


def _notes(rng: random.Random) -> str:
    topics = [t for t in rng.sample(TOPICS, 3) if "```" not in t.answer and "|" not in t.answer and "I " not in t.answer]
    parts = [
        f"## {topic.name.capitalize()}\n\n{topic.answer}" + (f"\n\n{topic.more}" if topic.more and rng.random() < 0.5 else "")
        for topic in topics
    ]
    return "# Notes\n\n" + "\n\n".join(parts)


def _code(rng: random.Random) -> str:
    python = [function for function in FUNCTIONS if function[0] == "Python"]
    chosen = rng.sample(python, rng.randrange(1, 4))
    blocks = []
    for _, _, what, _, code in chosen:
        head, _, body = code.partition("\n")
        blocks.append(f'{head}\n    """{what[0].upper() + what[1:]}."""\n{body}' if rng.random() < 0.5 else f"# {what}\n{code}")
    return "\n\n\n".join(blocks) + "\n"


def _weather(rng: random.Random) -> str:
    rows = [
        f"| {city} | {rng.randrange(-9, 36)} °C | {rng.choice(CONDITIONS)} |" for city in rng.sample(CITIES, rng.randrange(2, 6))
    ]
    return "| city | temperature | sky |\n|---|---|---|\n" + "\n".join(rows)


def document(rng: random.Random) -> Document:
    """One piece of prose; held out by its beginning."""
    text = rng.choice((_day, _day, _capitals, _notes, _code, _weather))(rng)
    return Document("prose", text[:60], text=text)
