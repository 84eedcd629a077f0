"""One line for each answered request: where, how long, how much; nothing of what was said."""

import json
from typing import Any

from glmrun.server.reply import Record


def line(record: Record, as_json: bool) -> str:
    """A record as words, or as one JSON object."""
    told: dict[str, Any] = {
        "path": record.path[:100],
        "status": record.status,
        "seconds": round(record.seconds, 3),
        "queue_seconds": _rounded(record.queue_seconds),
        "first_token_seconds": _rounded(record.first_token_seconds),
        "prompt_tokens": sum(stats.n_prompt for stats in record.stats),
        "cached_tokens": sum(stats.n_cached for stats in record.stats),
        "prompt_seconds": round(sum(stats.prompt_seconds for stats in record.stats), 3),
        "generated_tokens": sum(stats.n_generated for stats in record.stats),
        "generate_seconds": round(sum(stats.generate_seconds for stats in record.stats), 3),
        "finish_reason": ",".join(record.finish_reasons) or None,
        "client_gone": record.gone,
    }
    if as_json:
        return json.dumps(told)
    return " ".join(f"{name}={value}" for name, value in told.items() if value not in (None, False))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
