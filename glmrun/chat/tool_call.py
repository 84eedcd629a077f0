"""The body of a <tool_call> to a function call with typed arguments.

    name<arg_key>key</arg_key><arg_value>value</arg_value>...

call_body.py decides what the tags mean. Everything between two of them is taken literally (no XML escapes), and values become what
the declared JSON schema says; what does not fit the schema stays a string.
"""

import ast
import json
import math
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from glmrun.chat.parameters import DEEPEST, flat, followed

_JSON_BEGUN = re.compile(r"\s*[^\s<{]{0,256}\s*\{")
_MAX_NAME = 256  # characters
_JSON_BODY = re.compile(r"\s*([^\s<{]*)\s*(\{.*\})\s*", re.DOTALL)
_INTEGER = re.compile(r"([+-]?[0-9]+)(?:\.0+)?")
_TYPES_OF_VALUES = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
}
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_MAX_LITERAL = 100_000  # characters given to Python's own parser


def schemas(tools: Sequence[Mapping] | None) -> dict[str, dict]:
    """{function name: JSON schema of its parameters} of OpenAI-shaped declarations."""
    functions = [tool.get("function", tool) for tool in tools or ()]
    return {f["name"]: flat(f["parameters"]) if isinstance(f.get("parameters"), dict) else {} for f in functions}


def declared_name(name: str, declared: Mapping[str, dict]) -> str:
    """The declared function that a name means: itself, else the only one that is spelled alike but for case, - and _, quotation
    marks or a namespace in front; the name as it is where there is none."""
    if name in declared:
        return name
    wanted = _spelling(name)
    alike = [known for known in declared if _spelling(known) == wanted]
    return alike[0] if len(alike) == 1 else name


def _spelling(name: str) -> str:
    return name.strip("\"'`*:").rpartition(".")[2].casefold().replace("-", "_")


def may_become_call(text: str, declared: Mapping[str, dict]) -> bool:
    """Whether text behind <tool_call>, before any other tag, may yet be a call: JSON, or one word and perhaps a key behind it.

    Anything else is prose about tool calls.
    """
    if begins_json(text):
        return True
    words = text.split()
    if "{" in text or "<" in text or any(len(word) > _MAX_NAME for word in words):
        return False
    if len(words) < 2:
        return True
    properties = declared.get(words[0], {}).get("properties")
    on_its_own_line = "\n" in text.strip().removeprefix(words[0]).rpartition(words[1])[0]
    known = isinstance(properties, dict) and any(key.startswith(words[1]) for key in properties)
    return len(words) == 2 and (on_its_own_line or known)


def call_of(name: str, arguments: Sequence[tuple[str, str]] | dict, declared: Mapping[str, dict], call_id: str = "") -> dict:
    """OpenAI's shape of a call; raw values become what the schema says."""
    if not isinstance(arguments, dict):
        arguments = typed_arguments(arguments, declared.get(name, {}))
    return {"id": call_id or new_id(), "type": "function", "function": {"name": name, "arguments": json_of(arguments)}}


def new_id() -> str:
    """A call's id, as clients expect it."""
    return f"call_{secrets.token_hex(12)}"


def json_of(value: Any) -> str:
    """JSON in which only half surrogate pairs are escaped: they cannot travel as UTF-8."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isascii() else _HALF_PAIR.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def typed_arguments(pairs: Sequence[tuple[str, str]], schema: Mapping) -> dict[str, Any]:
    """Raw values as the schema of a function's parameters wants them; of equal keys the first counts, it may be out already."""
    first = dict(reversed(pairs))
    return {key: typed_value(first[key], _property(schema, key), schema) for key, _ in pairs}


def is_text(key: str, schema: Mapping) -> bool:
    """Whether every value of this parameter is a text, whatever it says."""
    return types_of(_property(schema, key), schema) == {"string"}


def begins_json(text: str) -> bool:
    """Whether a call's text is JSON, perhaps behind a name."""
    return _JSON_BEGUN.match(text) is not None


def read_json(text: str) -> tuple[str, dict] | None:
    """`{"name": ..., "arguments": {...}}` or `name {...}`, as others write calls, and this model at times; None if not whole."""
    found = _JSON_BODY.fullmatch(text)
    try:
        value = _json(found[2]) if found else {}
        if found and found[1]:
            return found[1], value
        name = value["name"]
        arguments = value.get("arguments", value.get("parameters", {}))
        arguments = _json(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, KeyError):
        return None
    return (name, arguments) if isinstance(name, str) and name and isinstance(arguments, dict) else None


# --- types ---------------------------------------------------------------------------------------------------------


def typed_value(raw: str, schema: Any, root: Mapping) -> Any:
    """A raw value as its JSON schema wants it: typed if it can be read that way, else the string itself.

    Without a declared type, what reads as JSON is JSON. Where a string is allowed among others, another type is taken only when the
    value is spelled exactly like one.
    """
    types = types_of(schema, root)
    if not types:
        try:
            return _json(raw)
        except ValueError:
            return raw
    for kind in ("null", "boolean", "integer", "number", "object", "array"):
        if kind in types:
            try:
                return _as_type(raw, kind, exact="string" in types)
            except ValueError:
                continue
    return raw


def _as_type(raw: str, kind: str, exact: bool) -> Any:
    text = raw if exact else raw.strip()
    if kind in ("object", "array"):
        return _structure(text, dict if kind == "object" else list, exact)
    if not exact:
        text = text[1:-1] if len(text) > 2 and text[0] == text[-1] == '"' else text
        text = text.lower() if text.lower() in ("true", "false", "null") else text
    if kind == "integer":
        found = _INTEGER.fullmatch(text)
        if found is None or (exact and text != str(int(found[1]))):
            raise ValueError(text)
        return int(found[1])
    value = _json(text)
    wanted = {"null": (type(None),), "boolean": (bool,), "number": (int, float)}[kind]
    if type(value) not in wanted:
        raise ValueError(text)
    return value


def _structure(text: str, wanted: type, exact: bool) -> Any:
    """An object or array: JSON, else JSON with its quotes escaped once too often, else a Python literal."""
    readers = [_json] if exact else [_json, lambda t: _json(t.replace('\\"', '"')), _literal]
    for read in readers:
        try:
            value = read(text)
        except ValueError:
            continue
        if isinstance(value, wanted):
            return value
    raise ValueError(text)


def _json(text: str) -> Any:
    """json.loads without NaN and infinities, and with ValueError for whatever it dislikes."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _literal(text: str) -> Any:
    if len(text) > _MAX_LITERAL:
        raise ValueError("too long")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # '\d' in a model's string is no concern of ours
            value = ast.literal_eval(text)
        json.dumps(value, allow_nan=False)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from None
    return value


def _property(schema: Mapping, key: str) -> Any:
    properties = schema.get("properties")
    return properties.get(key) if isinstance(properties, dict) else None


def types_of(schema: Any, root: Mapping) -> set[str]:
    """The JSON types that a schema, a part of root, admits; empty if it says nothing (or something this does not read)."""
    return _allowed(schema, root, {}, DEEPEST)


def _allowed(schema: Any, root: Mapping, known: dict[str, set[str]], depth: int) -> set[str]:
    if not isinstance(schema, dict) or not depth:
        return set()

    def read(part: Any) -> set[str]:
        return _allowed(part, root, known, depth - 1)

    types: set[str] = {"null"} if schema.get("nullable") is True else set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return types | {kind}
    if isinstance(kind, list):
        return types | {k for k in kind if isinstance(k, str)}
    if isinstance(schema.get("$ref"), str):
        found = followed(schema["$ref"], root, known, read, set())
        return types | found
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(word), list) and schema[word]:
            each = [read(option) for option in schema[word]]
            return types.union(*each) if word == "allOf" or all(each) else set()
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return types | {_TYPES_OF_VALUES[type(value)] for value in values if type(value) in _TYPES_OF_VALUES}
