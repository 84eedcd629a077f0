"""Answers that follow a JSON schema: which tokens are allowed, with random logits and with nano."""

import json
from typing import Any

import numpy as np
import pytest
from test_tokenizer import tokenizer

import glmrun
from glmrun.engine.constraint import Constraint, Grammar
from glmrun.engine.model import Model
from glmrun.engine.sampling import Sampler
from quant.errors import UserError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


def constraint(schema: dict[str, Any], begins: bool = True) -> Constraint:
    return Grammar(tokenizer()).constraint(schema, lambda: begins)


def fits(text: str, schema: dict[str, Any]) -> bool:
    """Whether a text, token by token, is allowed and may end there."""
    limits = constraint(schema)
    for token in tokenizer().encode(text):
        if not limits.allowed()[token]:
            return False
        limits.accept(token)
    return bool(limits.allowed()[min(tokenizer().eog_ids)])


def test_what_is_json_of_the_schema_is_allowed_and_nothing_else() -> None:
    whole = '{"name": "Åsa 🙂", "age": 36, "kind": "cat"}'
    assert fits(whole, PERSON) and not fits(whole[:-1], PERSON) and not fits(whole + "}", PERSON)
    assert not fits(whole.replace("36", "200"), PERSON) and not fits(whole.replace("cat", "cow"), PERSON)
    assert not fits('{"name": "Ada"}', PERSON) and not fits("Sure! " + whole, PERSON)
    assert fits('{"anything": [1, {"a": null}]}', {"type": "object"}) and not fits("[1]", {"type": "object"})


def test_the_end_is_allowed_exactly_when_the_json_is_whole() -> None:
    limits = constraint({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False})
    ends = sorted(tokenizer().eog_ids)
    for token in tokenizer().encode('{"a": 1}'):
        assert not limits.allowed()[ends].any()
        limits.accept(token)
    mask = limits.allowed()
    assert mask[ends].all() and mask.sum() == len(ends)  # nothing but the end is left


def test_thinking_is_free_but_does_not_end_the_answer() -> None:
    limits = constraint(PERSON, begins=False)
    mask = limits.allowed()
    assert mask.sum() == tokenizer().n_vocab - len(tokenizer().eog_ids) and not mask[sorted(tokenizer().eog_ids)].any()
    limits.accept(int(np.flatnonzero(mask)[-1]))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_random_logits_make_json(temperature: float) -> None:
    random = np.random.default_rng(1)
    for seed in range(3):
        sampler = Sampler(temperature=temperature, top_p=1.0, min_p=0.0, seed=seed, constraint=constraint(PERSON))
        ids: list[int] = []
        for _ in range(200):
            token = sampler.sample(random.standard_normal(tokenizer().n_vocab, np.float32))
            if token in tokenizer().eog_ids:
                break
            ids.append(token)
        person = json.loads(tokenizer().decode(ids))
        assert 0 <= person["age"] <= 150 and person["kind"] in ("cat", "dog") and len(person["name"]) <= 12


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "("}, {"allOf": 7}], ids=str
)
def test_a_schema_that_cannot_be_followed_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="JSON schema") as error:
        constraint(schema)
    assert error.value.kind == "usage" and "\n" not in str(error.value)


def test_a_format_that_no_grammar_holds_is_a_remark() -> None:
    """As pydantic writes it for a path, a password or bytes; what else the schema says holds, and so do the other formats."""
    path = {"type": "string", "format": "path", "maxLength": 2}
    assert fits('"ab"', path) and not fits('"abc"', path) and not fits("1", path)
    assert fits('["ab"]', {"type": "array", "items": path}) and fits('{"format": "x"}', {"enum": [{"format": "x"}]})
    named = {"type": "object", "properties": {"format": {"const": "x"}}, "required": ["format"], "additionalProperties": False}
    assert fits('{"format": "x"}', named) and not fits('{"format": "y"}', named)
    assert fits('"2026-11-30"', {"type": "string", "format": "date"}) and not fits('"soon"', {"type": "string", "format": "date"})


def test_one_of_several_models_is_one_of_them() -> None:
    """As pydantic writes a union, whose models stand elsewhere: no grammar was made of it."""
    kinds = {"sq": {"side": {"type": "integer"}}, "ci": {"r": {"type": "number"}}}
    models = {
        kind: {"type": "object", "properties": {"kind": {"const": kind}, **own}, "required": ["kind", *own]}
        for kind, own in kinds.items()
    }
    shape = {"$defs": models, "discriminator": {"propertyName": "kind"}, "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in models]}
    assert fits('{"kind": "sq", "side": 2}', shape) and fits('{"kind": "ci", "r": 0.5}', shape)
    assert not fits('{"kind": "ci", "side": 2}', shape) and not fits('{"kind": "tri"}', shape)


@pytest.fixture(scope="module")
def nano() -> Model:
    return glmrun.load(n_ctx=512)


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nano_answers_in_json(nano: Model, thinking: bool, temperature: float) -> None:
    messages = [{"role": "user", "content": "What is 17 + 25?"}]
    chunks = list(nano.chat(messages, json_schema=PERSON, thinking=thinking, temperature=temperature, seed=1, max_tokens=400))
    assert chunks[-1].finish_reason == "stop"
    person = json.loads("".join(chunk.text for chunk in chunks))
    assert set(person) >= {"name", "age", "kind"} and person["kind"] in ("cat", "dog")
    assert bool("".join(chunk.reasoning for chunk in chunks)) == thinking


def test_tools_and_a_schema_exclude_each_other(nano: Model) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(UserError, match="exclude each other"):
        nano.chat([{"role": "user", "content": "a"}], tools=tools, json_schema=PERSON)
