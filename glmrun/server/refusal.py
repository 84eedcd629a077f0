"""An error as clients know it: its status, its headers, and the shape of the interface whose path was asked."""

from collections.abc import Callable
from typing import Any

from glmrun.chat.request import TooLong
from glmrun.server.anthropic import anthropic_error
from glmrun.server.body import Compressed, TooLarge
from glmrun.server.desk import Busy
from glmrun.server.interface import ContextOverflow
from glmrun.server.ollama import ollama_error
from glmrun.server.openai_error import openai_error, status_of
from quant.errors import UserError

_SHAPES: dict[str, Callable[[int, UserError], dict[str, Any]]] = {"/v1/messages": anthropic_error, "/api/": ollama_error}
_BODY_STATUS: dict[type[UserError], int] = {TooLarge: 413, Compressed: 415}


def refusal(path: str, status: int, error: UserError) -> dict[str, Any]:
    """The body of a refusal with an HTTP status."""
    shape = next((shape for prefix, shape in _SHAPES.items() if path.startswith(prefix)), openai_error)
    return shape(status, error)


def on_the_wire(error: UserError) -> tuple[UserError, int, dict[str, str] | None]:
    """An error as clients know it, its HTTP status and headers."""
    if isinstance(error, TooLong):
        error = ContextOverflow(error.n_tokens, error.n_ctx)
    if isinstance(error, Busy):
        return error, 503 if error.retry_seconds < 5 else 429, {"Retry-After": str(error.retry_seconds)}
    return error, _BODY_STATUS.get(type(error)) or status_of(error), None
