"""The grammar of an answer that has to call functions: what `tool_choice` required, or a function's name, means."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from glmrun.chat.tokenizer import Tokenizer
from glmrun.chat.tool_call import referred, types_of
from quant.errors import UserError

MAX_CALLS = 16  # in one answer
SPACE = r"( |\n {0,40})?"  # between the parts of JSON: as much as indentation needs, for small models go on with it for ever
_TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_TYPED = {"integer", "number", "boolean", "null", "object", "array"}
_DEFINITIONS = ("$defs", "definitions")
_GUIDANCE = {"lenient": True, "whitespace_pattern": SPACE}  # lenient: without what no grammar holds, uniqueItems and the like
_REFERENCE = re.compile(r'"\$ref": "(#/(?:\$defs|definitions)/)?')


def call_grammar(
    tokenizer: Tokenizer, tools: Sequence[Mapping[str, Any]], name: str | None, most: int, is_usable: Callable[[str], bool]
) -> str:
    """Lark text, as llguidance reads it, of one to `most` calls of the declared functions, or of the one with this name.

    Arguments come in the order of their declaration; those that are required cannot be left out. A value that is no text is JSON
    of its schema as far as a grammar holds it. is_usable() says whether one can be made of a schema, as JSON.
    Raises UserError (usage) if nothing can be called.
    """
    functions = [tool.get("function", tool) for tool in tools]
    chosen = [function for function in functions if name is None or function.get("name") == name]
    if not chosen:
        what = f"the function {name!r}" if name is not None else "a tool call"
        raise UserError(f"tool_choice asks for {what}, which is not among the declared tools", "usage", "tool_choice")
    rules = [f"start: call{{1,{max(1, most)}}}", "call: " + " | ".join(f"f{i}" for i in range(len(chosen)))]
    for i, function in enumerate(chosen):
        parameters = function.get("parameters")
        arguments, more = _arguments(tokenizer, f"f{i}", parameters if isinstance(parameters, Mapping) else {}, is_usable)
        opening, closing = _tag(tokenizer, "<tool_call>"), _tag(tokenizer, "</tool_call>")
        rules += [f"f{i}: {opening} {json.dumps(function['name'])} {arguments} {closing}", *more]
    return "\n".join([*rules, r"TEXT: /(?s:.+)/"])


def _tag(tokenizer: Tokenizer, text: str) -> str:
    """A tag: the token of the vocabulary, or its letters where it has none."""
    assert text in _TAGS
    token = tokenizer.id_of(text)
    return json.dumps(text) if token is None else f"<[{token}]>"


def _arguments(
    tokenizer: Tokenizer, rule: str, schema: Mapping[str, Any], is_usable: Callable[[str], bool]
) -> tuple[str, list[str]]:
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
            f" {tags['<arg_value>']} {_value(value, schema, is_usable)} {tags['</arg_value>']}"
        )
    return " ".join(parts), rules


def _value(schema: Any, root: Mapping[str, Any], is_usable: Callable[[str], bool]) -> str:
    """A value: a text as it is, one of several texts, or JSON."""
    if not isinstance(schema, Mapping):
        return "TEXT?"
    named = referred(schema["$ref"], root) if isinstance(schema.get("$ref"), str) else schema
    choices = named.get("enum", [named.get("const")]) if isinstance(named, Mapping) else None
    if isinstance(choices, list) and choices and all(isinstance(choice, str) and choice for choice in choices):
        return "(" + " | ".join(json.dumps(choice) for choice in choices) + ")"
    types = types_of(schema, root)
    if not types or not types <= _TYPED:
        return "TEXT?"
    held = _with_definitions(schema, root)
    if held is None or not is_usable(held):
        held = json.dumps({"type": sorted(types), "x-guidance": _GUIDANCE})
    return f"%json {held}"


def _with_definitions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str | None:
    """A part of root as a schema of its own, as JSON; None if it refers to other parts than definitions."""
    named = {key: root[key] for key in _DEFINITIONS if key in root} if _REFERENCE.search(json.dumps(schema)) else {}
    text = json.dumps({**named, **schema, "x-guidance": _GUIDANCE})
    return text if all(_REFERENCE.findall(text)) else None  # any other reference would mean another part of this text
