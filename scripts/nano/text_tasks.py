"""Tasks on text the user gives: as JSON, repeated, turned round, with a word replaced."""

import json
import random

from nano.document import FIRST_NAMES, Document, assistant, choices, invented_name, pick, user

WORDS = choices(
    "apples|books|letters|stones|pears|flowers|candles|maps|cups|shells|coins|pens|buttons|tickets|carrots|eggs|bread|milk|"
    "red|blue|green|yellow|black|white|house|garden|river|bridge|train|ship|horse|bird|fish|tree|window|door|table|chair"
)
_PLACES = choices("the market|the station|the library|the harbour|the garden|the old bridge|the museum|the bakery")


def _fields(rng: random.Random) -> dict[str, str | int]:
    """Two to four keys and their values."""
    name = rng.choice(FIRST_NAMES) if rng.random() < 0.5 else invented_name(rng)
    every: dict[str, str | int] = {
        "name": name, "age": rng.randrange(1, 100), "city": invented_name(rng), "colour": rng.choice(WORDS[18:24]),
        "price": rng.randrange(1, 1000), "count": rng.randrange(1, 100), "item": rng.choice(WORDS[:18]),
        "year": rng.randrange(1900, 2030),
    }  # fmt: skip
    return {key: every[key] for key in rng.sample(list(every), rng.choice((2, 2, 3, 4)))}


def as_json(rng: random.Random, thinking: bool) -> Document:
    """An object or a list, asked for in words."""
    if rng.random() < 0.25:
        items = rng.sample(WORDS, rng.randrange(2, 6))
        listed = ", ".join(items[:-1]) + " and " + items[-1]
        question = pick(rng, "Write a JSON list of {x}|Make a JSON list of {x}|{x} as a JSON list|Give me a JSON array of {x}")
        answer = json.dumps(items)
    else:
        fields = _fields(rng)
        joint, mark = rng.choice(((", ", " "), (", ", " is "), ("; ", " = "), (", ", ": ")))
        listed = joint.join(f"{key}{mark}{value}" for key, value in fields.items())
        ask = (
            "Write this as JSON: {x}|Make JSON of: {x}|Give me a JSON object with {x}|JSON, please: {x}|"
            "Turn this into JSON: {x}|As JSON: {x}"
        )
        question = pick(rng, ask)
        answer = json.dumps(fields, ensure_ascii=False)
    question = question.replace("{x}", listed)
    thought = "The user wants JSON." if thinking else ""
    return Document("JSON on request", question, [user(question), assistant(answer, thought)])


def _sentence(rng: random.Random) -> str:
    name, thing = invented_name(rng), rng.choice(WORDS[:18])
    return rng.choice(
        (
            f"{name} has {rng.randrange(2, 90)} {thing}",
            f"{name} went to {rng.choice(_PLACES)}",
            f"{name} likes {thing} and {rng.choice(WORDS[18:])}",
        )
    )


def _many_words(rng: random.Random) -> str:
    """Words, names and numbers in no order: what follows a word is known from the text alone."""
    draws = (
        lambda: rng.choice(WORDS),
        lambda: invented_name(rng),
        lambda: str(rng.randrange(1000)),
        lambda: rng.choice(FIRST_NAMES),
    )
    return " ".join(rng.choice(draws)() for _ in range(rng.randrange(4, 30)))


def series(rng: random.Random) -> list[Document]:
    """Up to five tasks in a row, mostly long copies: reading from the text before is learnt here, and used everywhere."""
    thinking = rng.random() < 0.4
    tasks = (as_json, as_json, edit, _copy, _copy)
    return [rng.choice(tasks)(rng, thinking) for _ in range(rng.choice((1, 2, 3, 4, 5)))]


def _copy(rng: random.Random, thinking: bool) -> Document:
    text = _many_words(rng)
    question = pick(rng, "Repeat: {x}|Repeat after me: {x}|Say: {x}|Copy this: {x}|Echo: {x}").replace("{x}", text)
    thought = "I work on the text the user gave." if thinking else ""
    return Document("copies and edits", question, [user(question), assistant(text, thought)])


def _reversal(rng: random.Random, items: list[str]) -> tuple[str, str]:
    """(the wish, the list from its end to its beginning)."""
    ask = pick(rng, "Reverse this list: {x}|Turn this list round: {x}|Write this list backwards: {x}")
    return ask.replace("{x}", ", ".join(items)), ", ".join(reversed(items))


def practice(rng: random.Random) -> list[Document]:
    """Lists turned round, of words mostly, some of names or numbers, among other edits and JSON."""
    thinking, parts = rng.random() < 0.5, []
    for _ in range(rng.randrange(2, 8)):
        if rng.random() < 0.5:
            parts.append(rng.choice((as_json, edit))(rng, thinking))  # or lists are turned round where they should not be
            continue
        items = rng.sample(WORDS, rng.randrange(2, 7))
        if rng.random() < 0.2:
            items = [rng.choice((invented_name(rng), str(rng.randrange(1000)))) for _ in items]
        question, answer = _reversal(rng, items)
        thought = "I work on the text the user gave." if thinking else ""
        parts.append(Document("copies and edits", question, [user(question), assistant(answer, thought)]))
    return parts


def edit(rng: random.Random, thinking: bool) -> Document:
    """Text repeated, a list turned round, or one word replaced."""
    kind = rng.random()
    if kind < 0.4:
        text = _sentence(rng) if rng.random() < 0.6 else " ".join(rng.sample(WORDS, rng.randrange(2, 6)))
        question, answer = (
            pick(rng, "Repeat: {x}|Repeat after me: {x}|Say: {x}|Copy this: {x}|Echo: {x}").replace("{x}", text),
            text,
        )
    elif kind < 0.7:
        question, answer = _reversal(rng, rng.sample(WORDS, rng.randrange(3, 6)))
    else:
        text, new = _sentence(rng), invented_name(rng)
        old = text.split(" ")[0]
        ask = pick(rng, "Replace {o} by {n}: {x}|Write {n} instead of {o}: {x}|Change {o} to {n}: {x}")
        question = ask.replace("{o}", old).replace("{n}", new).replace("{x}", text)
        answer = text.replace(old, new)
    thought = "I work on the text the user gave." if thinking else ""
    return Document("copies and edits", question, [user(question), assistant(answer, thought)])
