"""A model behind a server with OpenAI's interface (vLLM, SGLang, llama-server, Ollama): the same contract as engine.Model."""

import contextlib
import json
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from glmrun.chat.chunk import Chunk, Stats
from glmrun.chat.request import ChatRequest
from glmrun.chat.stream import ChatStream
from quant.config import FLASH
from quant.errors import UserError

if TYPE_CHECKING:
    import httpx2

KEY = "GLMRUN_API_KEY"
CONNECT_SECONDS, READ_SECONDS = 10.0, 900.0  # a long prompt on a slow machine is silent for minutes
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# OpenAI's interface has no names for these; each server ignores those of the others.
_OTHER_NAMES = {"repeat_penalty": ("repeat_penalty", "repetition_penalty"), "repeat_last_n": ("repeat_last_n",)}


class RemoteModel:
    """One model of a server. Raises UserError if the server is not there, refuses, or has no such model.

    url     http://host:port/v1; /v1 may be left out
    name    the model's name there or a part that means only one; None: the first that the server lists
    The key for servers that want one is taken from the variable GLMRUN_API_KEY.
    """

    def __init__(self, url: str, name: str | None = None) -> None:
        self.url = _checked_url(url)
        self._key = os.environ.get(KEY, "")
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"{KEY} holds characters that no key has", "usage")
        models = self._models()
        self.name = _chosen(name, list(models), self.url)
        self.path = f"{self.name} at {self.url}"  # what people are told, as another model's file
        self.n_ctx = self.n_ctx_train = _context_length(models.get(self.name, {})) or FLASH.max_position_embeddings
        self.n_threads = 0  # of this machine
        self._n_used = 0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End the running answer() soon; safe in a signal handler."""
        self._cancelled.set()

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        """As engine.Model.answer(): chunks of thinking, answer and tool calls; counts are the server's where it tells them.

        Raises UserError while it is iterated: a server that is gone, refuses, or stops in the middle.
        """
        body: dict[str, Any] = {
            "model": self.name, "messages": [_as_sent(message) for message in request.messages],
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        if request.tools:
            body["tools"] = request.tools
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.think_budget is not None:
            body["thinking_token_budget"] = request.think_budget
        if request.json_schema is not None:
            schema = {"name": "answer", "schema": request.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.stop:
            body["stop"] = list(request.stop)
        template = {} if request.thinking else {"enable_thinking": False}
        template |= {} if request.clear_thinking else {"clear_thinking": False}
        if template:
            body["chat_template_kwargs"] = template
        for setting, value in request.sampling.items():
            body |= dict.fromkeys(_OTHER_NAMES.get(setting, (setting,)), value) if value is not None else {}
        self._cancelled = threading.Event()
        return self._answer(body, self._cancelled)

    def count_tokens(self, request: ChatRequest) -> int:
        """What the conversation takes of the context, as far as it is known: as counted with the last answer."""
        return self._n_used

    def prompt_text(self, request: ChatRequest) -> str:
        """Raises UserError: only the server knows."""
        raise UserError("the server writes the prompt; only it knows the text", "usage")

    def _answer(self, body: dict[str, Any], cancelled: threading.Event) -> Iterator[Chunk]:
        answer = _Answer(ChatStream(None, thinking=False, tools=body.get("tools")))
        events = queue.SimpleQueue[Any]()
        connection = _Connection()
        reader = threading.Thread(target=self._read, args=(body, events, connection), name="remote answer", daemon=True)
        reader.start()
        try:
            yield Chunk(stats=answer.stats)
            while True:
                try:
                    event = events.get(timeout=0.1)
                except queue.Empty:
                    event = {}
                if cancelled.is_set():
                    yield Chunk(finish_reason="cancelled", stats=answer.stats)
                    return
                if isinstance(event, BaseException):
                    raise event
                if event is None:
                    break
                if event:
                    yield from answer.add(event)
            if answer.finish_reason is None:
                raise UserError(f"{self.url}: the server stopped in the middle of the answer")
            last = answer.last()
            self._n_used = last.stats.n_prompt + last.stats.n_generated
            yield last
        finally:
            connection.close()

    def _read(self, body: dict[str, Any], events: "queue.SimpleQueue[Any]", connection: "_Connection") -> None:
        """Put what the server sends into the queue: objects, then None; or the error that ended it."""
        import httpx2

        try:
            with self._client() as client, client.stream(
                "POST", f"{self.url}/chat/completions", json=body, extensions={"trace": connection.trace}
            ) as response:  # fmt: skip
                if response.status_code != 200:
                    response.read()
                    raise self._refused(response)
                if response.headers.get("content-type", "").startswith("application/json"):  # it does not stream
                    response.read()
                    events.put(_parsed(response.text, self.url))
                else:
                    for event in httpx2.EventSource(response):
                        if event.data == "[DONE]":
                            break
                        events.put(_parsed(event.data, self.url))
            events.put(None)
        except httpx2.HTTPError as why:
            events.put(self._failed(why))
        except BaseException as why:  # whatever it is, the thread that asked raises it
            events.put(why)

    def _client(self) -> "httpx2.Client":
        import httpx2

        host = httpx2.URL(self.url).host
        return httpx2.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            trust_env=host not in _LOOPBACK,  # no proxy leads to this machine
        )

    def _models(self) -> dict[str, dict[str, Any]]:
        """{name: what the server says about it}; empty where it does not list them."""
        import httpx2

        try:
            with self._client() as client:
                response = client.get(f"{self.url}/models", timeout=CONNECT_SECONDS)
        except httpx2.HTTPError as why:
            raise self._failed(why) from None
        if response.status_code in (404, 405):
            return {}
        if response.status_code != 200:
            raise self._refused(response)
        listed = _parsed(response.text, self.url).get("data")
        return {each["id"]: each for each in listed or [] if isinstance(each, dict) and isinstance(each.get("id"), str)}

    def _refused(self, response: "httpx2.Response") -> UserError:
        """The error that a status other than 200 means."""
        try:
            said = _error_text(json.loads(response.text))
        except ValueError:
            said = ""
        said = f": {said}" if said else ""
        code = response.status_code
        if code in (401, 403):
            what = "the key in" if self._key else "a key is wanted in"
            refused = " is refused" if self._key else ""
            return UserError(f"{self.url}: {what} {KEY}{refused} (HTTP {code}){said}", "refused")
        if code == 404:
            return UserError(f"{self.url}: not found (HTTP 404){said}; is the address right, and the model's name?", "missing")
        return UserError(f"{self.url}: the server answers HTTP {code}{said}", "refused" if code < 500 else "failed")

    def _failed(self, why: "httpx2.HTTPError") -> UserError:
        import httpx2

        if isinstance(why, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UserError(f"{self.url}: no server answers there ({why}); is it running, is the address right?")
        if isinstance(why, httpx2.TimeoutException):
            return UserError(f"{self.url}: the server was silent for too long")
        if isinstance(why, httpx2.ReadError | httpx2.RemoteProtocolError):
            return UserError(f"{self.url}: the server stopped in the middle of the answer ({why})")
        return UserError(f"{self.url}: {type(why).__name__}: {why}")


class _Connection:
    """The socket of one request, so that it can be given up while a thread waits for it: the server sees it and stops, too."""

    def __init__(self) -> None:
        self._stream: Any = None
        self._closed = False

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """What httpx2 tells about a request: a connection is made, then perhaps encrypted."""
        if event.endswith((".connect_tcp.complete", ".start_tls.complete")):
            self._stream = info["return_value"]
            if self._closed:
                self.close()

    def close(self) -> None:
        self._closed = True
        if self._stream is not None:
            with contextlib.suppress(OSError, AttributeError):
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


@dataclass
class _Answer:
    """What has come of one answer.

    tags   finds what servers that do not know the model's format leave in the text: thinking and calls between tags
    """

    tags: ChatStream
    began: float = field(default_factory=time.monotonic)
    first: float | None = None  # when the first of it came
    finish_reason: str | None = None
    n_pieces: int = 0
    calls: list[dict[str, Any]] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    written_calls: list[dict[str, Any]] = field(default_factory=list)  # found by tags

    def add(self, event: dict[str, Any]) -> Iterator[Chunk]:
        """The chunks of one object of the stream, or of a whole answer."""
        if "error" in event:
            raise UserError(f"the server: {_error_text(event) or 'an error without a text'}")
        usage = event.get("usage")
        self.usage = usage if isinstance(usage, dict) else self.usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta") or choice.get("message") or {}
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]
        reasoning = next(
            (text for key in ("reasoning_content", "reasoning") if isinstance(text := delta.get(key), str) and text), ""
        )
        content = delta.get("content")
        found = self.tags.feed(content) if isinstance(content, str) and content else None
        self._add_calls(delta.get("tool_calls"))
        if reasoning or content or delta.get("tool_calls"):
            self.first = self.first or time.monotonic()
            self.n_pieces += 1
        text, reasoning = (found.text, reasoning + found.reasoning) if found else ("", reasoning)
        self.written_calls += (found.tool_calls or []) if found else []
        if text or reasoning:
            yield Chunk(text=text, reasoning=reasoning, stats=self.stats)

    def _add_calls(self, deltas: Any) -> None:
        for delta in deltas if isinstance(deltas, list) else ():
            function = delta.get("function") or {}
            at = delta.get("index")
            if not isinstance(at, int):  # some servers leave it out
                at = len(self.calls) - 1 if self.calls and not function.get("name") else len(self.calls)
            while len(self.calls) <= min(at, 999):
                self.calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
            call, arguments = self.calls[min(at, 999)], function.get("arguments")
            call["id"] = call["id"] or delta.get("id") or ""
            call["function"]["name"] = call["function"]["name"] or function.get("name") or ""
            call["function"]["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments) if arguments else ""

    def last(self) -> Chunk:
        """The chunk that ends the answer."""
        rest = self.tags.finish()
        calls = [call for call in self.calls if call["function"]["name"]] or self.written_calls + (rest.tool_calls or [])
        for call in calls:
            call["id"] = call["id"] or f"call_{secrets.token_hex(12)}"
        reason = "tool_calls" if calls else "length" if self.finish_reason == "length" else "stop"
        return Chunk(text=rest.text, reasoning=rest.reasoning, tool_calls=calls or None, finish_reason=reason, stats=self.stats)

    @property
    def stats(self) -> Stats:
        """Counts as the server tells them, else of the pieces that came; seconds as they passed here."""
        now = time.monotonic()
        details = self.usage.get("prompt_tokens_details")
        n_cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
        n_prompt, n_generated = (_count(self.usage.get(key)) for key in ("prompt_tokens", "completion_tokens"))
        stats = Stats(
            n_prompt=n_prompt, n_prefilled=n_prompt, n_cached=n_cached,
            n_generated=n_generated or self.n_pieces, prompt_seconds=(self.first or now) - self.began,
        )  # fmt: skip
        return replace(stats, generate_seconds=now - self.first) if self.first is not None else stats


def _checked_url(url: str) -> str:
    import httpx2

    try:
        parsed = httpx2.URL(url.strip())
        usable = parsed.scheme in ("http", "https") and parsed.host
    except (httpx2.InvalidURL, ValueError):
        usable = False
    if not usable or parsed.query or parsed.fragment:
        raise UserError(f"{url!r} is no address of a server; write it like http://host:8000/v1", "usage")
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    return str(parsed.copy_with(path=path or "/v1")).rstrip("/")


def _chosen(name: str | None, listed: list[str], url: str) -> str:
    """The one listed name that is or contains the name asked for; that itself where the server lists none."""
    if name is None:
        if not listed:
            raise UserError(f"{url} lists no models; is the address right (it often ends with /v1)? Or name a model", "missing")
        return listed[0]
    found = [each for each in listed if each == name] or [each for each in listed if name.casefold() in each.casefold()]
    if not listed or len(found) == 1:
        return found[0] if found else name
    if found:
        raise UserError(f"{name} can mean {', '.join(found[:10])}; write more of the name", "usage")
    raise UserError(f"{url} has no model {name}; it has {', '.join(listed[:10])}", "missing")


def _context_length(model: dict[str, Any]) -> int | None:
    """Tokens of context, if the server says: vLLM and SGLang as max_model_len, llama-server under meta."""
    meta = model.get("meta")
    places = [model.get("max_model_len"), *((meta.get("n_ctx"), meta.get("n_ctx_train")) if isinstance(meta, dict) else ())]
    return next((n for n in map(_count, places) if n), None)


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message as OpenAI's interface has it, its thinking under both names that servers read."""
    sent: dict[str, Any] = {
        key: message[key] for key in ("role", "content", "name", "tool_calls", "tool_call_id") if key in message
    }
    thought = message.get("reasoning_content")
    return sent | {"reasoning_content": thought, "reasoning": thought} if thought else sent


def _parsed(text: str, url: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{url}: the server sends {text[:60]!r}; expected an object in JSON. Does the address end with /v1?")
    return value


def _error_text(value: Any) -> str:
    """The message in an error of OpenAI's, FastAPI's or llama-server's shape."""
    error = value.get("error", value.get("detail", value)) if isinstance(value, dict) else value
    error = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(error).split())[:500]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
