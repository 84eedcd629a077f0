"""A JSON schema as people mean it."""

from typing import Any

# An object that another part of the schema adds to must stay open.
_COMPOSED = {"allOf", "anyOf", "oneOf", "if", "dependentSchemas", "unevaluatedProperties", "patternProperties", "$ref"}


def closed(schema: Any) -> Any:
    """The schema with every object that names properties held to these, all of them; what a schema says itself stays.

    By the letter of JSON Schema such an object may have any other properties and none of the named ones. A schema that is
    composed of others is left as it is.
    """
    return schema if _is_composed(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: _closed(part) if key in ("items", "prefixItems") else part for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict):
        inner["properties"] = {name: _closed(part) for name, part in schema["properties"].items()}
        inner.setdefault("additionalProperties", False)
        inner.setdefault("required", list(schema["properties"]))
    return inner


def _is_composed(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(map(_is_composed, schema))
    if not isinstance(schema, dict):
        return False
    return any(key in _COMPOSED or _is_composed(part) for key, part in schema.items() if key not in ("enum", "const", "default"))
