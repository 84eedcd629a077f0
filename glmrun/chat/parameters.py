"""What a function takes, wherever the schema of its parameters says it: under `properties`, behind `$ref`, in alternatives.

A schema comes with a request, and its references may lead anywhere: each is followed once, and only so many alternatives count.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

DEEPEST = 32  # references and alternatives inside each other
_MOST_SHAPES = 8
_MOST_PARTS = 64  # of an allOf
_COMPOSED = ("$ref", "allOf", "anyOf", "oneOf")

Shape = tuple[dict[str, Any], set[str]]  # properties and which of them are required
Found = TypeVar("Found")


def followed(pointer: str, root: Mapping, known: dict[str, Found], read: Callable[[Any], Found], nothing: Found) -> Found:
    """What read() finds behind a reference inside root; `nothing` inside itself. known: what was found behind each so far."""
    if pointer not in known:
        known[pointer] = nothing
        known[pointer] = read(referred(pointer, root))
    return known[pointer]


def referred(pointer: str, root: Mapping) -> Any:
    """What a reference inside root means; None for the whole of it and for what is not there."""
    at: Any = root
    for part in pointer.removeprefix("#/").split("/") if pointer.startswith("#/") else ():
        at = at.get(part) if isinstance(at, dict) else None
    return at if at is not root else None


def shapes(schema: Mapping) -> list[Shape]:
    """The ways in which a function's arguments can be made, the first few of many."""
    return _shapes(schema, schema, {}, DEEPEST)


def flat(schema: dict[str, Any]) -> dict[str, Any]:
    """A function's schema with all that it takes under `properties`, and what it takes in every shape under `required`."""
    if not any(word in schema for word in _COMPOSED):
        return schema
    found = shapes(schema)
    said: dict[str, list[Any]] = {}
    for properties, _ in found:
        for key, value in properties.items():
            if value not in said.setdefault(key, []):
                said[key].append(value)
    properties = {key: values[0] if len(values) == 1 else {"anyOf": values} for key, values in said.items()}
    return {**schema, "properties": properties, "required": sorted(set.intersection(*(needed for _, needed in found)))}


def _shapes(schema: Any, root: Mapping, known: dict[str, list[Shape]], depth: int) -> list[Shape]:
    if not isinstance(schema, Mapping) or not depth:
        return [({}, set())]

    def read(part: Any) -> list[Shape]:
        return _shapes(part, root, known, depth - 1)

    properties, required = schema.get("properties"), schema.get("required")
    own = dict(properties) if isinstance(properties, Mapping) else {}
    found = [(own, {key for key in required if isinstance(key, str)} if isinstance(required, list) else set())]
    if isinstance(schema.get("$ref"), str):
        found = _both(found, followed(schema["$ref"], root, known, read, [({}, set())]))
    for part in _list(schema.get("allOf"))[:_MOST_PARTS]:
        found = _both(found, read(part))
    for word in ("anyOf", "oneOf"):
        if options := _list(schema.get(word))[:_MOST_SHAPES]:
            found = _both(found, [shape for option in options for shape in read(option)])
    return found


def _both(some: list[Shape], more: list[Shape]) -> list[Shape]:
    """The shapes that are one of some and one of more at once."""
    return [({**mine, **other, **mine}, needed | needs) for mine, needed in some for other, needs in more][:_MOST_SHAPES]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
