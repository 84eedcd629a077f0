"""One training or test document, and how its text may vary."""

import random
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Document:
    """A conversation (or, with `text`, plain prose).

    skill      what is measured with it: the row of the evaluation table
    key        what decides whether it is held out; documents with the same key are on the same side
    thinking   whether the last answer thinks; the last message is always the assistant's
    """

    skill: str
    key: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    thinking: bool = True
    keep_reasoning: bool = False
    text: str | None = None


def user(content: str) -> dict[str, Any]:
    """A user's message."""
    return {"role": "user", "content": content}


def assistant(content: str, reasoning: str = "", tool_calls: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """An assistant's message; reasoning "" stands for thinking switched off."""
    message: dict[str, Any] = {"role": "assistant", "content": content, "reasoning_content": reasoning}
    if tool_calls:
        message["tool_calls"] = tool_calls
    return message


def choices(text: str) -> tuple[str, ...]:
    """The alternatives in "a|b|c"."""
    return tuple(part.strip() for part in text.split("|"))


def pick(rng: random.Random, text: str) -> str:
    """One of the alternatives in "a|b|c"."""
    return rng.choice(choices(text))


POLITE_BEFORE = (
    "please ", "Please ", "Hi! ", "Hello, ", "Hey, ", "Ok, ", "So, ", "And ",
    "Tell me: ", "Quick question: ", "One question: ", "nano, ",
)  # fmt: skip
POLITE_AFTER = (" please", ", please", " Thanks!", " Thank you!", " please?")


def as_people_type(rng: random.Random, text: str, polite: bool = True) -> str:
    """The same question with a greeting, in lower case, without its mark, or with a slip of the finger."""
    if polite and rng.random() < 0.15:
        text = rng.choice(POLITE_BEFORE) + (text[0].lower() + text[1:] if text[:2].istitle() and rng.random() < 0.7 else text)
    if polite and rng.random() < 0.06:
        text = text.rstrip("?.!") + rng.choice(POLITE_AFTER)
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip("?.!")
    elif text[-1].isalnum() and rng.random() < 0.3:
        text += rng.choice("?.!!")
    if rng.random() < 0.06 and len(text) > 8:
        i = rng.randrange(1, len(text) - 2)
        if text[i].isalpha() and text[i + 1].isalpha():
            text = text[:i] + rng.choice((text[i + 1] + text[i], text[i], text[i] + text[i] + text[i + 1])) + text[i + 2 :]
    return text


FIRST_NAMES = choices(
    "Anna|Ben|Clara|David|Emma|Felix|Greta|Hannah|Ida|Jonas|Karl|Lena|Max|Nora|Oskar|Paula|Rosa|Simon|Tom|Ulla|Vera|Willi|"
    "Yara|Zoe|Ali|Bo|Chen|Dina|Elif|Fatima|Giulia|Hugo|Ines|Jun|Kofi|Luis|Maria|Nils|Olga|Pedro|Raj|Sara|Tim|Uma|Viktor|Wei|"
    "Xenia|Yusuf|José|Zoë|Renée|Søren"
)
SYLLABLES = choices(
    "ba|be|bo|da|de|do|el|fa|fe|ga|go|ha|he|ka|ko|la|le|li|lo|ma|me|mi|mo|na|ne|ni|no|or|pa|pe|ra|re|ri|ro|sa|se|so|ta|te|ti|"
    "to|va|ve|vi|wa|we|za|zu"
)


def invented_name(rng: random.Random) -> str:
    """A name nobody has heard of, so that copying is learnt and not a list."""
    word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
    return (word + rng.choice(("", "", "", "n", "r", "s", "l"))).capitalize()
