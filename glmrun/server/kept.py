"""What was said over Responses, for clients that name earlier responses and items instead of sending them again."""

import json
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock
from typing import Any

from glmrun.server.interface import BadRequest
from quant.errors import UserError

ROOM = 16 << 20  # characters of JSON
_FORGOTTEN = {"type": "item_reference"}

Items = list[dict[str, Any]]


class Kept:
    """The latest responses, each with all that came before it; the oldest ones go first. In memory only, for any thread.

    A name is 96 random bits: whoever knows it was told it.
    """

    def __init__(self, room: int = ROOM) -> None:
        self._room, self._lock = room, Lock()
        self._responses: OrderedDict[str, tuple[Items, dict[str, Any], int]] = OrderedDict()  # its history, itself, size
        self._items: dict[str, dict[str, Any]] = {}  # those of all responses
        self._size = 0

    def resolved(self, body: dict[str, Any]) -> Any:
        """The `input` of a body with what it refers to: kept items at their places, the previous response in front.

        References to items that are not kept stay references. Raises BadRequest for a response that is not.
        """
        given, previous = body.get("input") or [], body.get("previous_response_id")
        if isinstance(given, str):
            given = [{"role": "user", "content": given}]
        if not isinstance(given, list):
            return given
        with self._lock:
            items = [self._items.get(item["id"], _FORGOTTEN) if _is_reference(item) else item for item in given]
            if not isinstance(previous, str) or not previous:
                return items
            if previous not in self._responses:
                raise BadRequest(
                    f"previous_response_id: {previous[:80]!r} is not kept here (any more); send the whole history in input",
                    "previous_response_id",
                )
            self._responses.move_to_end(previous)
            history, response, _ = self._responses[previous]
            return [*history, *response["output"], *items]

    def keeper(self, history: Items, echo: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
        """What keeps a response to this history, which repeats `echo` of its request, once it is there."""
        size = len(json.dumps([history, echo]))  # here, on the thread of the request
        return lambda response: self._keep(history, response, size + len(json.dumps(response["output"])))

    def _keep(self, history: Items, response: dict[str, Any], size: int) -> None:
        if size > self._room:
            return
        with self._lock:
            self._responses[response["id"]] = history, response, size
            self._items |= {item["id"]: item for item in response["output"]}
            self._size += size
            while self._size > self._room:
                self._drop(next(iter(self._responses)))

    def _drop(self, name: str) -> None:
        _, response, size = self._responses.pop(name)
        self._size -= size
        for item in response["output"]:
            del self._items[item["id"]]

    def response(self, name: str) -> dict[str, Any]:
        """The response of that name, as its client got it. Raises UserError (missing) if it is not kept."""
        with self._lock:
            self._check(name)
            return self._responses[name][1]

    def forget(self, name: str) -> dict[str, Any]:
        """Keep the response no longer; what tells a client so. Raises UserError (missing) if it is not kept."""
        with self._lock:
            self._check(name)
            self._drop(name)
        return {"id": name, "object": "response", "deleted": True}

    def _check(self, name: str) -> None:
        if name not in self._responses:
            raise UserError(f"{name[:80]!r} is not kept here (any more)", "missing", "response_id")


def _is_reference(item: Any) -> bool:
    """An item that only names another one; its type may be left out."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return False
    return item.get("type") == "item_reference" or not item.keys() - {"id", "type"}


def forget(_: dict[str, Any]) -> None:
    """What keeps nothing, where the client wants it so."""
