"""Conversations under a system prompt that says how to answer."""

import json
import random
from collections.abc import Callable

from nano.document import Document, as_people_type, assistant, choices, invented_name, pick, user

SKILL = "follows the system prompt"
MARKS = choices("Ahoy!|Over.|Cheers!|Amen.|Have fun!|Beep.|Meow.|Good luck!|Honk!|Done.|Yes, captain!|Well then.|Listen!|Hooray!")
END = choices('End every answer with "{c}"|Always end with "{c}"|Finish each answer with "{c}"|End each answer with: {c}')
BEGIN = choices('Begin every answer with "{c}"|Always begin with "{c}"|Start each answer with "{c}"|Begin each answer with: {c}')
JSON = choices(
    "Answer in JSON.|Always answer in JSON.|Reply only with JSON.|"
    "Every answer is a JSON object with the key answer.|Use JSON for your answers."
)
PERSONA = choices("You are {n}, {p}.|Your name is {n}. You are {p}.|You play {n}, {p}.|Act as {n}, {p}.")
PEOPLE = choices(
    "a pirate|a teacher|a robot|a cook|a gardener|a detective|a wizard|a sailor|a poet|"
    "a doctor|a farmer|a clown|a knight|a baker|a pilot"
)
ASK_NAME = choices(
    "Who are you?|What is your name?|Who am I talking to?|Introduce yourself|What are you?|Do you have a name?|Tell me who you are|"
    "What are you called?|Who is this?|And you are?"
)


def under_rule(rng: random.Random, thinking: bool, draw: Callable[[], list[Document]]) -> list[Document]:
    """One to three questions from `draw`, answered as a system prompt wants it."""
    kind = rng.random()
    if kind < 0.25:
        return _persona(rng, thinking)
    parts = [part for _ in range(rng.choice((1, 2, 2, 3))) for part in draw()]
    mark = rng.choice(MARKS) if rng.random() < 0.5 else invented_name(rng) + rng.choice(".!")
    if kind < 0.5:
        rule = rng.choice(END).format(c=mark)
        _apply(parts, f"I end with {mark}", lambda text: f"{text} {mark}")
    elif kind < 0.75:
        rule = rng.choice(BEGIN).format(c=mark)
        _apply(parts, f"I begin with {mark}", lambda text: f"{mark} {text}")
    else:
        rule = rng.choice(JSON)
        _apply(parts, "I answer in JSON.", lambda text: json.dumps({"answer": text}, ensure_ascii=False))
    parts[0].messages.insert(0, {"role": "system", "content": rule})
    return parts


def _apply(parts: list[Document], plan: str, change: Callable[[str], str]) -> None:
    for part in parts:
        part.skill = SKILL
        answer = part.messages[-1]
        answer["content"] = change(answer["content"])
        if answer["reasoning_content"]:
            answer["reasoning_content"] += f" {plan}"


def _persona(rng: random.Random, thinking: bool) -> list[Document]:
    name, person = invented_name(rng), rng.choice(PEOPLE)
    asked = as_people_type(rng, pick(rng, "|".join(ASK_NAME)), polite=False)
    answer = assistant(f"I am {name}, {person}.", f"I play {name}, {person}." if thinking else "")
    system = {"role": "system", "content": rng.choice(PERSONA).format(n=name, p=person)}
    return [Document(SKILL, f"{name}, {person}: {asked}", [system, user(asked), answer])]
