"""What the server has done, as numbers that Prometheus collects; under vLLM's names, so that dashboards for it work."""

import re

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from glmrun.server.desk import Desk
from glmrun.server.reply import Record
from quant.errors import UserError

__all__ = ["CONTENT_TYPE_LATEST", "Meters"]

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0)
_HISTOGRAMS = {
    "time_to_first_token_seconds": "From when a request came to its first token",
    "e2e_request_latency_seconds": "From when a request came to its last byte",
    "request_queue_time_seconds": "Waiting for a place",
    "request_prefill_time_seconds": "Reading the prompt",
    "request_decode_time_seconds": "Writing the answer",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts",
    "generation_tokens": "Tokens of answers",
    "prefix_cache_queries": "Tokens of prompts that were looked for in the cache",
    "prefix_cache_hits": "Tokens of prompts that were found there",
    "spec_decode_num_draft_tokens": "Tokens of answers that were computed before they were drawn",
    "spec_decode_num_accepted_tokens": "Of them, those that were drawn",
    "spec_decode_num_mtp_draft_tokens": "Of the drafted tokens, those that the prediction layer guessed",
    "spec_decode_num_mtp_accepted_tokens": "Of them, those that were drawn",
}


class Meters:
    """Numbers of one server."""

    def __init__(self, prefix: str, desk: Desk) -> None:
        """prefix   of all names: `glmrun:`, or `vllm:` for dashboards. Raises UserError for one that no name can have."""
        if not re.fullmatch(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,63}", prefix):
            raise UserError(f"the prefix of metrics is {prefix!r}; letters, digits, _ and : are expected", "usage")
        self._registry = registry = CollectorRegistry()
        running = Gauge(f"{prefix}num_requests_running", "Requests that are answered", registry=registry)
        running.set_function(lambda: desk.n_running)
        waiting = Gauge(f"{prefix}num_requests_waiting", "Requests that wait for a place", registry=registry)
        waiting.set_function(lambda: len(desk.jobs) - desk.n_running)
        label = ("model_name",)
        self._counters = {name: Counter(prefix + name, text, label, registry=registry) for name, text in _COUNTERS.items()}
        self._seconds = {
            name: Histogram(prefix + name, text, label, registry=registry, buckets=_SECONDS) for name, text in _HISTOGRAMS.items()
        }
        self._token_seconds = Histogram(
            f"{prefix}inter_token_latency_seconds", "Between two tokens, the mean of an answer", label, registry=registry,
            buckets=_TOKEN_SECONDS,
        )  # fmt: skip
        self._answers = Counter(
            f"{prefix}request_success", "Answers, by how they ended", (*label, "finished_reason"), registry=registry
        )
        self._statuses = Counter(f"{prefix}http_requests", "Requests for answers", ("path", "status"), registry=registry)

    def count(self, record: Record, model: str) -> None:
        """Take a request that is over into account."""
        self._statuses.labels(record.path, "client gone" if record.gone else str(record.status)).inc()
        if not record.stats:
            return
        times = {
            "time_to_first_token_seconds": record.first_token_seconds,
            "e2e_request_latency_seconds": record.seconds,
            "request_queue_time_seconds": record.queue_seconds,
            "request_prefill_time_seconds": sum(stats.prompt_seconds for stats in record.stats),
            "request_decode_time_seconds": sum(stats.generate_seconds for stats in record.stats),
        }
        for name, seconds in times.items():
            if seconds is not None:
                self._seconds[name].labels(model).observe(seconds)
        for stats in record.stats:
            prompt, drafts = (
                (stats.n_prompt, stats.n_cached),
                (stats.n_drafted, stats.n_accepted, stats.n_guessed, stats.n_guessed_right),
            )
            tokens = (stats.n_prompt, stats.n_generated, *prompt, *drafts)
            for counter, n_tokens in zip(self._counters.values(), tokens, strict=True):
                counter.labels(model).inc(n_tokens)
            if stats.n_generated > 1:
                self._token_seconds.labels(model).observe(stats.generate_seconds / (stats.n_generated - 1))
        for reason in record.finish_reasons:
            self._answers.labels(model, reason).inc()

    def text(self) -> bytes:
        """All of it in the format that Prometheus reads."""
        return generate_latest(self._registry)
