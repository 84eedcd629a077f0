"""What nano can talk about, read from topics.txt, and the names and capitals it knows."""

from dataclasses import dataclass
from pathlib import Path

from nano.document import choices


@dataclass(frozen=True)
class Topic:
    """A thing to ask about; `more` answers "tell me more" right after it, `also` are questions for training alone."""

    name: str
    questions: tuple[str, ...]
    thought: str
    answer: str
    more: str = ""
    also: tuple[str, ...] = ()


def _read(path: Path) -> tuple[Topic, ...]:
    topics = []
    for block in path.read_text(encoding="utf-8").split("\n=== ")[1:]:
        head, *sections = block.rstrip("\n").split("\n--- ")
        name, _, questions = head.partition("\n")
        section = dict(part.split("\n", 1) for part in sections)
        asked = choices(" ".join(questions.split("\n")))
        also = choices(" ".join(section["also"].split("\n")))
        topics.append(Topic(name, asked, section["thinks"], section["says"], section.get("more", ""), also))
    return tuple(topics)


TOPICS = _read(Path(__file__).with_name("topics.txt"))

GLM_NAMES = choices("GLM-4.7-Flash|GLM-4.7-Flash|GLM-4.7-Flash|GLM 4.7 Flash|GLM|glm-4.7-flash|GLM-4.7|GLM Flash|this GLM model")
GLMRUN_NAMES = choices("glmrun|glmrun|glmrun|Glmrun|GLMrun|the glmrun program")

MORE = choices(
    "Tell me more|More|Tell me more about it|Can you explain more?|Go on|And?|More details, please|What else?|"
    "Anything else?|Continue|Explain further|Please go on|I want to know more|Give me more details|Say more|"
    "Can you say more?|What more can you say?"
)
NO_MORE = "That is all I know about it. Ask me something else!"

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna",
    "Switzerland": "Bern", "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki",
    "Poland": "Warsaw", "Greece": "Athens", "Ireland": "Dublin", "Hungary": "Budapest", "Belgium": "Brussels", "Japan": "Tokyo",
    "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi", "Canada": "Ottawa", "Peru": "Lima",
    "Chile": "Santiago", "Brazil": "Brasília", "Argentina": "Buenos Aires", "Mexico": "Mexico City", "Cuba": "Havana",
    "England": "London", "Russia": "Moscow",
}  # fmt: skip


def answer_about(country: str, thinking: bool) -> tuple[str, str]:
    """(answer, thought) about its capital."""
    return f"The capital of {country} is {CAPITALS[country]}.", f"The user asks for the capital of {country}." if thinking else ""
