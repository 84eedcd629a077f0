"""A model behind a server with OpenAI's interface (vLLM, SGLang, llama-server, Ollama): the same contract as engine.Model."""

import contextlib
import json
import os
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from glmrun.chat.chunk import Chunk
from glmrun.chat.remote_answer import RemoteAnswer, count, error_text
from glmrun.chat.request import ChatRequest, stop_texts
from glmrun.machine import network_error
from quant.config import FLASH
from quant.errors import Interrupted, UserError

if TYPE_CHECKING:
    import httpx2

KEY = "GLMRUN_API_KEY"
CONNECT_SECONDS, READ_SECONDS = 10.0, 900.0  # a long prompt on a slow machine is silent for minutes
ASIDE_SECONDS = 5.0  # for what is good to know, and can be done without
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
# OpenAI's interface has no names for these; each server ignores those of the others.
_OTHER_NAMES = {"repeat_penalty": ("repeat_penalty", "repetition_penalty"), "repeat_last_n": ("repeat_last_n",)}
_BUDGETS = ("thinking_token_budget", "thinking_budget_tokens", "reasoning_budget_tokens")  # vLLM's, llama-server's old and new
_PROMPT = ("model", "messages", "tools", "chat_template_kwargs")  # what a prompt is made of
_EVENTS = ("text/event-stream", "", "text/plain", "application/octet-stream")  # what servers call a stream of events
_DONE = object()  # the server says that the answer is over
_LEFT_OUT = ("return_progress", "stream_options")  # by a server that refuses what it does not know


class RemoteModel:
    """One model of a server. Raises UserError if the server is not there, refuses, or has no such model.

    url     http://host:port/v1; /v1 may be left out
    name    the model's name there or a part that means only one; None: the first that the server lists
    The key for servers that want one is taken from the variable GLMRUN_API_KEY.
    """

    def __init__(self, url: str, name: str | None = None) -> None:
        self.url, self._password = _checked_url(url)
        self._key = os.environ.get(KEY, "")
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"{KEY} holds characters that no key has", "usage")
        models = self._models()
        self.name = _chosen(name, list(models), self.url)
        self.path = f"{self.name} at {self.url}"  # what people are told, as another model's file
        self.n_ctx = self.n_ctx_train = _context_length(models.get(self.name, {})) or FLASH.max_position_embeddings
        self.n_threads = 0  # of this machine
        self._used: tuple[list[dict[str, Any]], int] = ([], 0)  # messages, and what they take of the context
        # The server parts thinking and answer; None: not known yet.
        self._parts_thinking: bool | None = True if models.get(self.name, {}).get("owned_by") == "glmrun" else None
        self.remark = ""  # what people should know of the last answer
        self._unwanted: set[str] = set()
        self._missing: set[str] = set()  # paths that the server has not
        self._cancels = 0

    def cancel(self) -> None:
        """End the running answers soon; safe in a signal handler."""
        self._cancels += 1

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        """As engine.Model.answer(): chunks of thinking, answer and tool calls; counts are the server's where it tells them.

        Raises UserError while it is iterated: a server that is gone, refuses, or stops in the middle.
        """
        body = self._body(request)
        may_think = request.thinks and self._parts_thinking is not True
        answer = RemoteAnswer(
            request.tools, (True if self._parts_thinking is False else None) if may_think else False,
            lambda: self._opens_thinking(request),
        )  # fmt: skip
        return self._answer(body, answer, self._cancels)

    def count_tokens(self, request: ChatRequest) -> int:
        """What the conversation takes of the context, by the server's own count; if it has none, as with the last answer."""
        if request.messages != self._used[0] and (n := self._counted(request)):
            self._used = (list(request.messages), n)
        return self._used[1]

    def prompt_text(self, request: ChatRequest) -> str:
        """The server's own template filled in; raises UserError if it keeps that to itself."""
        if (prompt := self._prompt(request)) is None:
            raise UserError("the server writes the prompt; only it knows the text", "usage")
        return prompt

    def _body(self, request: ChatRequest) -> dict[str, Any]:
        """A request as the interface has it; what its fields do not say is left to the server."""
        body: dict[str, Any] = {
            "model": self.name, "messages": [_as_sent(message) for message in request.messages],
            "stream": True, "stream_options": {"include_usage": True}, "return_progress": True,
        }  # fmt: skip
        for name in self._unwanted:
            body.pop(name, None)
        if request.tools:
            body["tools"] = request.tools
        if request.max_tokens is not None:
            body["max_tokens"] = request.max_tokens
        if request.think_budget is not None:
            body |= dict.fromkeys(_BUDGETS, request.think_budget)
        if request.json_schema is not None:
            schema = {"name": "answer", "schema": request.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if stop := stop_texts(request.stop):
            body["stop"] = list(stop)
        template = {} if request.thinking else {"enable_thinking": False}
        template |= {} if request.clear_thinking else {"clear_thinking": False}
        if template:
            body["chat_template_kwargs"] = template
        if request.continues:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        for setting, value in request.sampling.items():
            body |= dict.fromkeys(_OTHER_NAMES.get(setting, (setting,)), value) if value is not None else {}
        return body

    def _opens_thinking(self, request: ChatRequest) -> bool | None:
        """Whether a prompt ends inside the thinking, by the server's template; None: it keeps that to itself, and may."""
        prompt = self._prompt(request)
        if prompt is None:
            return None if "glm" in self.name.casefold() else False  # whose templates do
        return prompt.rstrip().endswith("<think>")

    def _prompt(self, request: ChatRequest) -> str | None:
        """What llama-server and glmrun say that the model reads; None where the server has no words for that."""
        body = self._body(request)
        found = self._aside("apply-template", {key: body[key] for key in body if key in _PROMPT}).get("prompt")
        return found if isinstance(found, str) else None

    def _counted(self, request: ChatRequest) -> int:
        """Tokens of the prompt, as vLLM and glmrun count messages, or llama-server a text; 0 where nothing counts."""
        body = self._body(request)
        n = count(self._aside("tokenize", {key: body[key] for key in body if key in _PROMPT}).get("count"))
        if n or (prompt := self._prompt(request)) is None:
            return n
        tokens = self._aside("tokenize", {"content": prompt, "add_special": False, "parse_special": True}).get("tokens")
        return len(tokens) if isinstance(tokens, list) else 0

    def _aside(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """What a server answers at a path beside the interface; {} where it has none, is slow or refuses."""
        import httpx2

        if path in self._missing:
            return {}
        try:
            with self._client() as client:
                response = client.post(f"{self.url.removesuffix('/v1')}/{path}", json=body, timeout=ASIDE_SECONDS)
            found = _json(response.text) if response.status_code == 200 else None
        except httpx2.HTTPError:
            found = None
        if not isinstance(found, dict):
            self._missing.add(path)
            return {}
        return found

    def _answer(self, body: dict[str, Any], answer: RemoteAnswer, cancels: int) -> Iterator[Chunk]:
        """cancels   how often anything had been cancelled when this was asked for."""
        events = queue.SimpleQueue[Any]()
        connection = _Connection()
        done = False
        reader = threading.Thread(target=self._read, args=(body, events, connection), name="remote answer", daemon=True)
        reader.start()
        try:
            yield Chunk(stats=answer.stats)
            while self._cancels == cancels:
                try:
                    event = events.get(timeout=0.1)
                except queue.Empty:
                    continue
                if isinstance(event, BaseException):
                    raise event
                done = event is _DONE
                if done or event is None:
                    break
                yield from answer.add(event)
            if self._cancels != cancels:
                yield replace(answer.rest(), finish_reason="cancelled")
                return
            if answer.finish_reason is None and not done:
                raise Interrupted(f"{self.url}: the server stopped in the middle of the answer")
            last = answer.last()
            if answer.misled:
                self.remark = "the server left thinking in the answer: start it with a parser for reasoning (glm45)"
            self._parts_thinking = answer.parts_thinking if answer.parts_thinking is not None else self._parts_thinking
            self._used = ([], last.stats.n_prompt + last.stats.n_generated)
            yield last
        except UserError:
            yield answer.rest()  # what has come is not lost
            raise
        finally:
            connection.close()

    def _read(self, body: dict[str, Any], events: queue.SimpleQueue[Any], connection: "_Connection") -> None:
        """Put what the server sends into the queue: objects, then None; or the error that ended it."""
        import httpx2

        try:
            with self._client() as client:
                while (refused := self._read_once(client, body, events, connection)) is not None:
                    self._unwanted.add(refused)
                    del body[refused]
            events.put(None)
        except httpx2.HTTPError as why:
            events.put(self._failed(why))
        except BaseException as why:  # whatever it is, the thread that asked raises it
            events.put(why)

    def _read_once(
        self, client: "httpx2.Client", body: dict[str, Any], events: queue.SimpleQueue[Any], connection: "_Connection"
    ) -> str | None:
        """As _read(); returns the field for which the server refused, if the answer is the same without it."""
        import httpx2

        with client.stream(
            "POST", f"{self.url}/chat/completions", json=body, extensions={"trace": connection.trace}
        ) as response:  # fmt: skip
            response.encoding = "utf-8-sig"  # events are UTF-8 whatever the header says, and a byte order mark is none of them
            if response.status_code != 200:
                response.read()
                named = [name for name in _LEFT_OUT if name in body and name in response.text]
                if response.status_code in (400, 422) and named:
                    return named[0]
                raise self._refused(response)
            kind = response.headers.get("content-type", "").partition(";")[0].strip().casefold()
            if kind == "application/json":
                response.read()
                if not response.text.startswith(("data:", "event:", ":")):  # it does not stream
                    events.put(_parsed(response.text, self.url))
                    return None
            elif kind not in _EVENTS:
                raise UserError(f"{self.url}: the server sends {kind}; expected a stream of events. Does the address end with /v1?")
            response.headers["content-type"] = _EVENTS[0]
            for event in httpx2.EventSource(response):
                if event.data.strip() == "[DONE]":
                    events.put(_DONE)
                    return None
                if event.event == "error":
                    raise UserError(f"the server: {error_text(_json(event.data) or event.data)}")
                if event.data.strip():
                    events.put(_parsed(event.data, self.url))
        return None

    def _client(self) -> "httpx2.Client":
        import httpx2

        try:
            return httpx2.Client(
                headers={"Authorization": f"Bearer {self._key}"} if self._key else {}, auth=self._password,
                timeout=httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
                trust_env=httpx2.URL(self.url).host not in _LOOPBACK,  # no proxy leads to this machine
            )  # fmt: skip
        except (ImportError, ValueError, OSError) as why:  # SOCKS without its library, certificates that are not there
            raise network_error(why) or why from None

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
        found = _json(response.text)
        listed = found.get("data") if isinstance(found, dict) else found  # some send the bare list
        if not isinstance(found, dict | list):
            raise _no_object(response.text, self.url)
        listed = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
        return {each["id"]: each for each in listed if isinstance(each.get("id"), str)}

    def _refused(self, response: "httpx2.Response") -> UserError:
        """The error that a status other than 200 means."""
        found = _json(response.text)
        said = f": {error_text(found)}" if found else ""
        code = response.status_code
        if response.has_redirect_location:  # the key goes nowhere that nobody named
            place = str(response.url.join(response.headers["location"]))
            base = place.removesuffix("/models").removesuffix("/chat/completions")
            return UserError(f"{self.url}: the server leads on to another address; name that one: {base}", "refused")
        if code in (401, 403):
            what = "the key in" if self._key else "a key is wanted in"
            refused = " is refused" if self._key else ""
            return UserError(f"{self.url}: {what} {KEY}{refused} (HTTP {code}){said}", "refused")
        if code == 404:
            return UserError(f"{self.url}: not found (HTTP 404){said}; is the address right, and the model's name?", "missing")
        what = f"{self.url}: the server answers HTTP {code}{said}"
        return (
            Interrupted(what, "busy" if code in (429, 503) else "failed")
            if code in (429, *range(500, 600))
            else UserError(what, "refused")
        )

    def _failed(self, why: "httpx2.HTTPError") -> UserError:
        import httpx2

        if isinstance(why, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Interrupted(f"{self.url}: no server answers there ({why}); is it running, is the address right?")
        if isinstance(why, httpx2.TimeoutException):
            return Interrupted(f"{self.url}: the server was silent for too long")
        if isinstance(why, httpx2.ReadError | httpx2.RemoteProtocolError):
            return Interrupted(f"{self.url}: the server stopped in the middle of the answer ({why})")
        return Interrupted(f"{self.url}: {type(why).__name__}: {why}")


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


def _checked_url(url: str) -> "tuple[str, tuple[str, str] | None]":
    """(the address, which people are shown; the user and password that stood in it, which nobody is)."""
    import httpx2

    try:
        parsed = httpx2.URL(url.strip())
        usable = parsed.scheme in ("http", "https") and parsed.host
    except (httpx2.InvalidURL, ValueError):
        usable = False
    if not usable or parsed.query or parsed.fragment:
        raise UserError(f"{url!r} is no address of a server; write it like http://host:8000/v1", "usage")
    path = parsed.path.rstrip("/").removesuffix("/chat/completions")
    shown = str(parsed.copy_with(path=path or "/v1", userinfo=b"")).rstrip("/")
    return shown, (parsed.username, parsed.password) if parsed.userinfo else None


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
    return next((n for n in map(count, places) if n), None)


def _as_sent(message: dict[str, Any]) -> dict[str, Any]:
    """A message as OpenAI's interface has it, its thinking under both names that servers read."""
    sent: dict[str, Any] = {
        key: message[key] for key in ("role", "content", "name", "tool_calls", "tool_call_id") if key in message
    }
    thought = message.get("reasoning_content")
    return sent | {"reasoning_content": thought, "reasoning": thought} if thought else sent


def _json(text: str) -> Any:
    """What a text is in JSON; None if it is none."""
    try:
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def _parsed(text: str, url: str) -> dict[str, Any]:
    value = _json(text)
    if not isinstance(value, dict):
        raise _no_object(text, url)
    return value


def _no_object(text: str, url: str) -> UserError:
    return UserError(f"{url}: the server sends {text[:60]!r}; expected an object in JSON. Does the address end with /v1?")
