"""Tools for tests: run by glmrun --tools, never imported."""

import os
import sys
import time
from typing import Literal

calls = 0


def get_weather(city: str) -> dict[str, object]:
    """Get the current weather in a city

    Knows every city.

    Args:
        city: The city,
            in any language
    """
    return {"temperature": 21, "condition": "sunny", "city": city}


def add(a: int, b: float = 0.5, *, unit: Literal["m", "km"] = "m", parts: list[int] | None = None) -> str:
    """Add two numbers

    :param a: the first
    :param unit: of the result
    """
    return f"{a + b + sum(parts or [])} {unit}"


def count() -> int:
    """How often this was called"""
    global calls
    calls += 1
    return calls


def chatter() -> None:
    """Print something"""
    print("printed\x1b[31m")
    os.system("echo from a child")
    print("an error", file=sys.stderr)
    sys.stdin.read()


def fail(how: str) -> str:
    """Fail in a given way"""
    if how == "exit":
        sys.exit(3)
    if how == "die":
        os._exit(7)
    if how == "hang":
        while True:
            pass
    if how == "child":
        os.system("sleep 1000")
    if how == "long":
        return "x" * 100_000
    if how == "surrogate":
        return "\ud800"
    raise ValueError("no such\nway")


async def later(seconds: float) -> str:
    """Wait, then answer"""
    time.sleep(seconds)
    return "now"


def undocumented(x: int) -> int:
    return x


def untyped(x) -> int:  # type: ignore[no-untyped-def]
    """Has no type"""
    return int(x)


def several(*values: int) -> int:
    """Takes any number"""
    return len(values)


def _private(x: int) -> int:
    """Not for the model"""
    return x
