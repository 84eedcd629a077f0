"""The body of a <tool_call> to a function call with typed arguments.

    name<arg_key>key</arg_key><arg_value>value</arg_value>...

Models of this size forget tags. Everything between two tags is taken literally (no XML escapes), a forgotten tag is put back where
only one place is possible, and values become what the declared JSON schema says; what does not fit the schema stays a string.
"""

import ast
import json
import math
import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

_TAGS = re.compile(r"(</?arg_(?:key|value)>)")
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
_MAX_LITERAL = 100_000  # characters given to Python's own parser


def schemas(tools: Sequence[Mapping] | None) -> dict[str, dict]:
    """{function name: JSON schema of its parameters} of OpenAI-shaped declarations."""
    functions = [tool.get("function", tool) for tool in tools or ()]
    return {f["name"]: f["parameters"] if isinstance(f.get("parameters"), dict) else {} for f in functions}


def parse_call(body: str, declared: Mapping[str, dict]) -> dict | None:
    """OpenAI's shape of a call from all that stood between <tool_call> and </tool_call>; None if it names no function."""
    read = _read(body)
    if read is None:
        return None
    name, arguments = read
    if isinstance(arguments, list):
        schema = declared.get(name, {})
        arguments = {key: typed_value(raw, _property(schema, key), schema) for key, raw in arguments}  # the last of equal keys wins
    text = json.dumps(arguments, ensure_ascii=False)
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        text = json.dumps(arguments)  # half surrogate pairs cannot travel as UTF-8
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": text}}


def is_complete(body: str, declared: Mapping[str, dict]) -> bool:
    """Whether a body that lacks only its </tool_call> may be carried out: nothing cut off, declared, all that is required there."""
    read = _read(body)
    if read is None or read[0] not in declared:
        return False
    name, arguments = read
    if not _TAGS.search(body) and "{" not in body and any(other != name and other.startswith(name) for other in declared):
        return False  # the name itself may have been cut off
    if _TAGS.search(body) and not body.rstrip().endswith("</arg_value>"):
        return False
    required = declared[name].get("required")
    given = dict(arguments)
    return not isinstance(required, list) or all(key in given for key in required)


def _read(body: str) -> tuple[str, list[tuple[str, str]] | dict] | None:
    """(name, [(key, raw value)]), or (name, arguments) for a body in JSON."""
    pieces = _TAGS.split(body)
    found = _JSON_BODY.fullmatch(body) if len(pieces) == 1 else None
    if found:
        return _read_json(found[1], found[2])
    words = pieces[0].split()
    if not words or "{" in words[0]:
        return None
    return words[0], _pairs(pieces[1::2], pieces[2::2], " ".join(words[1:]))


def _read_json(name: str, text: str) -> tuple[str, dict] | None:
    """`{"name": ..., "arguments": {...}}` or `name {...}`, as other models write calls and this one does at times."""
    try:
        value = _json(text)
        if name:
            return name, value
        name = value["name"]
        arguments = value.get("arguments", value.get("parameters", {}))
        arguments = _json(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, KeyError):
        return None
    return (name, arguments) if isinstance(name, str) and name and isinstance(arguments, dict) else None


def _pairs(tags: list[str], texts: list[str], before: str) -> list[tuple[str, str]]:
    """[(key, raw value)]; texts[i] follows tags[i], `before` stands in front of all (a key, if its <arg_key> was forgotten)."""
    pairs: list[tuple[str, str]] = []
    state, key, value = "outside", before, ""
    for i, (tag, text) in enumerate(zip(tags, texts, strict=True)):
        if state == "in value" and tag != "</arg_value>" and not (tag == "<arg_key>" and _opens_a_pair(tags, i)):
            value += tag + text  # the value itself speaks of tags
        elif tag == "<arg_key>":
            _add(pairs, state, key, value.rstrip("\n"))
            state, key = "in key", text
        elif tag == "</arg_key>":
            state, value = "after key", text
        elif tag == "<arg_value>":
            state, value = "in value", text
        else:
            if state != "outside":
                _add(pairs, "in value", key, value)
            state, key = "outside", text
    _add(pairs, state, key, value)
    return pairs


def _opens_a_pair(tags: list[str], i: int) -> bool:
    return next((tag for tag in tags[i + 1 :] if tag.endswith("arg_value>")), "<arg_value>") == "<arg_value>"


def _add(pairs: list[tuple[str, str]], state: str, key: str, value: str) -> None:
    """Keep a pair whose closing tag was read or forgotten; a key without any value is not one."""
    key = key.strip()
    if key and (state == "in value" or (state == "after key" and value.strip())):
        pairs.append((key, value))


# --- types ---------------------------------------------------------------------------------------------------------


def typed_value(raw: str, schema: Any, root: Mapping) -> Any:
    """A raw value as its JSON schema wants it: typed if it can be read that way, else the string itself.

    Without a declared type, what reads as JSON is JSON. Where a string is allowed among others, another type is taken only when the
    value is spelled exactly like one.
    """
    types = _allowed(schema, root, 8)
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


def _allowed(schema: Any, root: Mapping, depth: int) -> set[str]:
    """The JSON types that a schema admits; empty if it says nothing (or something this does not read)."""
    if not isinstance(schema, dict) or not depth:
        return set()
    types: set[str] = {"null"} if schema.get("nullable") is True else set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return types | {kind}
    if isinstance(kind, list):
        return types | {k for k in kind if isinstance(k, str)}
    if isinstance(schema.get("$ref"), str):
        return types | _allowed(_resolve(schema["$ref"], root), root, depth - 1)
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(word), list) and schema[word]:
            each = [_allowed(option, root, depth - 1) for option in schema[word]]
            return types.union(*each) if word == "allOf" or all(each) else set()
    values = schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else []
    return types | {_TYPES_OF_VALUES[type(value)] for value in values if type(value) in _TYPES_OF_VALUES}


def _resolve(pointer: str, root: Mapping) -> Any:
    at: Any = root
    for part in pointer.removeprefix("#/").split("/") if pointer.startswith("#/") else ():
        at = at.get(part) if isinstance(at, dict) else None
    return at if at is not root else None
