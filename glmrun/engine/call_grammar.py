"""The grammar of an answer that has to call functions: what `tool_choice` required, or a function's name, means."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from glmrun.chat.tokenizer import Tokenizer
from quant.errors import UserError

MAX_CALLS = 16  # in one answer
_TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_TYPED = {"integer", "number", "boolean", "null", "object", "array"}


def call_grammar(tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], name: str | None, most: int = MAX_CALLS) -> str:
    """Lark text, as llguidance reads it, of one to `most` calls of the declared functions, or of the one with this name.

    Arguments come in the order of their declaration; those that are required cannot be left out. A value that is no text is JSON
    of its schema as far as a grammar holds it, unless that refers to another part of the declaration. Raises UserError (usage) if
    nothing can be called.
    """
    functions = [tool.get("function", tool) for tool in tools]
    chosen = [function for function in functions if name is None or function.get("name") == name]
    if not chosen:
        what = f"the function {name!r}" if name is not None else "a tool call"
        raise UserError(f"tool_choice asks for {what}, which is not among the declared tools", "usage", "tool_choice")
    rules = [f"start: call{{1,{max(1, most)}}}", "call: " + " | ".join(f"f{i}" for i in range(len(chosen)))]
    for i, function in enumerate(chosen):
        parameters = function.get("parameters")
        arguments, more = _arguments(tokenizer, f"f{i}", parameters if isinstance(parameters, Mapping) else {})
        opening, closing = _tag(tokenizer, "<tool_call>"), _tag(tokenizer, "</tool_call>")
        rules += [f"f{i}: {opening} {json.dumps(function['name'])} {arguments} {closing}", *more]
    return "\n".join([*rules, r"TEXT: /(?s:.+)/"])


def _tag(tokenizer: Tokenizer, text: str) -> str:
    """A tag: the token of the vocabulary, or its letters where it has none."""
    assert text in _TAGS
    token = tokenizer.id_of(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _arguments(tokenizer: Tokenizer, rule: str, schema: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What stands between a function's name and the end of its call, and the rules that this needs."""
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, Mapping):
        return "", []
    needed = {key for key in required if isinstance(key, str)} if isinstance(required, list) else set()
    parts, rules = [], []
    for i, (key, value) in enumerate(properties.items()):
        parts.append(f"{rule}a{i}" + ("" if key in needed else "?"))
        tags = {tag: _tag(tokenizer, tag) for tag in _TAGS}
        rules.append(
            f"{rule}a{i}: {tags['<arg_key>']} {json.dumps(key)} {tags['</arg_key>']}"
            f" {tags['<arg_value>']} {_value(value)} {tags['</arg_value>']}"
        )
    return " ".join(parts), rules


def _value(schema: Any) -> str:
    """A value: a text as it is, one of several texts, or JSON."""
    if isinstance(schema, Mapping):
        choices = schema.get("enum")
        if isinstance(choices, list) and choices and all(isinstance(choice, str) and choice for choice in choices):
            return "(" + " | ".join(json.dumps(choice) for choice in choices) + ")"
        given = schema.get("type")
        kinds = given if isinstance(given, list) and given else [given]
        if all(isinstance(kind, str) and kind in _TYPED for kind in kinds) and '"$ref"' not in json.dumps(schema):
            return f"%json {_held(schema)}"
    return "TEXT?"


def _held(schema: Mapping[str, Any]) -> str:
    """A schema, less what no grammar holds (uniqueItems, propertyNames, ...); its type alone where that does not do."""
    from llguidance import LLMatcher

    text = json.dumps({**schema, "x-guidance": {"lenient": True}})
    is_wrong = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(text))
    return json.dumps({"type": schema["type"]}) if is_wrong else text
