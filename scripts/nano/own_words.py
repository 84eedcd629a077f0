"""What nano can do, asked in more ways than the test has: small stories, follow-ups, and everything that people keep and own.

For training alone (corpus.py): the held-out questions are drawn without these. Strangers ask in words of their own, and what a
model this small has met in ten wordings it does not know in an eleventh.
"""

import json
import random
from collections.abc import Callable

from nano import arithmetic, dialogues, everyday, text_tasks
from nano.document import FIRST_NAMES, Document, as_people_type, assistant, choices, invented_name, pick, user
from nano.functions import FUNCTIONS, answer_with
from nano.topics import CAPITALS, TOPICS, answer_about

_BEFORE = choices(
    "So,|Well,|Now|Ok,|Okay,|Right,|Alright,|Hm,|By the way,|One more thing:|Next:|And|Hey,|Hi!|Nice.|Great.|Good.|Cool,|"
    "I wonder:|Let me see:|Another question:|Something else:|Please|nano,|Could you tell me:|Thanks.|Thank you."
)
_AFTER = choices("please|please?|thanks|, thank you|for me|now|again|, if you can|, ok?|, nano|for me, please")
_OWNED = choices(
    "cat|goat|sister|brother|mother|father|wife|husband|son|daughter|friend|best friend|boss|teacher|neighbour|horse|parrot|"
    "boat|car|"
    "street|school|village|doctor|uncle|aunt|baby|hamster|rabbit|cousin|team|company|favourite food|favourite book|favourite film|"
    "favourite song|favourite animal|favourite drink|favourite game|grandmother|grandfather|bike|fish|donkey|tortoise"
)
_THINGS = choices(
    "apples|books|letters|stones|pears|flowers|candles|maps|cups|coins|pens|tickets|carrots|eggs|sweets|balls|cards|nuts|"
    "stamps|marbles|"
    "cookies|chairs|fish|birds|euros|pencils|shells|oranges|toys|plates|bottles|socks|keys|trees|sheep"
)
_PEOPLE = choices(
    "my neighbour|my friend|my sister|my mother|my brother|a friend|my uncle|the baker|somebody|the teacher|my aunt|my father"
)
_GAIN = choices(
    "I have {a} {t} and get {b} more. How many {t} do I have?|I bought {a} {t} and {p} gave me {b} more. How many do I have now?|"
    "There are {a} {t} in one box and {b} in another. How many are there in all?|{n} has {a} {t}, {m} has {b}. How many together?|"
    "I found {a} {t} yesterday and {b} today. How many is that?|I had {a} {t}, then I bought {b}. How many {t} now?|"
    "{a} {t} and {b} {t}, how many altogether?|If I have {a} {t} and {p} brings {b}, what do I have?|"
    "{n} picks {a} {t} in the morning and {b} in the evening. How many in total?|"
    "I read {a} pages and then {b} more. How many pages?"
)
_LOSS = choices(
    "I have {a} {t} and give {b} away. How many are left?|I had {a} {t} and lost {b}. How many do I still have?|"
    "There were {a} {t}, {p} took {b}. How many remain?|{n} has {a} {t} and eats {b}. How many are left?|"
    "I pay with {a} euros, it costs {b}. How much do I get back?|Out of {a} {t} {b} are broken. How many are good?|"
    "I owe {a} euros and pay back {b}. What do I still owe?|From {a} {t} I sold {b}. How many {t} are left?"
)
_TIMES = choices(
    "I have {a} boxes with {b} {t} each. How many {t}?|{a} people bring {b} {t} each. How many {t} is that?|"
    "One costs {b} euros. What do {a} cost?|There are {a} rows of {b} chairs. How many chairs?|"
    "I read {b} pages a day for {a} days. How many pages?|{a} bags hold {b} {t} each. How many in all?"
)
_EXPRESSIONS = {
    "+": "{a} plus {b}|{a} and {b}|{a} + {b}|{a}+{b}|{b} added to {a}|the sum of {a} and {b}",
    "-": "{a} minus {b}|{a} - {b}|{a}-{b}|{a} take away {b}|{a} less {b}|{b} from {a}",
    "*": "{a} times {b}|{a} x {b}|{a} * {b}|{a}*{b}|{a} multiplied by {b}|the product of {a} and {b}",
}
_ASK_SUM = choices(
    "{e}|{e}?|What is {e}?|what's {e}?|How much is {e}?|Can you do {e}?|Work out {e}|Add it up: {e}|I need to know {e}|And {e}?|"
    "Could you calculate {e}?|What do I get for {e}?|Do you know {e}?|{e} makes?|What would {e} be?|Help me with {e}|Try {e}"
)
_THEN = {
    "+": "And {b} more?|Add {b}|Now add {b}|Now add {b} to that|Plus {b}?|And plus {b}?|Put {b} on top|"
    "And if I get {b} more?|Add {b} to it",
    "-": "Take {b} away|Now take {b} away from that|Minus {b}?|And minus {b}?|Subtract {b}|Now subtract {b} from it|And {b} less?|"
    "Take {b} off that|And if I lose {b}?",
}
_COUNT = choices(
    "Count from {a} to {b}|Count from {a} up to {b}|Count up from {a} to {b}|Please count from {a} up to {b}|"
    "Numbers from {a} to {b}|"
    "List the numbers from {a} to {b}|Count {a} to {b}|Can you count from {a} to {b} for me?|Start at {a} and count to {b}|"
    "I want you to count from {a} to {b}|Say the numbers from {a} to {b}|Could you count from {a} until {b}?|"
    "From {a} to {b}, count!|"
    "Write all numbers from {a} to {b}|Which numbers come from {a} to {b}?|Let's count from {a} to {b}"
)
_COUNT_DOWN = choices(
    "Count down from {a} to {b}|Count backwards from {a} to {b}|Count from {a} down to {b}|Please count back from {a} to {b}|"
    "Count from {a} to {b}|Numbers from {a} down to {b}|Start at {a} and count down to {b}|Can you count down from {a} to {b}?"
)
_AS_JSON = choices(
    "Make JSON out of this: {x}|Format this as JSON: {x}|Put this into JSON: {x}|Convert to JSON: {x}|{x} - as JSON, please|"
    "I need this as JSON: {x}|Could you write {x} as JSON?|Please give me JSON for {x}|JSON: {x}|Write {x} as a JSON object|"
    "Make a JSON object out of {x}|Here is some data, make it JSON: {x}|Can you turn {x} into JSON?|Return JSON for: {x}|"
    "Show {x} in JSON|Create JSON from this: {x}|Please convert this to JSON: {x}"
)
_REPEAT = choices(
    "Repeat this back word for word: {x}|Repeat this: {x}|Repeat the following: {x}|Say this again: {x}|Say exactly this: {x}|"
    "Write this again: {x}|Please repeat: {x}|Can you repeat this sentence: {x}|Copy this text: {x}|Copy the following text: {x}|"
    "Type this: {x}|Write exactly: {x}|Repeat exactly what I say: {x}|Please copy: {x}|Give me this back: {x}|"
    'Say "{x}"|Repeat "{x}"|Write "{x}"|Could you repeat this for me: {x}|Echo this back: {x}|Say it after me: {x}'
)
_ADJECTIVES = choices("grey|old|little|red|quiet|happy|tall|green|small|brave|slow|cold|warm|blue|tired|young|white|dark|loud|soft")
_NOUNS = choices(
    "boat|pier|cat|house|river|bird|garden|train|king|child|dog|moon|tree|teacher|bridge|horse|window|ship|fox|farmer|road"
)
_VERBS = choices("sleeps|waits|sings|stands|runs|looks|dreams|walks|sits|plays|works|swims|falls|jumps|rests|shines")
_JOINTS = choices("by|near|under|behind|on|over|beside|in front of|with|without|far from")
_CODE = choices(
    "Write me a short {l} function that {w}.|Could you write a {l} function that {w}?|I want a {l} function that {w}|"
    "How would you write a {l} function that {w}?|Can I have {l} code that {w}?|Please code a {l} function that {w}|"
    "Make a {l} function that {w}|In {l}, write a function that {w}|A function in {l} that {w}, please|"
    "Help me write a {l} function that {w}|Do you know a {l} function that {w}?|{l}: a function that {w}"
)
_CODE_AGAIN = choices(
    "Same thing in {l} please|And in {l}?|Now in {l}|The same in {l}|Can you do that in {l}?|In {l}, please|"
    "How does it look in {l}?|"
    "What about {l}?|Write it in {l}|{l} version?|Could you write that in {l}?|And how would it be in {l}?"
)
_CAPITAL = choices(
    "Which city is the capital of {c}?|And the capital of {c}?|What about {c}, what is the capital?|The capital of {c}, please|"
    "Which is the capital city of {c}?|Do you happen to know the capital of {c}?|Name the capital of {c}|{c}: capital?|"
    "What city is {c}'s capital?|I forgot the capital of {c}|Could you tell me the capital of {c}?|"
    "In {c}, which city is the capital?"
)
_PRIVATE = choices(
    "What did my {o} eat for breakfast?|Where are my keys?|Where did I leave my {o}?|What am I wearing?|How old am I?|"
    "Who won the match yesterday?|What will I do tomorrow?|How is my {o} today?|What is in my pocket?|What did I dream last night?|"
    "Which page was I reading?|Who called me this morning?|What is the name of the man next door?|How tall is my {o}?|"
    "What did my {o} say yesterday?|What is on my table?|When is my birthday?|How much money do I have?|What did I buy last week?|"
    "Is my {o} at home?|What is my {o} doing now?|Who will win the election?|What are the lottery numbers?|Will it rain tomorrow?"
)
_BEYOND = choices(
    "Could you put that sentence in all capital letters?|Write {x} in capital letters|How many letters are in {x}?|"
    "Spell {x} backwards|"
    "What rhymes with {x}?|Sort these words: {x}|Translate {x} into Spanish|Can you say {x} in Italian?|Shorten this: {x}|"
    "Say that in other words|Make this sound friendlier: {x}|Find the mistake in {x}|Continue this story: {x}|Explain this: {x}|"
    "Is this sentence correct: {x}|Tell me a story about {x}|Write three sentences about {x}|What is the square root of {x}?|"
    "Count the words in {x}|Put these in order: {x}|Guess what this is: {x}|Make a joke about {x}|Give me a recipe with {x}"
)
_ASKED = choices(
    "What did I just ask?|What was my last question?|What did I say?|What did I just say?|Repeat my last message|"
    "What was my last message?|What did I ask you before?|Can you repeat what I said?|What have I just written?|"
    "Do you remember what I just asked?"
)


_ONSETS = choices(
    "b|bl|br|c|ch|cl|d|dr|f|fl|fr|g|gl|gr|h|j|k|kl|kr|l|m|n|p|ph|pl|pr|qu|r|s|sch|sh|sl|sm|sp|st|str|sw|t|th|tr|v|w|wh|x|y|z|"
)
_VOWELS = choices("a|a|e|e|i|i|o|o|u|ai|au|ea|ee|ei|ia|ie|io|oo|ou|y|ü|é")
_CODAS = choices("|||b|ck|d|ff|g|k|l|ld|ll|lt|m|mp|n|nd|ng|nk|nt|p|r|rd|rg|rk|rt|s|ss|st|t|tt|th|x|z")


def _name(rng: random.Random) -> str:
    """A name or word of letters in any order that can be said: what is told must be copied letter by letter."""
    if rng.random() < 0.4:
        return rng.choice(FIRST_NAMES) if rng.random() < 0.5 else invented_name(rng)
    pieces = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.choice((1, 2, 2, 2, 3))))
    return "".join(pieces).capitalize()


def _typed(rng: random.Random, question: str) -> str:
    """With something before it or behind it, and as people type."""
    if rng.random() < 0.25:
        before = rng.choice(_BEFORE)
        question = f"{before} {question[0].lower() + question[1:] if question[:2].istitle() and rng.random() < 0.6 else question}"
    if rng.random() < 0.12:
        question = f"{question.rstrip('?.! ')} {rng.choice(_AFTER)}".replace(" ,", ",")
    return as_people_type(rng, question, polite=False)


def _document(rng: random.Random, skill: str, question: str, answer: str, thought: str, key: str = "") -> Document:
    """key: that of the same question in the test's words, where numbers are what is held out."""
    return Document(skill, key or question, [user(_typed(rng, question)), assistant(answer, thought)])


def _sums(rng: random.Random, thinking: bool) -> list[Document]:
    """A sum in words or as a story, then perhaps two more with its result."""
    a, op, b = arithmetic.draw(rng)
    if op == "-" and a < b:
        a, b = b, a
    if rng.random() < 0.5:
        stories = {"+": _GAIN, "-": _LOSS, "*": _TIMES}[op]
        n, m = rng.sample(FIRST_NAMES, 2)
        ask = rng.choice(stories).format(a=a, b=b, t=rng.choice(_THINGS), p=rng.choice(_PEOPLE), n=n, m=m)
    else:
        ask = rng.choice(_ASK_SUM).format(e=pick(rng, _EXPRESSIONS[op]).format(a=a, b=b))
    found = []
    while True:
        found.append(_document(rng, arithmetic.skill_of(thinking), ask, *arithmetic.answer_to(a, op, b, thinking), f"{a}{op}{b}"))
        _, result = arithmetic.steps(a, op, b)
        if len(found) == 3 or not 0 <= result < 100 or rng.random() < 0.5:
            return found
        a, op = result, rng.choice("+-")
        b = rng.randrange(100 if op == "+" else a + 1)
        ask = pick(rng, _THEN[op]).format(b=b)


def _too_hard(rng: random.Random, thinking: bool) -> list[Document]:
    """What is done to texts beyond what nano was taught, and numbers beyond it."""
    thought = dialogues.TOO_HARD_THOUGHT if thinking else ""
    if rng.random() < 0.5:
        ask = rng.choice(_BEYOND).replace("{x}", rng.choice((_sentence(rng), rng.choice(text_tasks.WORDS), invented_name(rng))))
        return [_document(rng, "says what it cannot do", ask, dialogues.TOO_HARD, thought)]
    op = rng.choice("+-**")
    a, b = (rng.randrange(10, 100), rng.randrange(10, 100)) if op == "*" else (rng.randrange(100, 5000), rng.randrange(3, 5000))
    ask = rng.choice(_ASK_SUM).format(e=pick(rng, _EXPRESSIONS[op]).format(a=a, b=b))
    return [_document(rng, "says what it cannot do", ask, dialogues.TOO_HARD, thought)]


def _counts(rng: random.Random, thinking: bool) -> list[Document]:
    a, n = rng.choice((0, 1, 1, rng.randrange(60), rng.randrange(90))), rng.randrange(3, 15)
    down = rng.random() < 0.35
    first, last = (a + n, a) if down else (a, a + n)
    numbers = range(first, last - 1, -1) if down else range(first, last + 1)
    ask = rng.choice(_COUNT_DOWN if down else _COUNT).format(a=first, b=last)
    thought = f"From {first} to {last}: {'down' if down else 'up'}." if thinking else ""
    return [_document(rng, "counting", ask, ", ".join(map(str, numbers)), thought, f"count {first} {last} 1")]


def _json(rng: random.Random, thinking: bool) -> list[Document]:
    """Words and their values; what is not named has no place in the object."""
    keys = choices(
        "colour|size|price|name|age|city|item|count|year|weight|country|animal|food|brand|day|month|street|title|level|code"
    )
    values: Callable[[], str | int] = lambda: rng.choice(  # noqa: E731
        (
            rng.choice(text_tasks.WORDS),
            _name(rng),
            _name(rng).lower(),
            rng.randrange(1, 1000),
            pick(rng, "small|large|new|big|short|long"),
        )
    )
    keys = tuple(_name(rng).lower() if rng.random() < 0.3 else key for key in rng.sample(keys, rng.choice((1, 2, 3, 3, 4))))
    fields = {key: values() for key in keys}
    joint, mark = rng.choice(
        ((", ", " "), (", ", " is "), ("; ", " = "), (", ", ": "), (" and ", " "), (", ", " = "), ("; ", ": "))
    )
    ask = rng.choice(_AS_JSON).replace("{x}", joint.join(f"{key}{mark}{value}" for key, value in fields.items()))
    thought = "The user wants JSON." if thinking else ""
    return [_document(rng, "JSON on request", ask, json.dumps(fields, ensure_ascii=False), thought)]


def _sentence(rng: random.Random) -> str:
    def thing() -> str:
        noun = rng.choice(_NOUNS) if rng.random() < 0.75 else _name(rng).lower()
        return f"{pick(rng, 'the|a|my|the')} {rng.choice(_ADJECTIVES) + ' ' if rng.random() < 0.6 else ''}{noun}"

    text = f"{thing()} {rng.choice(_VERBS)} {rng.choice(_JOINTS)} {thing()}"
    if rng.random() < 0.3:
        text += f" and {pick(rng, 'nobody knows|everybody laughs|it rains|we go home|all is well|I see it')}"
    return text if rng.random() < 0.5 else text[0].upper() + text[1:] + rng.choice(".!?")


def _repeats(rng: random.Random, thinking: bool) -> list[Document]:
    text = _sentence(rng)
    ask = rng.choice(_REPEAT).replace("{x}", text)
    answer = assistant(text, "I work on the text the user gave." if thinking else "")
    return [Document("copies and edits", ask, [user(ask), answer])]


def _code(rng: random.Random, thinking: bool) -> list[Document]:
    """A function, then perhaps the same one in another language."""
    function = rng.choice(FUNCTIONS)
    language, what = function[0], function[2]
    ask = rng.choice(_CODE).format(
        l=language, w=what.replace("says whether", pick(rng, "says whether|checks if|checks whether|tells if"))
    )
    found = []
    others = [other for other in FUNCTIONS if other[2] == what and other[0] != language]
    rng.shuffle(others)
    while True:
        found.append(_document(rng, "code", ask, *answer_with(function, thinking)))
        if not others or rng.random() < 0.3:
            return found
        function = others.pop()
        ask = rng.choice(_CODE_AGAIN).format(l=function[0])


def _capital(rng: random.Random, thinking: bool) -> list[Document]:
    country = rng.choice(list(CAPITALS))
    return [_document(rng, "capitals", rng.choice(_CAPITAL).format(c=country), *answer_about(country, thinking))]


def _everyday(rng: random.Random, thinking: bool) -> list[Document]:
    ask, answer, thought = everyday.asked(rng)
    return [_document(rng, "chat", ask, answer, thought if thinking else "")]


def _topic(rng: random.Random, thinking: bool) -> list[Document]:
    topic = rng.choice(TOPICS)
    ask = dialogues.topic_question(rng, topic, practice=True)
    return [Document("chat", ask, [user(ask), assistant(topic.answer, topic.thought if thinking else "")])]


def _asked(rng: random.Random, before: Document, thinking: bool) -> Document:
    """What the user said last."""
    said = before.messages[-2]["content"]
    return _document(
        rng, "remembers across turns", rng.choice(_ASKED), f"You said: {said}", "I look at the last message." if thinking else ""
    )


def _private(rng: random.Random, thinking: bool) -> list[Document]:
    thought = dialogues.UNKNOWN_THOUGHT if thinking else ""
    ask = rng.choice(_PRIVATE).format(o=rng.choice(_OWNED[:32]))
    return [_document(rng, "says what it cannot do", ask, dialogues.UNKNOWN, thought)]


def _others(rng: random.Random, thinking: bool) -> list[Document]:
    return rng.choice((_sums, _counts, _json, _repeats, _code, _capital, _everyday, _private))(rng, thinking)


def _remembers(rng: random.Random, thinking: bool) -> list[Document]:
    """The user's name, and names of what is his; some turns later he asks for some of them, or for what he never told."""
    skill, told, asked = "remembers across turns", [], []
    mine = _name(rng)
    owned = [(thing, _name(rng)) for thing in rng.sample(_OWNED, rng.choice((0, 1, 1, 2, 3)))]
    if not owned or rng.random() < 0.7:
        say = pick(
            rng, "My name is {v}|I am {v}|I'm {v}|Call me {v}|This is {v} speaking|People call me {v}|{v} is my name|It's me, {v}"
        ).replace("{v}", mine)
        thought = f"The user's name: {mine}."
        if owned and rng.random() < 0.4:
            thing, name = owned[0]
            say += " " + pick(rng, "and my {t} is called {n}|and I have a {t} called {n}|and my {t} is {n}|and this is my {t} {n}")
            say = say.replace("{t}", thing).replace("{n}", name)
            thought += f" The user's {thing}: {name}."
        told.append(_document(rng, skill, say, f"Nice to meet you, {mine}!", thought if thinking else ""))
        ask = pick(
            rng,
            "What is my name?|Do you still know what I'm called?|Who am I?|What am I called?|Do you remember who I am?|"
            "What's my name again?|"
            "Can you tell me my name?|Do you know who is talking to you?|Say my name|My name is what?|Have you forgotten my name?",
        )
        asked.append(_document(rng, skill, ask, f"Your name is {mine}.", f"The user's name: {mine}." if thinking else ""))
    for i, (thing, name) in enumerate(owned):
        if i or not told or name not in told[0].messages[0]["content"]:
            say = pick(
                rng,
                "My {t} is called {n}|I have a {t} called {n}|My {t}'s name is {n}|My {t} is {n}|{n} is my {t}|Meet my {t} {n}",
            )
            thought = f"The user's {thing}: {name}." if thinking else ""
            said = say.replace("{t}", thing).replace("{n}", name)
            told.append(_document(rng, skill, said, f"I will remember that: {name}.", thought))
        ask = pick(
            rng,
            "What is my {t} called?|What is my {t}'s name?|What's the name of my {t}?|Do you remember my {t}?|"
            "How is my {t} called?|"
            "Who is my {t}?|Which name has my {t}?|Do you still know my {t}'s name?|And my {t}?|Tell me the name of my {t}",
        ).replace("{t}", thing)
        asked.append(
            _document(rng, skill, ask, f"Your {thing} is called {name}.", f"The user's {thing}: {name}." if thinking else "")
        )
    if rng.random() < 0.2:
        thing = rng.choice([thing for thing in _OWNED if thing not in dict(owned)])
        thought = f"The user has not told me the {thing}." if thinking else ""
        answer = f"You have not told me your {thing} yet. What is it?"
        asked.append(_document(rng, skill, f"What is my {thing} called?", answer, thought))
    rng.shuffle(asked)
    between = [part for _ in range(rng.choice((0, 0, 1, 1, 2, 3))) for part in _others(rng, thinking)]
    return [*told, *between, *asked[: rng.choice((1, 2, 3))]]


def practice(rng: random.Random) -> list[Document]:
    """A conversation of several of these."""
    thinking, found = rng.random() < 0.6, list[Document]()
    draws: list[Callable[[random.Random, bool], list[Document]]] = [
        *(_remembers, _remembers, _remembers, _sums, _sums, _sums, _counts, _json, _json, _repeats, _repeats, _code, _code),
        *(_capital, _everyday, _private, _too_hard, dialogues.limits, _topic, _topic, _topic),
    ]
    while len(found) < 1 or (len(found) < 12 and rng.random() < 0.6):
        draw = rng.choice(draws)
        found += draw(rng, thinking)
        if rng.random() < 0.06:
            found.append(_asked(rng, found[-1], thinking))
    return found
