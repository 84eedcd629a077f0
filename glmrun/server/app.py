"""The server's paths."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from glmrun.chat.chunk import Chunk
from glmrun.server import about, anthropic, ollama, ollama_models, responses
from glmrun.server.body import read_json
from glmrun.server.completions import Completions
from glmrun.server.guard import Guard
from glmrun.server.interface import Interface
from glmrun.server.kept import Kept
from glmrun.server.meters import CONTENT_TYPE_LATEST
from glmrun.server.openai_chat import OpenAIChat
from glmrun.server.openai_error import openai_error
from glmrun.server.page import page
from glmrun.server.refusal import on_the_wire, refusal
from glmrun.server.reply import Record, Reply
from glmrun.server.service import Options, Service
from quant.errors import UserError

# Paths below a base URL that is right, which their clients would doubt.
_OTHER = re.compile(
    r"/(?:v1|api)/(embed\b|embeddings|rerank|audio|images|videos|moderations|files|batches|fine_tuning|assistants|threads|"
    r"conversations|vector_stores|uploads|realtime|messages/batches|pull|push|create|copy|delete|blobs)"
)


def interfaces(options: Options, kept: Kept) -> dict[str, Interface]:
    """{path: who reads the bodies that are sent there}; `kept` is for responses."""
    return {
        "/v1/chat/completions": OpenAIChat(options.reasoning_field),
        "/v1/messages": anthropic.Messages(),
        "/v1/responses": responses.Responses(kept),
        "/api/chat": ollama.OllamaChat(),
        "/api/generate": ollama.OllamaGenerate(),
    }


class Paths:
    """The server's paths, around a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def app(self) -> ASGIApp:
        """The ASGI application."""
        kept = Kept()
        found = interfaces(self._service.options, kept)
        routes = [Route(path, self._answering(interface), methods=["POST"]) for path, interface in found.items()]
        for path in ("/v1/chat/completions", "/v1/responses"):
            routes.append(Route(f"{path}/input_tokens", self._told(partial(about.input_tokens, found[path])), methods=["POST"]))
        routes += [
            Route("/", self._page), Route("/health", self._health), Route("/v1/health", self._health),
            Route("/v1/models", self._told(about.models)), Route("/v1/models/{name:path}", self._told(about.one_model)),
            Route("/apply-template", self._told(about.apply_template), methods=["POST"]),
            Route("/props", self._told(about.props)), Route("/slots", self._told(about.slots)),
            Route("/metrics", self._metrics),
            Route("/v1/responses/{name}", self._told(lambda _, given: kept.response(given["name"]))),
            Route("/v1/responses/{name}", self._told(lambda _, given: kept.forget(given["name"])), methods=["DELETE"]),
            Route("/v1/completions", self._complete, methods=["POST"]),
            Route("/v1/messages/count_tokens", self._told(about.count_tokens), methods=["POST"]),
            Route("/api/version", self._told(ollama_models.version)), Route("/api/tags", self._told(ollama_models.tags)),
            Route("/api/ps", self._told(ollama_models.running)),
            Route("/api/show", self._told(ollama_models.show), methods=["POST"]),
        ]  # fmt: skip
        for prefix in ("", "/v1"):
            routes += [
                Route(f"{prefix}/tokenizer_info", self._told(about.tokenizer_info)),
                Route(f"{prefix}/tokenize", self._told(about.tokenize), methods=["POST"]),
                Route(f"{prefix}/detokenize", self._told(about.detokenize), methods=["POST"]),
            ]
        handlers: Any = {HTTPException: _not_found, UserError: _refused, ClientDisconnect: _gone, Exception: _broken}
        origins = list(self._service.options.access.origins)
        middleware = (
            [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])] if origins else []
        )
        middleware.append(Middleware(Guard, access=self._service.options.access))
        return Starlette(routes=routes, exception_handlers=handlers, middleware=middleware)

    def _answering(self, interface: Interface) -> Callable[[Request], Awaitable[Any]]:
        async def answer(request: Request) -> Any:
            return await self.answer(interface, request, lambda one: self._service.opened().answer(one))

        return answer

    async def answer(self, interface: Any, request: Request, begin: Callable[[Any], Iterator[Chunk]]) -> Any:
        """The response to a body that asks for answers, which begin() starts; a refusal in the interface's shape."""
        record = Record(request.url.path)
        try:
            self._service.opened()
            self._service.desk.check()
            body = await read_json(request)

            def prepared() -> tuple[Any, list[Any]]:
                asked = interface.asked(body, self._service.name)
                return asked, [begin(one) for one in asked.requests]

            asked, answers = await asyncio.to_thread(prepared)
            job = self._service.desk.take(answers)
        except UserError as error:
            error, status, headers = on_the_wire(error)
            record.status, record.seconds = status, time.monotonic() - record.came
            self._service.done(record)
            return JSONResponse(interface.error(status, error), status, headers)
        return Reply(interface, asked, job, record, self._service.done)

    async def _complete(self, request: Request) -> Any:
        interface = Completions(self._service.opened())
        return await self.answer(interface, request, interface.answer)

    async def _metrics(self, _: Request) -> Response:
        return Response(self._service.meters.text(), media_type=CONTENT_TYPE_LATEST)

    async def _page(self, _: Request) -> Response:
        content, headers = page()
        return Response(content, headers=headers)

    async def _health(self, _: Request) -> Response:
        if self._service.model is None:
            body = {"status": "loading model", **openai_error(503, UserError("the model is being opened", "busy"))}
            return JSONResponse(body, 503, {"Retry-After": "2"})
        return JSONResponse({"status": "ok"})

    def _told(self, tell: Callable[[Service, dict[str, Any]], Any]) -> Callable[[Request], Awaitable[Response]]:
        """A path that says something of the model; tell() takes the body or what the path names."""

        async def answer(request: Request) -> Response:
            given = await read_json(request) if request.method == "POST" else dict(request.path_params)
            return JSONResponse(await asyncio.to_thread(tell, self._service, given))

        return answer


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, UserError)
    error, status, headers = on_the_wire(error)
    return JSONResponse(refusal(request.url.path, status, error), status, headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    taken = (error.headers or {}).get("Allow", "another method")
    what = {404: "there is no such path", 405: f"this path takes {taken}, not {request.method}"}
    reason = what.get(error.status_code, HTTPStatus(error.status_code).phrase)
    reason += f": {request.url.path[:200]!r}; "
    if other := _OTHER.match(request.url.path):
        reason += f"{other[1]} is other servers' business, this one answers chats and completions"
    else:
        base = f"http://{request.url.netloc}"
        reason += f"base URLs are {base}/v1, for Anthropic's and Ollama's clients without /v1"
    body = refusal(request.url.path, error.status_code, UserError(reason, "missing"))
    return JSONResponse(body, error.status_code, error.headers)


async def _gone(request: Request, _: Exception) -> Response:
    """The client has left before its body was there: nobody reads this, and it is no fault of ours that the log should tell."""
    return Response(status_code=400)


async def _broken(request: Request, _: Exception) -> Response:
    error = UserError("the server failed at this request; its log says why")
    return JSONResponse(refusal(request.url.path, 500, error), 500)
