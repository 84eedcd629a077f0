"""The bytes of a request, read within limits and proven to be one JSON object, before anybody looks at its fields."""

import asyncio
import json
import math
import re
from typing import Any

from starlette.requests import Request

from glmrun.server.interface import BadRequest

MAX_BYTES = 32 << 20
MAX_DEPTH = 64  # objects and lists inside each other
MAX_VALUES = 1 << 20  # in the whole body
SECONDS = 60  # until the body is there
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")


class TooLarge(BadRequest):
    """A body of more bytes than anybody may send."""


class Compressed(BadRequest):
    """A body that is not sent as it is."""


async def read_json(request: Request) -> dict[str, Any]:
    """The body of a request. Raises BadRequest, Compressed, TooLarge before more than the limit is kept."""
    if (coding := request.headers.get("content-encoding", "").lower()) not in ("", "identity"):
        raise Compressed(f"the body is compressed ({coding[:40]!r}); send it as it is, without Content-Encoding")
    if (length := request.headers.get("content-length", "")).isdecimal() and int(length) > MAX_BYTES:
        raise TooLarge(f"the body has {int(length):,} bytes; at most {MAX_BYTES:,} are taken")
    pieces, n_bytes = [], 0
    try:
        async with asyncio.timeout(SECONDS):
            async for piece in request.stream():
                n_bytes += len(piece)
                if n_bytes > MAX_BYTES:
                    raise TooLarge(f"the body has more than {MAX_BYTES:,} bytes")
                pieces.append(piece)
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {SECONDS} s") from None
    return await asyncio.to_thread(parsed, b"".join(pieces))


def parsed(raw: bytes) -> dict[str, Any]:
    """The object that a body holds. Half surrogate pairs, as clients send that cut texts, become U+FFFD. Raises BadRequest."""
    if not raw.strip():
        raise BadRequest("the body is empty; a JSON object is expected")
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
        if _HALF_PAIR.search(raw):
            text = json.dumps(value, ensure_ascii=False)
            value = json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
    except UnicodeDecodeError as why:
        raise BadRequest(f"the body is not valid UTF-8: byte {why.start:,}") from None
    except RecursionError:
        raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep") from None
    except ValueError as why:
        what = str(why).splitlines()[0].partition(";")[0]  # behind it Python's advice to programmers
        raise BadRequest(f"the body is not valid JSON: {what}") from None
    if not isinstance(value, dict):
        kind = {str: "text (encoded twice?)", type(None): "null"}.get(type(value), type(value).__name__)
        raise BadRequest(f"the body is a JSON {kind}; an object is expected")
    _check_size(value)
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


def _finite(text: str) -> float:
    """A number as Python reads it, but for those that it makes infinite: no JSON could say them again."""
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:40]} is larger than a number can be")
    return number


def _check_size(value: Any) -> None:
    level, n_values = [value], 0
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict | list):
                inner += one.values() if isinstance(one, dict) else one
        n_values += len(inner)
        if n_values > MAX_VALUES:
            raise BadRequest(f"the body has more than {MAX_VALUES:,} values")
        if not inner:
            return
        level = inner
    raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep")
