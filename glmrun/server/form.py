"""Bodies held to their forms: what interfaces of other programs have in common when they read a request."""

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from glmrun.server.interface import BadRequest
from quant.errors import brief

# What people call how hard a model shall think, and after how many tokens we close its thinking; None: the model closes it.
# GLM-4.7-Flash itself knows on and off only.
_EFFORTS: dict[str, int | None] = {
    "none": 0, "minimal": 256, "low": 1024, "medium": None, "high": None, "xhigh": None, "max": None,
}  # fmt: skip

Form = TypeVar("Form", bound=BaseModel)
Stop = Annotated[str, Field(max_length=1024)]
MAX_STOPS = 16  # texts, each of which is looked for at every token


class Sparse(BaseModel):
    """A form in which null is as good as nothing: some languages write every field that they know."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


def held_to(form: type[Form], body: Any) -> Form:
    """The body as its form; unknown fields are left out. Raises BadRequest that names the first field that is wrong."""
    try:
        return form.model_validate(body)
    except ValidationError as errors:
        error = errors.errors(include_url=False)[0]
        param = _field(error["loc"], error["type"] == "missing", body)
        found = "" if error["type"] == "missing" else f", found {brief(error['input'])}"
        raise BadRequest(f"{param or 'the body'}: {error['msg']}{found}", param) from None


def _field(place: Sequence[str | int], is_missing: bool, body: Any) -> str | None:
    """A place as the client wrote it: pydantic also names which alternative of a field it tried."""
    names = []
    for i, part in enumerate(place):
        if (isinstance(body, dict) and part in body) or (isinstance(body, list) and isinstance(part, int)):
            body = body[part]  # type: ignore[index]
        elif not (is_missing and i == len(place) - 1):
            continue
        names.append(str(part))
    return ".".join(names) or None


def effort(name: str, param: str) -> tuple[bool, int | None]:
    """(whether to think, tokens after which the thinking is closed or None) of an effort's name. Raises BadRequest."""
    if name not in _EFFORTS:
        raise BadRequest(f"{param}: expected one of {', '.join(_EFFORTS)}, found {brief(name)}", param)
    budget = _EFFORTS[name]
    return budget != 0, budget or None


def refuse_media(kind: str, message: int, param: str) -> None:
    """Raise the BadRequest that every part gets which a text model cannot read; message is its index."""
    raise BadRequest(f"message {message} has a part of the type {kind}, which this model cannot read; it reads text only", param)


def function(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A declaration in OpenAI's shape."""
    return {"type": "function", "function": {"name": name, "description": description or "", "parameters": parameters or {}}}


def declared(name: Any, tools: Iterable[dict[str, Any]], param: str) -> str:
    """The name of a function that must be called, which must be one of the tools. Raises BadRequest."""
    if name not in [tool["function"]["name"] for tool in tools]:
        raise BadRequest(f"{param}: the function {brief(name)} is not among the tools", param)
    return name


def told(schema: dict[str, Any], messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with a schema for the answer in words: the engine holds an answer to one only where no tool can be called."""
    text = f"An answer that calls no function is JSON of this schema and nothing else:\n{json.dumps(schema, ensure_ascii=False)}"
    return [{"role": "system", "content": text}, *messages]


def begins_answer(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the last message is the beginning of an answer that a client wrote for the model: text, and no call behind it."""
    return bool(messages) and messages[-1].get("role") == "assistant" and not messages[-1].get("tool_calls")


def arguments(given: Any) -> dict[str, Any]:
    """A call's arguments as an object. Histories hold calls that fitted no schema; those are rendered all the same."""
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else {}
        except (ValueError, RecursionError):
            return {"arguments": given}
    return given if isinstance(given, dict) else {} if given is None else {"arguments": given}


def event(data: dict[str, Any]) -> bytes:
    """A server-sent event that is named by its data's type. Escapes keep U+2028 from clients that cut lines at it."""
    return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n".encode()
