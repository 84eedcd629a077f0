"""Sums, differences and small products, with their steps written the way people do them on paper."""

import random

from nano.document import Document, as_people_type, assistant, choices, user

ASK = choices(
    "What is {e}?|{e}|{e} = ?|Calculate {e}|How much is {e}?|{e} =|Compute {e}|What's {e}?|Can you calculate {e}?|"
    "Please calculate {e}|Solve {e}|Tell me {e}|I need {e}|What does {e} give?|{e}?|What do you get for {e}?"
)
WORDS = {
    "+": ("{a} plus {b}", "the sum of {a} and {b}"),
    "-": ("{a} minus {b}", "the difference of {a} and {b}"),
    "*": ("{a} times {b}", "the product of {a} and {b}"),
}


def steps(a: int, op: str, b: int) -> tuple[str, int]:
    """(the working, the result) of a + b, a - b or a * b for numbers from 0 to 99, one factor of a product below 10."""
    if op == "+":
        return _add(a, b), a + b
    if op == "-":
        if a < b:
            return f"{a} is less than {b}. {_subtract(b, a)} So {a} - {b} = -{b - a}.", a - b
        return _subtract(a, b), a - b
    small, large = min(a, b), max(a, b)
    if large < 10:
        return f"{a} * {b} = {a * b}.", a * b
    ones, tens = small * (large % 10), small * (large // 10)
    carry = ones // 10
    work = (
        f"Ones: {small} * {large % 10} = {ones}, write {ones % 10}, carry {carry}. "
        f"Tens: {small} * {large // 10} = {tens}, {tens} + {carry} = {tens + carry}. {a} * {b} = {a * b}."
    )
    return work, a * b


def _add(a: int, b: int) -> str:
    if a < 10 and b < 10:
        return f"{a} + {b} = {a + b}."
    ones, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
    tens = a // 10 % 10 + b // 10 % 10 + carry
    return (
        f"Ones: {a % 10} + {b % 10} = {ones}, write {ones % 10}, carry {carry}. "
        f"Tens: {a // 10 % 10} + {b // 10 % 10} + {carry} = {tens}. {a} + {b} = {a + b}."
    )


def _subtract(a: int, b: int) -> str:
    if a < 10:
        return f"{a} - {b} = {a - b}."
    if a % 10 >= b % 10:
        first = f"Ones: {a % 10} - {b % 10} = {a % 10 - b % 10}, borrow 0. "
    else:
        first = f"Ones: {a % 10 + 10} - {b % 10} = {a % 10 + 10 - b % 10}, borrow 1. "
    borrow = int(a % 10 < b % 10)
    return first + f"Tens: {a // 10} - {b // 10} - {borrow} = {a // 10 - b // 10 - borrow}. {a} - {b} = {a - b}."


def draw(rng: random.Random) -> tuple[int, str, int]:
    """Two numbers and an operation; mostly two digits, sometimes one."""
    op = rng.choice("++--*")
    a, b = rng.randrange(100), rng.randrange(100)
    if op == "*":
        b = rng.randrange(10)
        if rng.random() < 0.35:
            a %= 10
        if rng.random() < 0.4:
            a, b = b, a
    elif op == "-" and a < b and rng.random() < 0.8:
        a, b = b, a
    elif rng.random() < 0.12:
        a, b = a % 10, b % 10
    return a, op, b


def skill_of(thinking: bool) -> str:
    """What a sum measures."""
    return "arithmetic, thinking" if thinking else "arithmetic, no thinking"


def answer_to(a: int, op: str, b: int, thinking: bool) -> tuple[str, str]:
    """(answer, thought); who may not think, shows the steps in the answer."""
    work, result = steps(a, op, b)
    return (f"{a} {op} {b} = {result}", work) if thinking else (work, "")


def _question(rng: random.Random, a: int, op: str, b: int) -> str:
    if rng.random() < 0.2:
        expression = rng.choice(WORDS[op]).format(a=a, b=b)
        ask = rng.choice(ASK[:1] + ASK[3:5] + ASK[7:12])
    else:
        sign = rng.choice(("*", "*", "x", "×")) if op == "*" else op
        expression = f"{a}{sign}{b}" if rng.random() < 0.3 else f"{a} {sign} {b}"
        ask = rng.choice(ASK)
    return as_people_type(rng, ask.format(e=expression), polite=rng.random() < 0.3)


def exercise(rng: random.Random, thinking: bool, numbers: tuple[int, str, int] | None = None) -> tuple[str, str, list[dict]]:
    """(skill, key, [question, answer]) about the numbers, or drawn ones."""
    a, op, b = numbers or draw(rng)
    messages = [user(_question(rng, a, op, b)), assistant(*answer_to(a, op, b, thinking))]
    return skill_of(thinking), f"{a}{op}{b}", messages


def series(rng: random.Random) -> list[Document]:
    """Up to five exercises in a row; with all their steps kept, each is worth as much as a conversation of its own."""
    thinking, n = rng.random() < 0.55, rng.choice((1, 1, 1, 2, 3, 4, 5))
    return [Document(*exercise(rng, thinking), thinking=thinking) for _ in range(n)]


def practice(rng: random.Random) -> list[Document]:
    """Series of what draw() draws rarely: one number of one digit, differences below zero."""
    thinking, drawn = rng.random() < 0.55, []
    for _ in range(rng.randrange(2, 7)):
        pair = [rng.randrange(10, 100), rng.randrange(10) if rng.random() < 0.6 else rng.randrange(100)]
        if rng.random() < 0.3:
            pair.reverse()
        drawn.append((pair[0], rng.choice("++-"), pair[1]))
    return [Document(*exercise(rng, thinking, numbers), thinking=thinking) for numbers in drawn]


def counting(rng: random.Random) -> list[Document]:
    """Counting up or down by one, two, five or ten, once or a few times."""
    thinking = rng.random() < 0.5
    return [_count(rng, thinking) for _ in range(rng.choice((1, 1, 2, 3, 4)))]


def counting_practice(rng: random.Random) -> list[Document]:
    """Several counts, up as often as down, from everywhere: where to stop and how to carry is the hard part."""
    thinking = rng.random() < 0.5
    starts = [rng.choice((0, 1, rng.randrange(60), rng.randrange(60), rng.randrange(110))) for _ in range(rng.randrange(3, 8))]
    return [_count(rng, thinking, start, down=0.4) for start in starts]


def _count(rng: random.Random, thinking: bool, start: int | None = None, down: float = 0.25) -> Document:
    if start is None:
        start = rng.choice((0, 1, 1, rng.randrange(40)))
    step, n = rng.choice((1, 1, 1, 1, 2, 5, 10)), rng.randrange(3, 11)
    numbers = [start + step * i for i in range(n)]
    by = {1: "", 2: " in steps of 2", 5: " in steps of 5", 10: " in steps of 10"}[step]
    way = "up"
    if rng.random() < down:
        way = "down"
        numbers.reverse()
    question = rng.choice(("Count from {a} to {b}{by}", "Can you count from {a} to {b}{by}?", "Please count from {a} to {b}{by}."))
    question = as_people_type(rng, question.format(a=numbers[0], b=numbers[-1], by=by), polite=False)
    thought = f"From {numbers[0]} to {numbers[-1]}{by}: {way}."  # both numbers stand before the decision
    answer = assistant(", ".join(map(str, numbers)), thought if thinking else "")
    return Document("counting", f"count {numbers[0]} {numbers[-1]} {step}", [user(question), answer])
