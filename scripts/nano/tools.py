"""Tools: declared, called, answered from, and left alone when they are not needed or not there."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nano import dialogues
from nano.arithmetic import draw
from nano.document import Document, as_people_type, assistant, choices, invented_name, pick, user
from nano.topics import CAPITALS

CITIES = (
    *CAPITALS.values(),
    *choices(
        "Hamburg|Munich|Cologne|Zürich|Geneva|Milan|Venice|Naples|Barcelona|Seville|Porto|Lyon|Nice|New York|Boston|Chicago|"
        "San Francisco|Seattle|Toronto|Sydney|Melbourne|Mumbai|Shanghai|Hong Kong|Seoul|Osaka|São Paulo|Bogotá|Málaga|Kraków|"
        "Reykjavík|Istanbul|Dubai|Singapore|Cape Town|Lagos|Bremen|Leipzig|Salzburg"
    ),
)
CONDITIONS = ("sunny", "cloudy", "rainy", "windy", "foggy", "snowy", "clear", "stormy")
CURRENCIES = ("euros", "dollars", "pounds", "yen", "francs", "pesos")
UNITS = (
    ("km", "miles"), ("miles", "km"), ("kg", "pounds"), ("pounds", "kg"),
    ("meters", "feet"), ("feet", "meters"), ("celsius", "fahrenheit"), ("liters", "gallons"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Use:
    """A question, the arguments it leads to, what the tool may return, and the answer then."""

    question: str
    arguments: dict[str, Any]
    result: str
    answer: str


@dataclass(frozen=True, eq=False)
class Tool:
    """A declared function and how it is asked for; `purpose` completes "I use it for ..."."""

    name: str
    descriptions: tuple[str, ...]
    properties: dict[str, str]
    purpose: str
    draw_use: Callable[[random.Random], Use]


def _place(rng: random.Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.6 else invented_name(rng)


def _as_result(rng: random.Random, values: dict[str, Any], text: str) -> str:
    return json.dumps(values, ensure_ascii=False) if rng.random() < 0.65 else text


def _weather(rng: random.Random) -> Use:
    city, degrees, sky = _place(rng), rng.randrange(-9, 36), rng.choice(CONDITIONS)
    ask = (
        "What is the weather in {c}?|How is the weather in {c}?|Weather in {c}?|Is it raining in {c}?|Is it warm "
        "in {c}?|How warm is it in {c}?|What's the weather like in {c}?|Do I need an umbrella in {c}?|Tell me the "
        "weather in {c}|How cold is it in {c}?|What is the temperature in {c}?|Check the weather in {c}|What is "
        "the weather like in {c} today?|Is it sunny in {c}?"
    )
    result = _as_result(rng, {"temperature": degrees, "condition": sky}, f"{degrees} °C, {sky}")
    return Use(pick(rng, ask).replace("{c}", city), {"city": city}, result, f"It is {sky} in {city}, with {degrees} °C.")


def _time(rng: random.Random) -> Use:
    city, clock = _place(rng), f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    ask = (
        "What time is it in {c}?|How late is it in {c}?|Time in {c}?|Tell me the time in {c}|What is the time in "
        "{c}?|What's the time in {c}?|Which time is it in {c}?|What is the local time in {c}?|Do you know what "
        "time it is in {c}?|Current time in {c}?"
    )
    return Use(
        pick(rng, ask).replace("{c}", city), {"city": city}, _as_result(rng, {"time": clock}, clock), f"It is {clock} in {city}."
    )


def _calculate(rng: random.Random) -> Use:
    a, op, b = draw(rng)
    if rng.random() < 0.6:  # numbers nobody does in the head
        a, b = rng.randrange(100, 10000), rng.randrange(10, 1000)
    value = {"+": a + b, "-": a - b, "*": a * b}[op]
    ask = (
        "What is {e}?|Calculate {e}|How much is {e}?|Compute {e}|{e}|{e} = ?|What's {e}?|Can you calculate {e}?|"
        "Use the calculator for {e}|I need {e}"
    )
    expression = f"{a} {op} {b}"
    asked = pick(rng, ask).replace("{e}", expression)
    return Use(asked, {"expression": expression}, _as_result(rng, {"result": value}, str(value)), f"{expression} = {value}.")


def _convert(rng: random.Random) -> Use:
    (source, target), value, result = rng.choice(UNITS), rng.randrange(1, 200), round(rng.uniform(0.5, 400), 1)
    ask = (
        "Convert {v} {a} to {b}|How many {b} are {v} {a}?|What is {v} {a} in {b}?|{v} {a} in {b}|How much is {v} "
        "{a} in {b}?|Please convert {v} {a} into {b}"
    )
    asked = pick(rng, ask).replace("{v}", str(value)).replace("{a}", source).replace("{b}", target)
    arguments = {"value": value, "from_unit": source, "to_unit": target}
    return Use(
        asked, arguments, _as_result(rng, {"result": result}, f"{result} {target}"), f"{value} {source} are {result} {target}."
    )


def _exchange(rng: random.Random) -> Use:
    source, target = rng.sample(CURRENCIES, 2)
    amount, result = rng.randrange(1, 1000), round(rng.uniform(1, 2000), 2)
    ask = (
        "How many {b} do I get for {v} {a}?|Change {v} {a} into {b}|What are {v} {a} worth in {b}?|Exchange {v} "
        "{a} to {b}|{v} {a} in {b}?"
    )
    asked = pick(rng, ask).replace("{v}", str(amount)).replace("{a}", source).replace("{b}", target)
    arguments = {"amount": amount, "from_currency": source, "to_currency": target}
    return Use(
        asked, arguments, _as_result(rng, {"result": result}, f"{result} {target}"), f"{amount} {source} are {result} {target}."
    )


def _timer(rng: random.Random) -> Use:
    minutes = rng.randrange(1, 60)
    ask = (
        "Set a timer for {m} minutes|Start a timer of {m} minutes|Timer for {m} minutes|Remind me in {m} minutes|"
        "Wake me in {m} minutes|Set the timer to {m} minutes"
    )
    result = _as_result(rng, {"status": "started"}, "ok")
    return Use(
        pick(rng, ask).replace("{m}", str(minutes)), {"minutes": minutes}, result, f"The timer is set for {minutes} minutes."
    )


def _population(rng: random.Random) -> Use:
    city, people = _place(rng), rng.randrange(10, 9000) * 1000
    ask = (
        "How many people live in {c}?|What is the population of {c}?|Population of {c}?|How big is the population "
        "of {c}?|How many inhabitants does {c} have?"
    )
    return Use(
        pick(rng, ask).replace("{c}", city),
        {"city": city},
        _as_result(rng, {"population": people}, str(people)),
        f"{people} people live in {city}.",
    )


def _dice(rng: random.Random) -> Use:
    sides = rng.choice((6, 6, 8, 10, 12, 20))
    value = rng.randrange(1, sides + 1)
    ask = "Roll a die with {s} sides|Roll a dice with {s} sides|Throw a die with {s} sides|Roll a {s}-sided die"
    return Use(
        pick(rng, ask).replace("{s}", str(sides)),
        {"sides": sides},
        _as_result(rng, {"value": value}, str(value)),
        f"You rolled a {value}.",
    )


def _today(rng: random.Random) -> Use:
    day, month = (
        rng.randrange(1, 29),
        pick(rng, "January|February|March|April|May|June|July|August|September|October|November|December"),
    )
    ask = (
        "What day is it today?|What is the date?|Which date is it today?|What's today's date?|Tell me the date|"
        "What is today's date?|Today's date?"
    )
    return Use(pick(rng, ask), {}, _as_result(rng, {"date": f"{day} {month}"}, f"{day} {month}"), f"Today is {day} {month}.")


def _table(rng: random.Random) -> Use:
    name, guests, meat_free = invented_name(rng), rng.randrange(2, 13), rng.random() < 0.5
    day = pick(rng, "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
    ask = (
        "Book a table for {n} on {d} for {g} people{v}|Reserve a table on {d} for {n}, {g} guests{v}|"
        "A table for {g} on {d}{v}, for {n}"
    )
    asked = pick(rng, ask).replace("{v}", ", vegetarian" if meat_free else "").replace("{n}", name).replace("{d}", day)
    number = rng.randrange(1, 60)
    return Use(
        asked.replace("{g}", str(guests)),
        {"name": name, "guests": guests, "day": day, "vegetarian": meat_free},
        _as_result(rng, {"table": number}, f"table {number}"),
        f"Table {number} is booked for {name} on {day}.",
    )


def _light(rng: random.Random) -> Use:
    room, on = pick(rng, "kitchen|bathroom|bedroom|hall|garage|cellar|office|attic|garden|nursery"), rng.random() < 0.5
    word = "on" if on else "off"
    ask = "Turn {w} the light in the {r}|Switch {w} the {r} light|Light {w} in the {r}|Turn the light in the {r} {w}|{r} light {w}"
    asked = pick(rng, ask).replace("{w}", word).replace("{r}", room)
    result = _as_result(rng, {"status": "done"}, "done")
    return Use(asked[0].upper() + asked[1:], {"room": room, "on": on}, result, f"The light in the {room} is {word}.")


TOOLS = (
    Tool("get_weather", choices("Get the current weather in a city|Get the weather for a city|Returns the weather of a city"),
         {"city": "string"}, "the weather", _weather),
    Tool("get_time", choices("Get the current time in a city|Returns the local time of a city|Tells the time in a city"),
         {"city": "string"}, "the time", _time),
    Tool("calculator", choices("Evaluate an arithmetic expression|Calculate the value of an expression|A calculator"),
         {"expression": "string"}, "sums", _calculate),
    Tool("convert_units", choices("Convert a value from one unit to another|Convert units"),
         {"value": "number", "from_unit": "string", "to_unit": "string"}, "units", _convert),
    Tool("exchange", choices("Convert money between currencies|Exchange money"),
         {"amount": "number", "from_currency": "string", "to_currency": "string"}, "money", _exchange),
    Tool("set_timer", choices("Set a timer|Start a timer that rings after some minutes"), {"minutes": "integer"}, "timers", _timer),
    Tool("get_population", choices("Get the number of people in a city|Returns the population of a city"),
         {"city": "string"}, "populations", _population),
    Tool("roll_dice", choices("Roll a die|Roll a die with the given number of sides"), {"sides": "integer"}, "dice", _dice),
    Tool("get_date", choices("Get today's date|Returns the current date"), {}, "the date", _today),
    Tool("book_table", choices("Book a table in the restaurant|Reserve a table"),
         {"name": "string", "guests": "integer", "day": "string", "vegetarian": "boolean"}, "tables", _table),
    Tool("set_light", choices("Turn a light on or off|Switch the light in a room"),
         {"room": "string", "on": "boolean"}, "lights", _light),
)  # fmt: skip
MATTERS = choices(
    "price|height|age|colour|length|owner|address|speed|weight|size|rank|level|status|score|depth|value|name|number|schedule|menu|"
    "fare|tide|stock|rate|news|recipe|flight|meaning|author|title|distance|balance|rent|salary|traffic|humidity|pressure|rating"
)


def _invented_tools(rng: random.Random, n: int) -> list[Tool]:
    """n tools for matters of their own, half of them words that mean nothing."""
    made_up = {invented_name(rng).lower() for _ in range(n)}
    return [_tool_for(rng, matter) for matter in rng.sample([*sorted(made_up), *rng.sample(MATTERS, n)], n)]


def _tool_for(rng: random.Random, matter: str) -> Tool:
    """A tool whose question, purpose and declaration share one word."""
    verb, key = rng.choice(("get", "find", "show", "read", "fetch")), rng.choice(("name", "item", "place", "of", "id"))

    def use(rng: random.Random) -> Use:
        of, found = invented_name(rng), rng.choice((invented_name(rng), str(rng.randrange(1000))))
        ask = (
            "What is the {m} of {o}?|Tell me the {m} of {o}|Show me the {m} of {o}|The {m} of {o}?|I need the {m} of {o}|"
            "Which {m} does {o} have?|Can you find the {m} of {o}?|{m} of {o}?"
        )
        asked = pick(rng, ask).replace("{m}", matter).replace("{o}", of)
        return Use(asked, {key: of}, _as_result(rng, {matter: found}, found), f"The {matter} of {of} is {found}.")

    told = (f"{verb.capitalize()} the {matter} of something", f"Returns the {matter} of a thing")
    return Tool(f"{verb}_{matter}", told, {key: "string"}, f"the {matter}", use)


WEIGHTS = (5, 3, 4, 3, 1, 1, 1, 1, 1, 1, 1)


def declaration(rng: random.Random, tool: Tool) -> dict[str, Any]:
    """The tool as a program declares it, with or without descriptions of its parameters."""
    describe = rng.random() < 0.3
    properties = {
        k: {"type": t} | ({"description": f"The {k.replace('_', ' ')}"} if describe else {}) for k, t in tool.properties.items()
    }
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.8:
        parameters["required"] = list(properties)
    return {
        "type": "function",
        "function": {"name": tool.name, "description": rng.choice(tool.descriptions), "parameters": parameters},
    }


def _call(tool: Tool, use: Use) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool.name, "arguments": use.arguments}}


def document(rng: random.Random) -> list[Document]:
    """One conversation about a set of declared tools: documents that each continue the one before.

    Several questions share one declaration, because the declaration is long and nothing in it is the assistant's to say.
    """
    thinking, keep = rng.random() < 0.6, rng.random() < 0.6
    chosen = list(dict.fromkeys(rng.choices(TOOLS, WEIGHTS, k=rng.choice((1, 1, 2, 2, 3)))))
    declared: list[dict[str, Any]] | None = [declaration(rng, tool) for tool in chosen]
    system = [{"role": "system", "content": rng.choice(dialogues.SYSTEM_PROMPTS)}] if rng.random() < 0.15 else []
    if rng.random() < 0.06:  # nothing declared: what needs a tool cannot be told
        declared = None
        parts = [_missing(rng, [], thinking)]
    else:
        parts = []
        for _ in range(rng.choice((1, 2, 3, 4, 5, 6))):
            kind = rng.random()
            if kind < 0.18:
                parts += _needless(rng, thinking)
            elif kind < 0.38:
                parts.append(_missing(rng, chosen, thinking))
            else:
                parts += _call_and_answer(rng, rng.choice(chosen), chosen, thinking)
    for part in parts:
        part.tools = declared
    parts[0].messages[:0] = system
    return dialogues.continued(parts, thinking, keep)


def practice(rng: random.Random) -> list[Document]:
    """Half as many questions whose tool is missing as questions whose tool is there: only the declaration tells which is which.

    Two conversations of five are about tools that are found nowhere else, so that the declaration is read and not remembered.
    """
    thinking = rng.random() < 0.4
    known = TOOLS if rng.random() < 0.6 else _invented_tools(rng, 8)
    chosen = rng.sample(known, rng.choice((1, 1, 2, 2, 3, 4)))
    declared = [declaration(rng, tool) for tool in chosen]
    parts: list[Document] = []
    for _ in range(rng.randrange(3, 8)):
        kind = rng.random()
        if kind < 0.1:
            parts += _needless(rng, thinking)
        elif kind < 0.4:
            parts.append(_missing(rng, chosen, thinking, known))
        else:
            parts += _call_and_answer(rng, rng.choice(chosen), chosen, thinking)
    for part in parts:
        part.tools = declared
    return dialogues.continued(parts, thinking, rng.random() < 0.6)


def _needless(rng: random.Random, thinking: bool) -> list[Document]:
    """A question that needs no tool."""
    parts = [part for part in dialogues.turns(rng, thinking) if not part.skill.startswith("arithmetic")][:1]
    for part in parts:
        part.skill = "knows when not to call"
    return parts or dialogues.limits(rng, thinking)


def _looked_up(tool: Tool, chosen: Sequence[Tool], then: str) -> str:
    """The thought that says what each declared tool is for before it decides: then the decision compares two words."""
    tools = ", ".join(f"{known.name} is for {known.purpose}" for known in chosen) if chosen else "none"
    return f"The user asks for {tool.purpose}. Tools: {tools}. {then}"


def _missing(rng: random.Random, chosen: Sequence[Tool], thinking: bool, known: Sequence[Tool] = TOOLS) -> Document:
    """A question whose tool is not there."""
    tool = rng.choice([tool for tool in known if tool not in chosen and tool.name != "calculator"])
    asked = as_people_type(rng, tool.draw_use(rng).question)
    thought = _looked_up(tool, chosen, "None is for that.") if thinking else ""
    return Document(
        "knows when not to call", asked, [user(asked), assistant(f"I have no tool for {tool.purpose}, so I cannot tell.", thought)]
    )


def _call_and_answer(rng: random.Random, tool: Tool, chosen: Sequence[Tool], thinking: bool) -> list[Document]:
    """The call a question leads to, then the answer made from what came back."""
    uses = [tool.draw_use(rng)]
    asked = as_people_type(rng, uses[0].question)
    if tool.name in ("get_weather", "get_time") and rng.random() < 0.12:  # two calls at once
        uses.append(tool.draw_use(rng))
        what = "What is the weather" if tool.name == "get_weather" else "What time is it"
        first, second = (use.arguments["city"] for use in uses)
        asked = f"{what} in {first} and {rng.choice(('', 'in '))}{second}?"
    thought = _looked_up(tool, chosen, f"I call {tool.name}.") if thinking else ""
    calls = Document("tool call", asked, [user(asked), assistant("", thought, [_call(tool, use) for use in uses])])
    thought = "The tool gave " + " and ".join(use.result for use in uses) + "." if thinking else ""
    results = [{"role": "tool", "content": use.result} for use in uses]
    answers = Document("answer from a tool", asked, [*results, assistant(" ".join(use.answer for use in uses), thought)])
    return [calls, answers]
