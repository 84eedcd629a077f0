"""Conversations: about glmrun and GLM-4.7-Flash, small talk, names, capitals, functions, and what nano does not know."""

import random

from nano import arithmetic, memory, rules, text_tasks
from nano.document import Document, as_people_type, assistant, choices, invented_name, pick, user
from nano.functions import FUNCTIONS, answer_with
from nano.topics import CAPITALS, GLM_NAMES, GLMRUN_NAMES, MORE, NO_MORE, TOPICS, Topic, answer_about

UNKNOWN = "I do not know that. I am a very small model: ask me about glmrun or GLM-4.7-Flash, or give me a sum."
UNKNOWN_THOUGHT = "This is not something I know. I say so."
TOO_HARD = "That is too hard for a model of my size. The real GLM-4.7-Flash can do it."
TOO_HARD_THOUGHT = "This task is too hard for me. I say so."
CONFUSED = "I did not understand that. Ask me what I can do."
CONFUSED_THOUGHT = "I do not understand this."

SUBJECTS = choices(
    "the moon|Napoleon|Shakespeare|the Roman empire|black holes|dinosaurs|the stock market|football|Mozart|the pyramids|"
    "penguins|quantum physics|volcanoes|the weather on Mars|chess|pizza|democracy|bees|the Titanic|Einstein|the human brain|"
    "whales|electric cars|coffee|tea|the ocean|gravity|yoga|cats|dogs|elephants|bicycles|trains|Africa|Europe|America|Asia|"
    "love|happiness|money|music|history|biology|chemistry|vitamins|sleep|dreams|the sun|stars|Java|Rust|Linux|Windows|"
    "databases|the president|the king|my neighbour|my mother|bread|cheese|chocolate|wine|the Olympic games|tennis|swimming|"
    "mountains|rivers|robots|aliens|ghosts|dragons|magic|philosophy|Plato|religion|taxes|insurance|computers|phones|"
    "television|films|books|paintings|Picasso|dance|opera"
)
ASK_UNKNOWN = choices(
    "What is {s}?|Who was {s}?|Tell me about {s}|Explain {s}|How does {s} work?|When was {s} discovered?|Where is {s}?|"
    "Who invented {s}?|Why is {s} important?|What do you think about {s}?|What do you know about {s}?|How old is {s}?|"
    "Do you like {s}?|Is {s} dangerous?|What is the history of {s}?|How many {s} are there?|"
    "What is the best thing about {s}?|Where can I buy {s}?|How far away is {s}?|What colour is {s}?|How much does {s} cost?|"
    "Who won against {s}?|What does {s} eat?|Can you explain {s} to a child?|Is {s} real?|What is the meaning of {s}?"
)
ASK_HARD = choices(
    "Write a poem about {s}|Write an essay about {s}|Translate {s} into German|Write a letter about {s}|"
    "Write a song about {s}|Summarize {s}|Write a novel about {s}|Make a plan for {s}|Draw a picture of {s}|"
    "Write a speech about {s}|Write a blog post about {s}|Compose a haiku about {s}|Prove a theorem about {s}|"
    "Write a web page about {s}|Write an email about {s}|Paint {s}|Write a game about {s}|Analyse {s}|"
    "Translate this into French: {s}"
)
SYSTEM_PROMPTS = choices(
    "You are a helpful assistant.|You are nano, a small model.|Answer briefly.|Be friendly.|"
    "You are a helpful assistant that comes with glmrun.|You are an assistant for glmrun.|Answer in short sentences.|"
    "Be polite and helpful.|You help people with glmrun and GLM-4.7-Flash.|"
    "You are a careful assistant. Say so if you do not know something.|Use simple words.|Help the user.|Answer truthfully.|"
    "You are a friendly assistant.|Today is Monday.|You are a terminal assistant.|Keep your answers short and clear."
)
SCRIPTS = (
    (0xC0, 0x180),
    (0x391, 0x3C9),
    (0x410, 0x450),
    (0x4E00, 0x9FA0),
    (0x1F300, 0x1F600),
)  # Latin, Greek, Cyrillic, Han, pictures


def topic_question(rng: random.Random, topic: Topic, practice: bool = False) -> str:
    """One of the topic's questions, as people type it."""
    question = (
        rng.choice(topic.questions + topic.also if practice else topic.questions)
        .replace("{g}", rng.choice(GLM_NAMES))
        .replace("{r}", rng.choice(GLMRUN_NAMES))
    )
    return as_people_type(rng, question[0].upper() + question[1:] if question[0].isalpha() else question)


def _topic_turns(rng: random.Random, topic: Topic, thinking: bool, practice: bool = False) -> list[Document]:
    question = topic_question(rng, topic, practice)
    turns = [Document("chat", question, [user(question), assistant(topic.answer, topic.thought if thinking else "")])]
    if rng.random() < (0.25 if topic.more else 0.04):
        again = as_people_type(rng, rng.choice(MORE), polite=False)
        thought = f"The user wants more. Before: {topic.name}."
        turns.append(
            Document("chat", f"{topic.name}: {again}", [user(again), assistant(topic.more or NO_MORE, thought if thinking else "")])
        )
    return turns


def limits(rng: random.Random, thinking: bool) -> list[Document]:
    kind = rng.random()
    subject = rng.choice(SUBJECTS) if rng.random() < 0.8 else invented_name(rng)
    if kind < 0.6:
        question, answer, thought = rng.choice(ASK_UNKNOWN), UNKNOWN, UNKNOWN_THOUGHT
    elif kind < 0.85:
        question, answer, thought = rng.choice(ASK_HARD), TOO_HARD, TOO_HARD_THOUGHT
    else:
        question, answer, thought = _noise(rng), CONFUSED, CONFUSED_THOUGHT
    question = as_people_type(rng, question.replace("{s}", subject), polite=kind < 0.85)
    return [Document("says what it cannot do", question, [user(question), assistant(answer, thought if thinking else "")])]


def _noise(rng: random.Random) -> str:
    kind = rng.randrange(4)
    if kind == 0:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(4, 12)))
    if kind == 1:
        return "".join(rng.choice("?!.,;:-_#+*/()=&%$§<>[]{}") for _ in range(rng.randrange(1, 6)))
    if kind == 2:
        return "".join(chr(rng.choice([rng.randrange(*span) for span in SCRIPTS])) for _ in range(rng.randrange(1, 6)))
    return " ".join(invented_name(rng).lower() for _ in range(rng.randrange(1, 4)))


def _capital(rng: random.Random, thinking: bool) -> list[Document]:
    country = rng.choice(list(CAPITALS))
    ask = (
        "What is the capital of {c}?|Capital of {c}?|Which city is the capital of {c}?|Tell me the capital of {c}|"
        "What's the capital of {c}?|Do you know the capital of {c}?|{c}'s capital?|What is {c}'s capital?"
    )
    question = as_people_type(rng, pick(rng, ask).replace("{c}", country))
    return [Document("capitals", question, [user(question), assistant(*answer_about(country, thinking))])]


def _code(rng: random.Random, thinking: bool) -> list[Document]:
    function = rng.choice(FUNCTIONS)
    language, what = function[0], function[2]
    ask = (
        "Write a {l} function that {w}|Write a {l} function that {w}|{l} function that {w}|Can you write a "
        "{l} function that {w}?|Show me a {l} function that {w}|I need a {l} function that {w}|Give me {l} "
        "code that {w}|Write {l} code that {w}|Program a {l} function that {w}|How do I write a {l} function that {w}?|"
        "Write a short {l} function that {w}"
    )
    if language == "Python":
        ask += "|Write a function that {w}|I need a function that {w}"
    question = as_people_type(rng, pick(rng, ask).replace("{l}", language).replace("{w}", what))
    return [Document("code", question, [user(question), assistant(*answer_with(function, thinking))])]


def turns(rng: random.Random, thinking: bool) -> list[Document]:
    """A short stretch of conversation: documents of one question and answer each, to be joined."""
    kind = rng.random()
    if kind < 0.42:
        return _topic_turns(rng, rng.choice(TOPICS), thinking)
    if kind < 0.52:
        return limits(rng, thinking)
    if kind < 0.58:
        return _capital(rng, thinking)
    if kind < 0.68:
        return _code(rng, thinking)
    if kind < 0.82:
        told, asked = memory.told_and_asked(rng, thinking)
        return [*told, *(_topic_turns(rng, rng.choice(TOPICS), thinking) if rng.random() < 0.3 else []), *asked]
    if kind < 0.90:
        return [text_tasks.as_json(rng, thinking)]
    if kind < 0.95:
        return [text_tasks.edit(rng, thinking)]
    return [Document(*arithmetic.exercise(rng, thinking))]


def conversation(rng: random.Random) -> list[Document]:
    """One to four stretches, possibly under a system prompt: documents that each continue the one before."""
    thinking, kind = rng.random() < 0.6, rng.random()
    if kind < 0.28:
        return continued(rules.under_rule(rng, thinking, lambda: _short_turns(rng, thinking)), thinking, rng.random() < 0.6)
    parts = [part for _ in range(rng.choice((1, 1, 2, 2, 3, 4))) for part in turns(rng, thinking)]
    if kind < 0.42:
        parts[0].messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    return continued(parts, thinking, rng.random() < 0.6)


def practice(rng: random.Random) -> list[Document]:
    """Topics asked for in every way there is, among capitals and what nano does not know; under a rule half the time."""
    thinking = rng.random() < 0.6

    def draw() -> list[Document]:
        kind = rng.random()
        if kind < 0.15:
            return limits(rng, thinking)
        if kind < 0.3:
            return _capital(rng, thinking)
        return _topic_turns(rng, rng.choice(TOPICS), thinking, practice=True)

    if rng.random() < 0.35:
        return continued(rules.under_rule(rng, thinking, lambda: draw()[:1]), thinking, rng.random() < 0.6)
    return continued([part for _ in range(rng.randrange(1, 6)) for part in draw()], thinking, rng.random() < 0.6)


def _short_turns(rng: random.Random, thinking: bool) -> list[Document]:
    """One question whose answer is a line."""
    draw = rng.choice((_capital, limits, _one_topic, _one_topic, _one_sum))
    return draw(rng, thinking)


def _one_topic(rng: random.Random, thinking: bool) -> list[Document]:
    return _topic_turns(rng, rng.choice([topic for topic in TOPICS if "\n" not in topic.answer]), thinking)[:1]


def _one_sum(rng: random.Random, thinking: bool) -> list[Document]:
    return [Document(*arithmetic.exercise(rng, thinking))]


def continued(parts: list[Document], thinking: bool, keep_reasoning: bool) -> list[Document]:
    """Each document with the messages of all before it in front of its own."""
    history: list[dict] = []
    for part in parts:
        history = [*history, *part.messages]
        part.messages, part.thinking, part.keep_reasoning = history, thinking, keep_reasoning
    return parts
