"""Tool calls from random declarations and values that contain every tag, written correctly and damaged, read at random cuts.

    python scripts/generated_tool_calls.py [number] [seed]

Correct calls must come back exactly. Damaged ones (one tag dropped, moved or doubled) must not crash, must not lose text silently
must not call what is not declared and must not show tags; the share that is understood as it was meant is printed.
Values never hold the end of a value as the format writes it (</arg_value> followed by <arg_key> or </tool_call>) outside a quoted
call: no reader can tell that from the end.
"""

import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass

from glmrun.chat.stream import TAGS, ChatStream

_WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel"]
_KEYS = ["path", "text", "city", "days", "command", "query", "limit", "content"]
_NAMES = ["write", "read", "get_weather", "run_shell", "open_page", "search"]
_TAG = re.compile("|".join(TAGS))
_DAMAGES = ("dropped", "moved", "doubled")


@dataclass(frozen=True)
class Case:
    """What a model writes, what it meant, and the tools that were declared."""

    written: str
    meant: list[tuple[str, dict]]
    tools: list[dict]
    damage: str | None


def make_case(chance: random.Random, damage: str | None) -> Case:
    """One or two calls of random declared functions; a damage hits one of the tags that the calls themselves are made of."""
    tools = [_tool(name, chance) for name in chance.sample(_NAMES, chance.randint(1, 4))]
    pieces: list[str] = []
    meant = []
    for _ in range(chance.choice((1, 1, 1, 2))):
        function = chance.choice(tools)["function"]
        arguments = {key: _value(chance) for key in function["parameters"]["properties"]}
        meant.append((function["name"], arguments))
        pieces += ["<tool_call>", function["name"]]
        for key, value in arguments.items():
            pieces += ["<arg_key>", key, "</arg_key>", "<arg_value>", value, "</arg_value>"]
        pieces.append("</tool_call>")
    if damage:
        _damage(pieces, damage, chance)
    return Case("".join(pieces), meant, tools, damage)


def _tool(name: str, chance: random.Random) -> dict:
    keys = chance.sample(_KEYS, chance.randint(0, 3))
    parameters = {"type": "object", "properties": {key: {"type": "string"} for key in keys}, "required": keys}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _value(chance: random.Random) -> str:
    """Words, tags as data, and sometimes a whole call; tags stand between words."""
    pieces = [chance.choice(_WORDS)]
    for _ in range(chance.choice((0, 1, 2, 4))):
        pieces.append(chance.choice(TAGS) if chance.random() < 0.8 else _quotation(chance))
        pieces.append(chance.choice(_WORDS))
    return chance.choice(("", " ", "\n")).join(pieces)


def _quotation(chance: random.Random) -> str:
    pairs = "".join(f"<arg_key>{chance.choice(_WORDS)}</arg_key><arg_value>quoted</arg_value>" for _ in range(chance.randint(0, 2)))
    return f"<tool_call>{chance.choice(_NAMES)}{pairs}</tool_call>"


def _damage(pieces: list[str], damage: str, chance: random.Random) -> None:
    at = chance.choice([i for i, piece in enumerate(pieces) if piece in TAGS])
    if damage == "doubled":
        pieces.insert(at, pieces[at])
        return
    tag = pieces.pop(at)
    if damage == "moved":
        pieces.insert(chance.choice([i for i in range(max(at - 3, 0), min(at + 4, len(pieces) + 1)) if i != at]), tag)


def read(case: Case, chance: random.Random, cut_off: bool = False) -> tuple[list[tuple[str, dict]], str, str]:
    """(calls, text shown, where the stream ended) of a case fed in random pieces."""
    stream = ChatStream(None, False, case.tools)
    cuts = sorted(chance.sample(range(1, len(case.written)), min(chance.randint(0, 30), len(case.written) - 1)))
    deltas = [stream.feed(case.written[a:b]) for a, b in zip([0, *cuts], [*cuts, len(case.written)], strict=True)]
    deltas.append(stream.finish(cut_off))
    functions = [call["function"] for delta in deltas for call in delta.tool_calls or ()]
    calls = [(function["name"], json.loads(function["arguments"])) for function in functions]
    return calls, "".join(delta.text + delta.reasoning for delta in deltas), stream.state


def fault(case: Case, calls: list[tuple[str, dict]], text: str, state: str) -> str | None:
    """What is wrong with a reading; None if nothing is.

    Text is lost silently if a word of the case stands neither in a call nor in the text, and the stream did not end inside a call.
    """
    if case.damage is None:
        return None if calls == case.meant and not text else "not exact"
    if undeclared := {name for name, _ in calls} - {tool["function"]["name"] for tool in case.tools}:
        return f"calls {sorted(undeclared)[0]!r}, which is not declared"
    seen = text + "".join(name + "".join(key + value for key, value in arguments.items()) for name, arguments in calls)
    if shown := _TAG.search(text):
        return f"shows {shown[0]}"
    lost = Counter(_words(case.written)) - Counter(_words(seen))
    return f"lost {sorted(lost)}" if lost and state != "call" else None


def _words(text: str) -> list[str]:
    return re.findall("|".join(_WORDS), _TAG.sub(" ", text))


def main(number: int, seed: int) -> int:
    """Read that many cases, print the shares and the first faults; 1 if there was a fault."""
    chance = random.Random(seed)
    count: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    for i in range(number):
        case = make_case(chance, None if i % 2 else chance.choice(_DAMAGES))
        calls, text, state = read(case, chance)
        kind = case.damage or "correct"
        count[kind, "all"] += 1
        count[kind, "understood"] += calls == case.meant
        count[kind, "cut off"] += state == "call"
        if wrong := fault(case, calls, text, state):
            faults[kind] += 1
            if faults[kind] <= 3:
                print(f"{kind}: {wrong}\n  written {case.written!r}\n  read    {calls!r} {text!r}")
    for kind in ("correct", *_DAMAGES):
        every = max(count[kind, "all"], 1)
        share, cut = count[kind, "understood"] / every, count[kind, "cut off"] / every
        print(f"{kind:8} {every:6} calls, understood {share:.1%}, called cut off {cut:.1%}, faults {faults[kind]}")
    return int(bool(faults))


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    raise SystemExit(main(*(numbers + [20_000, 1][len(numbers) :])))
