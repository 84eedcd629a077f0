"""tool_choice, parallel calls, probabilities and penalties, with nano: what the server's interfaces hand on to the engine."""

import json
import math
from typing import Any

import numpy as np
import pytest

import glmrun
from glmrun.chat.chunk import Chunk
from glmrun.chat.request import TooLong
from glmrun.engine import constraint
from glmrun.engine.call_grammar import _with_definitions
from glmrun.engine.constraint import Grammar
from glmrun.engine.model import Model
from glmrun.engine.sampling import Sampler, logprobs
from quant.errors import UserError

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 40},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["celsius", "kelvin"]},
        "places": {"type": "array", "items": {"type": "number"}, "maxItems": 2},
    },
    "required": ["city", "days"],
}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "The weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object"}}},
]
HELLO = [{"role": "user", "content": "Hello, how are you?"}]


@pytest.fixture(scope="module")
def nano() -> Model:
    return glmrun.load(n_ctx=1024)


def calls_of(chunks: list[Chunk]) -> list[tuple[str, dict[str, Any]]]:
    calls = [call["function"] for chunk in chunks for call in chunk.tool_calls or ()]
    return [(call["name"], json.loads(call["arguments"])) for call in calls]


@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_named_function_is_called_with_arguments_of_its_schema(nano: Model, thinking: bool, seed: int) -> None:
    options = {"tools": TOOLS, "tool_choice": "get_weather", "parallel_tool_calls": False, "thinking": thinking, "think_budget": 30}
    chunks = list(nano.chat(HELLO, **options, seed=seed, temperature=0.8, max_tokens=400, logit_bias={}))
    assert chunks[-1].finish_reason == "tool_calls" and not "".join(chunk.text for chunk in chunks)
    [(name, arguments)] = calls_of(chunks)
    assert name == "get_weather" and len(arguments["city"]) <= 40 and 1 <= arguments["days"] <= 9
    assert arguments.get("unit", "kelvin") in ("celsius", "kelvin") and set(arguments) <= set(WEATHER["properties"])


@pytest.mark.parametrize(("least", "most"), [(3, 5), (0, 4), (-1, 2), (9, 2), (None, 3), (1, 1000), (True, 6)])
def test_a_text_is_as_long_as_its_schema_says(nano: Model, least: Any, most: int) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "minLength": least, "maxLength": most}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    options = {
        "tools": tools,
        "tool_choice": "f",
        "parallel_tool_calls": False,
        "thinking": False,
        "temperature": 3.0,
        "top_p": 1.0,
    }
    for seed in range(4):
        chunks = list(nano.chat(HELLO, **options, seed=seed, max_tokens=900))
        if most < 1000:
            [(_, arguments)] = calls_of(chunks)
            assert (least if least == 3 else 0) <= len(arguments["x"]) <= most


@pytest.mark.parametrize("most", [0, -1, 1.5, None, "3", True, 10**30])
def test_a_length_that_cannot_be_counted_is_none(nano: Model, most: Any) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string", "maxLength": most}}, "required": ["x"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    chunks = list(
        nano.chat(HELLO, tools=tools, tool_choice="f", parallel_tool_calls=False, thinking=False, temperature=0, max_tokens=99)
    )
    assert chunks[-1].finish_reason in ("tool_calls", "length")


def test_required_calls_one_of_the_functions(nano: Model) -> None:
    found = set()
    for seed in range(6):
        options = {"tools": TOOLS, "tool_choice": "required", "thinking": False, "seed": seed, "temperature": 2.0}
        chunks = list(nano.chat(HELLO, **options, parallel_tool_calls=False, max_tokens=300))
        found |= {name for name, _ in calls_of(chunks)}
    assert found and found <= {"get_weather", "now"}


UNHELD = {"type": "array", "items": {"type": "integer", "maximum": 9}, "minItems": 1, "maxItems": 2, "uniqueItems": True}
LOOKS_AHEAD = {"type": "array", "items": {"type": "string", "pattern": "^(?!x)[a-z]+$"}}


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({"type": ["string", "null"]}, (str, type(None))), ({"type": ["integer", "null"], "maximum": 99}, (int, type(None))),
        ({"type": []}, object), ({"type": [{}]}, object), (UNHELD, list), (LOOKS_AHEAD, list),
        ({"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": {"type": "boolean"}}, dict),
        ({"type": "object", "if": {}, "then": {}, "not": {"const": 1}, "unevaluatedProperties": False}, dict),
        ({"type": "object", "properties": {"when": {"type": "string", "format": "whenever"}}}, dict),
        ({"type": "array", "items": {"type": "object", "required": "é" * 50}}, list),
    ],
    ids=str,
)  # fmt: skip
def test_a_call_is_demanded_with_any_schema_that_clients_declare(nano: Model, schema: dict[str, Any], kinds: Any) -> None:
    """A schema of a tool is no promise of the server's: what no grammar holds of it is no reason to refuse the call."""
    parameters = {"type": "object", "properties": {"value": schema}, "required": ["value"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    options = {"tools": tools, "tool_choice": "required", "thinking": False, "parallel_tool_calls": False, "temperature": 0.0}
    chunks = list(nano.chat(HELLO, **options, max_tokens=200))
    for _, arguments in calls_of(chunks):
        assert isinstance(arguments["value"], kinds)
        if schema is UNHELD:
            assert all(value <= 9 for value in arguments["value"])
    assert calls_of(chunks) or chunks[-1].finish_reason == "length"


NESTED = {
    "$defs": {
        "Place": {
            "type": "object", "properties": {"zip": {"$ref": "#/$defs/Zip"}}, "required": ["zip"], "additionalProperties": False,
        },
        "Zip": {"type": "integer", "minimum": 10, "maximum": 99},
        "Kind": {"enum": ["a", "b"], "type": "string"},
    },
    "type": "object",
    "properties": {
        "place": {"$ref": "#/$defs/Place"}, "kind": {"$ref": "#/$defs/Kind"}, "fixed": {"const": "x", "type": "string"},
        "days": {"anyOf": [{"type": "integer", "maximum": 9}, {"type": "null"}], "default": None},
        "places": {"type": "array", "items": {"$ref": "#/$defs/Place"}, "minItems": 1, "maxItems": 1},
        "number": {"enum": [1, 2]}, "other": {"$ref": "#/properties/days"},
    },
    "required": ["place", "kind", "fixed", "days", "places", "number", "other"],
}  # fmt: skip


def test_a_schema_comes_with_the_definitions_that_it_needs() -> None:
    """Each argument came with all of them: 600 of both took 650 MB."""
    definitions = {"a": {"type": "array", "items": {"$ref": "#/$defs/b~1c/x"}}, "b/c": {"x": {"type": "null"}}, "d": {}}
    held = _with_definitions({"$ref": "#/$defs/a"}, {"$defs": definitions})
    assert held is not None and set(json.loads(held)["$defs"]) == {"a", "b/c"}
    assert _with_definitions({"$ref": "#/$defs/gone"}, {"$defs": definitions}) is None


@pytest.mark.parametrize("room", [1000, 10])
def test_schemas_beyond_what_there_is_room_for_are_held_to_their_types(nano: Model, room: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(constraint, "_MAX_SCHEMAS", room)
    parameters = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    calls = Grammar(nano.tokenizer).calls([{"name": "f", "parameters": parameters}], "f", True, lambda: True)
    tags = {tag: [nano.tokenizer.id_of(tag)] for tag in ("<tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")}
    for piece in ("<tool_call>", "f", "<arg_key>", "a", "</arg_key>", "<arg_value>", "7", "7"):
        [token] = tags.get(piece) or nano.tokenizer.encode(piece)
        is_allowed = calls.allowed()[token]
        if is_allowed:
            calls.accept(token)
    assert is_allowed == (room == 10)


def is_place(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"zip"} and 9 < value["zip"] < 100


@pytest.mark.parametrize("seed", range(3))
def test_arguments_that_refer_to_definitions_are_held_to_them(nano: Model, seed: int) -> None:
    """As pydantic writes nested models, enumerations and optional values."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": NESTED}}]
    options = {"tools": tools, "tool_choice": "f", "thinking": False, "parallel_tool_calls": False, "seed": seed}
    chunks = list(nano.chat(HELLO, **options, temperature=0.5, max_tokens=700))
    [(_, said)] = calls_of(chunks)
    assert is_place(said["place"]) and all(map(is_place, said["places"])) and said["kind"] in ("a", "b") and said["fixed"] == "x"
    assert said["days"] is None or said["days"] <= 9
    assert said["number"] in (1, 2) and isinstance(said["other"], int | None)


NODE = {"type": "object", "properties": {"v": {"type": "integer", "maximum": 9}}, "required": ["v"]}
SQUARE = {"properties": {"kind": {"const": "square"}, "side": {"type": "integer", "maximum": 9}}, "required": ["kind", "side"]}
CIRCLE = {"properties": {"kind": {"const": "circle"}, "radius": {"enum": ["1", "2"]}}, "required": ["kind", "radius"]}


def is_node(said: dict[str, Any]) -> bool:
    return said["v"] <= 9


def is_shape(said: dict[str, Any]) -> bool:
    if said["kind"] == "square":
        return said["side"] <= 9 and "radius" not in said
    return said["kind"] == "circle" and said["radius"] in ("1", "2") and "side" not in said


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"$defs": {"Node": NODE}, "$ref": "#/$defs/Node"}, is_node),
        ({"$defs": {"Node": NODE}, "allOf": [{"$ref": "#/$defs/Node"}, CIRCLE]}, lambda said: is_node(said) and is_shape(said)),
        ({"oneOf": [SQUARE, CIRCLE]}, is_shape),
        ({"type": "object", **NODE, "anyOf": [{"required": ["w"]}, CIRCLE]}, is_node),
    ],
    ids=["a model that refers to itself", "parts", "alternatives", "alternatives beside properties"],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(3))
def test_arguments_are_found_wherever_the_schema_says_them(nano: Model, parameters: dict, expected: Any, seed: int) -> None:
    """As pydantic writes models that refer to themselves, and others unions; of no properties only `{}` could be made."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    options = {"tools": tools, "tool_choice": "required", "thinking": False, "parallel_tool_calls": False, "seed": seed}
    [(_, said)] = calls_of(list(nano.chat(HELLO, **options, temperature=0.8, max_tokens=400)))
    assert expected(said)


@pytest.mark.parametrize(
    "unit",
    [
        {"anyOf": [{"enum": ["C", "F"], "type": "string"}, {"type": "null"}], "default": None},
        {"anyOf": [{"$ref": "#/$defs/Unit"}, {"type": "null"}]},
        {"$ref": "#/$defs/Unit", "nullable": True},
        {"enum": ["C", "F", None]},
        {"oneOf": [{"const": "C"}, {"const": "F"}]},
    ],
    ids=str,
)
def test_an_enumeration_that_may_be_null_is_held_to(nano: Model, unit: dict[str, Any]) -> None:
    parameters = {"$defs": {"Unit": {"enum": ["C", "F"]}}, "type": "object", "properties": {"unit": unit}, "required": ["unit"]}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    options = {"tools": tools, "tool_choice": "f", "thinking": False, "parallel_tool_calls": False, "temperature": 2.0}
    said = [calls_of(list(nano.chat(HELLO, **options, seed=seed, max_tokens=100)))[0][1]["unit"] for seed in range(4)]
    assert set(said) <= {"C", "F", None}


def test_none_calls_nothing_even_where_a_call_is_likely(nano: Model) -> None:
    ask = [{"role": "user", "content": "What is the weather in Rome?"}]
    options = {"tools": TOOLS, "thinking": False, "temperature": 0.0, "max_tokens": 60}
    opening = nano.tokenizer.id_of("<tool_call>")
    auto = list(nano.chat(ask, **options))
    assert calls_of(auto) and opening in [chunk.token for chunk in auto]  # else the next lines prove nothing
    chunks = list(nano.chat(ask, **options, tool_choice="none"))
    assert not calls_of(chunks) and opening not in [chunk.token for chunk in chunks]


def test_a_function_that_is_not_declared_is_refused(nano: Model) -> None:
    for tools in (TOOLS, None):
        with pytest.raises(UserError, match="not among the declared tools"):
            nano.chat(HELLO, tools=tools, tool_choice="nothing")


def test_one_call_ends_the_answer_where_parallel_calls_are_off(nano: Model) -> None:
    options = {"tools": TOOLS, "tool_choice": "now", "thinking": False, "temperature": 0.0, "max_tokens": 100}
    several = calls_of(list(nano.chat(HELLO, **options, logit_bias=dict.fromkeys(nano.tokenizer.eog_ids, -100.0))))
    assert len(several) > 1
    assert len(calls_of(list(nano.chat(HELLO, **options, parallel_tool_calls=False)))) == 1


def test_probabilities_are_those_of_the_logits(nano: Model) -> None:
    ids = nano.tokenizer.encode("The capital of")
    chunks = [c for c in nano.generate(ids, max_tokens=5, logprobs=3, temperature=0.0) if c.token is not None]
    written = [chunk.token for chunk in chunks]
    logits = nano.logits([*ids, *written])[len(ids) - 1 : -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
    for chunk, row in zip(chunks, expected, strict=True):
        [one] = chunk.logprobs or []
        assert one.token == chunk.token and one.text == nano.tokenizer.bytes_of(one.token)
        assert math.isclose(one.logprob, row[one.token], abs_tol=0.02)  # written one by one, read together
        assert np.allclose([value for _, _, value in one.top], np.sort(row)[::-1][:3], atol=0.1)  # 3 of a tile, 1 of a row
        assert np.allclose([value for _, _, value in one.top], [row[i] for i, _, _ in one.top], atol=0.1)
        assert one.top[0][2] == one.logprob  # greedy: of the same numbers, so equal


def test_probabilities_are_the_answers_and_not_the_thinkings(nano: Model) -> None:
    chunks = list(nano.chat(HELLO, logprobs=0, think_budget=5, temperature=0.0, max_tokens=40))
    with_them = [chunk for chunk in chunks if chunk.logprobs]
    assert with_them and not any(chunk.reasoning for chunk in with_them)
    text = b"".join(one.text for chunk in with_them for one in chunk.logprobs or ()).decode()
    assert "".join(chunk.text for chunk in chunks).strip() in text


@pytest.mark.parametrize("n_top", [-1, 21, True, "2"])
def test_counts_of_probabilities_are_limited(nano: Model, n_top: Any) -> None:
    with pytest.raises(UserError, match="logprobs is"):
        nano.generate("a", logprobs=n_top)


def test_logprobs_sum_to_one() -> None:
    logits = np.random.default_rng(3).standard_normal(50).astype(np.float32)
    own, top = logprobs(logits, 7, 50)
    assert math.isclose(sum(math.exp(value) for _, value in top), 1.0, abs_tol=1e-6) and dict(top)[7] == own
    assert logprobs(logits, 7, 0) == (own, [])


def test_penalties_count_what_was_drawn() -> None:
    logits = np.array([3.0, 2.0, 1.0, 0.0], np.float32)
    drawn = Sampler(temperature=0.0, presence_penalty=1.5)
    assert [drawn.sample(logits) for _ in range(4)] == [0, 1, 0, 0]  # 3; 1.5 < 2; 1.5 > 0.5; no more is taken off
    often = Sampler(temperature=0.0, frequency_penalty=1.5)
    assert [often.sample(logits) for _ in range(4)] == [0, 1, 0, 2]  # 3; 2; 1.5; then 0, 0.5 and 1
    biased = Sampler(temperature=0.0, logit_bias={0: -100.0, 3: 1.5})
    assert [biased.sample(logits) for _ in range(2)] == [1, 1] and logits.tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("bias", [{1: 101.0}, {1: math.nan}, {1: "a"}, [1], dict.fromkeys(range(1025), 0.0)], ids=str)
def test_biases_are_limited(bias: Any) -> None:
    with pytest.raises(UserError, match="logit_bias"):
        Sampler(logit_bias=bias)


def test_a_bias_outside_the_vocabulary_is_refused(nano: Model) -> None:
    with pytest.raises(UserError, match="logit_bias"):
        nano.generate("a", logit_bias={nano.tokenizer.n_vocab: 1.0})


def test_a_prompt_that_does_not_fit_says_by_how_much(nano: Model) -> None:
    with pytest.raises(TooLong) as error:
        nano.generate([1] * 1025)
    assert (error.value.n_tokens, error.value.n_ctx) == (1025, 1024)
