"""What the user says of himself, and is asked about some turns later."""

import random
from dataclasses import dataclass

from nano.document import FIRST_NAMES, Document, as_people_type, assistant, choices, invented_name, pick, user


@dataclass(frozen=True)
class Fact:
    """`say` tells the value {v}, `ask` asks for it, `answer` gives it back; `name` completes "I know the user's ..."."""

    name: str
    say: str
    ask: str
    reply: str
    answer: str
    values: tuple[str, ...] = ()


COLOURS = choices("red|blue|green|yellow|black|white|orange|purple|brown|pink|grey|golden|silver|turquoise|violet")
FACTS = (
    Fact(
        "name",
        "My name is {v}|I am {v}|I'm {v}|Call me {v}|Hi, I am {v}|Hello, my name is {v}|Hi, my name is {v}|You can call me {v}",
        "What is my name?|Who am I?|Do you know my name?|What's my name?|Do you remember my name?|Tell me my name|"
        "Which name did I tell you?",
        "Nice to meet you, {v}!",
        "Your name is {v}.",
        FIRST_NAMES,
    ),
    Fact(
        "favourite colour",
        "My favourite colour is {v}|I like the colour {v}|I love {v}, it is my favourite colour",
        "What is my favourite colour?|Which colour do I like?|Do you remember my favourite colour?|What colour do I like?",
        "I will remember that: {v}.",
        "Your favourite colour is {v}.",
        COLOURS,
    ),
    Fact(
        "town",
        "I live in {v}|My town is {v}|I come from {v}|I am from {v}|My home is in {v}",
        "Where do I live?|In which town do I live?|Where do I come from?|What is my town?|Do you remember where I live?",
        "I will remember that: {v}.",
        "You live in {v}.",
    ),
    Fact(
        "dog",
        "My dog is called {v}|I have a dog called {v}|My dog's name is {v}|I have a dog, {v}",
        "What is my dog called?|What is the name of my dog?|Do you remember my dog's name?|How is my dog called?",
        "I will remember that: {v}.",
        "Your dog is called {v}.",
    ),
    Fact(
        "lucky number",
        "My lucky number is {v}|Remember the number {v}, it brings me luck|{v} is my lucky number|My number is {v}",
        "What is my lucky number?|Which number is my lucky number?|Do you remember my number?|What is my number?",
        "I will remember that: {v}.",
        "Your lucky number is {v}.",
        tuple(map(str, range(2, 1000))),
    ),
)


def told_and_asked(rng: random.Random, thinking: bool) -> tuple[list[Document], list[Document]]:
    """(turns in which one to three facts are told, turns in which some are asked for, or one that was never told)."""
    skill = "remembers across turns"
    facts = rng.sample(FACTS, rng.choice((1, 1, 2, 3)))
    values = [rng.choice(fact.values) if fact.values and rng.random() < 0.5 else invented_name(rng) for fact in facts]
    values = [rng.choice(f.values) if f.name == "lucky number" else v for f, v in zip(facts, values, strict=True)]
    missing = facts.pop() if rng.random() < 0.15 else None
    told, asked = [], []
    for fact, value in zip(facts, values[: len(facts)], strict=True):
        said = pick(rng, fact.say).replace("{v}", value) + rng.choice(("", ".", "!"))
        thought = f"The user's {fact.name}: {value}." if thinking else ""
        told.append(Document(skill, said, [user(said), assistant(fact.reply.replace("{v}", value), thought)]))
        question = as_people_type(rng, pick(rng, fact.ask), polite=False)
        answer = assistant(fact.answer.replace("{v}", value), thought)
        asked.append(Document(skill, f"{value}: {question}", [user(question), answer]))
    rng.shuffle(asked)
    asked = asked[: rng.choice((1, 2))]
    if missing:
        question = as_people_type(rng, pick(rng, missing.ask), polite=False)
        thought = f"The user has not told me the {missing.name}." if thinking else ""
        answer = assistant(f"You have not told me your {missing.name} yet. What is it?", thought)
        asked.append(Document(skill, f"{'; '.join(values[: len(facts)])}: {question}", [user(question), answer]))
    return told, asked
