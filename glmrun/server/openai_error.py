"""The shape of an error that most clients know."""

from typing import Any

from glmrun.server.interface import ContextOverflow
from quant.errors import UserError

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error", 503: "unavailable"}
_STATUS = {"usage": 400, "refused": 400, "missing": 404, "busy": 429, "failed": 500}


def status_of(error: UserError) -> int:
    """The HTTP status that an error means."""
    return _STATUS[error.kind]


def openai_error(status: int, error: UserError) -> dict[str, Any]:
    """The body of a refusal."""
    overflow = isinstance(error, ContextOverflow)
    inner: dict[str, Any] = {
        "message": str(error),
        "type": _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": getattr(error, "param", error.setting),
        "code": "context_length_exceeded" if overflow else "invalid_api_key" if status == 401 else None,
    }
    if isinstance(error, ContextOverflow):
        inner |= {"n_prompt_tokens": error.n_tokens, "n_ctx": error.n_ctx}
    return {"error": inner}
