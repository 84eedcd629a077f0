"""The grammar of an answer that has to call functions: what `tool_choice` required, or a function's name, means."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any
from urllib.parse import unquote

from glmrun.chat.parameters import DEEPEST, followed, shapes
from glmrun.chat.tokenizer import Tokenizer
from glmrun.chat.tool_call import types_of
from quant.errors import UserError

MAX_CALLS = 16  # in one answer
SPACE = r"( |\n {0,40})?"  # between the parts of JSON: as much as indentation needs, for small models go on with it for ever
_TAGS = ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
_TYPED = {"integer", "number", "boolean", "null", "object", "array"}
_MOST_CHOICES = 10_000  # values of an enumeration
_LONGEST = 1000  # characters of a text that are counted
_GUIDANCE = {"lenient": True, "whitespace_pattern": SPACE}  # lenient: without what no grammar holds, uniqueItems and the like
_DEFINITION = re.compile(r"#/(\$defs|definitions)/([^/]+)")


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
    tags = {tag: _tag(tokenizer, tag) for tag in _TAGS}
    made, rules = list[str](), list[str]()
    for n, (properties, needed) in enumerate(shapes(schema)):
        parts = []
        for i, (key, value) in enumerate(properties.items()):
            name = f"{rule}s{n}a{i}"
            parts.append(name + ("" if key in needed else "?"))
            rules.append(
                f"{name}: {tags['<arg_key>']} {json.dumps(key)} {tags['</arg_key>']}"
                f" {tags['<arg_value>']} {_value(value, schema, is_usable)} {tags['</arg_value>']}"
            )
        made.append(" ".join(parts) or '""')
    return f"({' | '.join(made)})", rules


def _value(schema: Any, root: Mapping[str, Any], is_usable: Callable[[str], bool]) -> str:
    """A value: a text as it is, one of several texts, or JSON."""
    if not isinstance(schema, Mapping):
        return "TEXT?"
    choices = _choices(schema, root, {}, DEEPEST)
    if any(isinstance(choice, str) for choice in choices) and "" not in choices:
        return "(" + " | ".join(json.dumps(choice if isinstance(choice, str) else json.dumps(choice)) for choice in choices) + ")"
    types = types_of(schema, root)
    if not types or not types <= _TYPED:
        return _text(schema)
    held = _with_definitions(schema, root)
    if held is None or not is_usable(held):
        held = json.dumps({"type": sorted(types), "x-guidance": _GUIDANCE})
    return f"%json {held}"


def _text(schema: Mapping[str, Any]) -> str:
    """A text of as many characters as a plain string's schema allows, up to _LONGEST; patterns, and lengths of a string that may be
    null or is described elsewhere ($ref, anyOf), are not held. A text without letters is left out: no word of a grammar is empty.
    """
    least, most = schema.get("minLength"), schema.get("maxLength")
    if schema.get("type") != "string" or type(most) is not int or not 0 < most <= _LONGEST:
        return "TEXT?"
    least = least if type(least) is int and 0 <= least <= most else 0
    return rf"/(?s:.{{{max(least, 1)},{most}}})/" + ("" if least else "?")


def _choices(schema: Any, root: Mapping[str, Any], known: dict[str, list[Any]], depth: int) -> list[Any]:
    """All values that a schema lists, texts, numbers and the like; none if it has others, or more than a grammar should name."""
    if not isinstance(schema, Mapping) or not depth:
        return []

    def read(part: Any) -> list[Any]:
        return _choices(part, root, known, depth - 1)

    if isinstance(schema.get("$ref"), str):
        values = followed(schema["$ref"], root, known, read, [])
    elif options := next((schema[word] for word in ("anyOf", "oneOf") if isinstance(schema.get(word), list)), None):
        each = [read(option) for option in options]
        values = [*chain(*each)] if all(each) and sum(map(len, each)) <= _MOST_CHOICES else []
    elif isinstance(schema.get("enum"), list):
        values = schema["enum"]
    else:
        values = [schema["const"]] if "const" in schema else [None] if schema.get("type") == "null" else []
    if not values or len(values) > _MOST_CHOICES or not all(isinstance(value, str | int | None) for value in values):
        return []
    return [*values, None] if schema.get("nullable") is True else values


def _with_definitions(schema: Mapping[str, Any], root: Mapping[str, Any]) -> str | None:
    """A part of root as a schema of its own, with the definitions that it needs, as JSON; None if it refers to other parts."""
    definitions: dict[str, dict[str, Any]] = {}
    rest: list[Any] = [schema]
    for part in rest:
        if isinstance(part, list):
            rest += part
        elif isinstance(part, Mapping):
            rest += part.values()
            if isinstance(pointer := part.get("$ref"), str):
                word, name = found.groups() if (found := _DEFINITION.match(pointer)) else ("", "")
                name = unquote(name).replace("~1", "/").replace("~0", "~")
                if not isinstance(root.get(word), Mapping) or name not in root[word]:
                    return None
                if name not in definitions.setdefault(word, {}):
                    definitions[word][name] = root[word][name]
                    rest.append(root[word][name])
    return json.dumps({**definitions, **schema, "x-guidance": _GUIDANCE})
