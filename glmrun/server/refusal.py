"""An error in the shape of the interface whose path was asked."""

from collections.abc import Callable
from typing import Any

from glmrun.server.anthropic import anthropic_error
from glmrun.server.ollama import ollama_error
from glmrun.server.openai_error import openai_error
from quant.errors import UserError

_SHAPES: dict[str, Callable[[int, UserError], dict[str, Any]]] = {"/v1/messages": anthropic_error, "/api/": ollama_error}


def refusal(path: str, status: int, error: UserError) -> dict[str, Any]:
    """The body of a refusal with an HTTP status."""
    shape = next((shape for prefix, shape in _SHAPES.items() if path.startswith(prefix)), openai_error)
    return shape(status, error)
