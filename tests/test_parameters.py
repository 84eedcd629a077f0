"""What functions take, wherever their schemas say it, and schemas whose references lead anywhere."""

import json
from typing import Any

import pytest

import glmrun
from glmrun.chat.parameters import flat, shapes
from glmrun.chat.tool_call import call_of, schemas, types_of

PLACE = {"type": "object", "properties": {"zip": {"type": "string"}, "n": {"type": "integer"}}, "required": ["zip"]}


@pytest.mark.parametrize(
    "parameters",
    [
        {"$defs": {"Place": PLACE}, "$ref": "#/$defs/Place"},
        {"allOf": [{"properties": {"zip": {"type": "string"}}}, {"properties": {"n": {"type": "integer"}}}]},
        {"anyOf": [{"properties": {"zip": {"type": "string"}}}, PLACE, {"type": "null"}]},
    ],
    ids=["reference", "parts", "alternatives"],
)
def test_values_are_typed_wherever_the_schema_says_how(parameters: dict[str, Any]) -> None:
    declared = schemas([{"type": "function", "function": {"name": "f", "parameters": parameters}}])
    call = call_of("f", [("zip", "01067"), ("n", "3")], declared)
    assert json.loads(call["function"]["arguments"]) == {"zip": "01067", "n": 3}


def test_what_every_shape_demands_is_required() -> None:
    either = {"properties": {"a": {}}, "oneOf": [{"required": ["a"]}, {"required": ["a", "b"]}, {"required": ["a", "c"]}]}
    assert shapes(either) == [({"a": {}}, {"a"}), ({"a": {}}, {"a", "b"}), ({"a": {}}, {"a", "c"})]
    assert flat(either)["required"] == ["a"]
    kinds = [{"properties": {"kind": {"const": kind}}} for kind in "ab"]
    assert flat({"anyOf": kinds})["properties"] == {"kind": {"anyOf": [{"const": "a"}, {"const": "b"}]}}
    assert flat(PLACE) is PLACE


def around(word: str, n: int) -> dict[str, Any]:
    """Definitions that all refer to all, n times over."""
    every = [{"$ref": f"#/$defs/d{i}"} for i in range(n)]
    return {
        "$defs": {f"d{i}": {word: every} for i in range(n)},
        "properties": {"city": every[0]},
        "required": ["city"],
        word: every,
    }


@pytest.mark.parametrize("word", ["anyOf", "oneOf", "allOf"])
def test_references_that_go_round_in_circles_come_to_an_end(word: str) -> None:
    """Each was followed at every place where it stood, to a depth of eight: an hour for one request."""
    schema = around(word, 300)
    assert types_of(schema["properties"]["city"], schema) == set()
    assert set(flat(schema)["properties"]) == {"city"}
    tools = [{"type": "function", "function": {"name": "f", "parameters": around(word, 10)}}]
    options = {"tools": tools, "tool_choice": "f", "thinking": False, "parallel_tool_calls": False, "temperature": 0.0}
    with glmrun.load(n_ctx=8192) as nano:
        chunks = list(nano.chat([{"role": "user", "content": "Hello"}], **options, max_tokens=60))
    assert chunks[-1].finish_reason in ("tool_calls", "length")
