"""What clients ask about the model: its names and sizes, its tokens, what it is doing."""

import time
from datetime import UTC, datetime
from typing import Any

from glmrun import __version__
from glmrun.chat.request import ChatRequest
from glmrun.server.anthropic import request_of
from glmrun.server.form import held_to
from glmrun.server.interface import BadRequest, Interface
from glmrun.server.openai_body import Strict, Whole
from glmrun.server.openai_chat import OpenAIChat
from glmrun.server.service import Service

# What programs look for in llama.cpp's /props before they send tools.
_CAPABILITIES = (
    *("supports_tools", "supports_tool_calls", "supports_parallel_tool_calls", "supports_system_role"),
    *("supports_preserve_reasoning", "supports_string_content", "supports_typed_content"),
)


def models(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """/v1/models: one, with its context under the names of all clients."""
    model = one_model(service, {})
    return {"object": "list", "data": [model], "has_more": False, "first_id": model["id"], "last_id": model["id"]}


def one_model(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """/v1/models/NAME: any name means the one model that is served."""
    model = service.opened()
    return {
        "id": service.name, "object": "model", "created": int(service.came), "owned_by": "glmrun",
        "type": "model", "display_name": service.name, "created_at": datetime.fromtimestamp(int(service.came), UTC).isoformat(),
        "context_length": model.n_ctx, "max_model_len": model.n_ctx, "context_window": model.n_ctx,
        "capabilities": {"tools": True, "reasoning": True, "vision": False},
        "meta": {"n_ctx": model.n_ctx, "n_ctx_train": model.n_ctx_train, "n_vocab": model.tokenizer.n_vocab},
    }  # fmt: skip


def props(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """/props: what editors look for to find a model by themselves."""
    model = service.opened()
    return {
        "default_generation_settings": {"n_ctx": model.n_ctx}, "total_slots": service.desk.n_places,
        "model_alias": service.name, "chat_template": model.chat_format.source, "build_info": f"glmrun {__version__}",
        "modalities": {"vision": False, "audio": False},
        "chat_template_caps": dict.fromkeys(_CAPABILITIES, True),
    }  # fmt: skip


def slots(service: Service, _: dict[str, Any]) -> list[dict[str, Any]]:
    """/slots: the places, and for how long each has been taken."""
    now = time.monotonic()
    taken = [now - job.began for job in service.desk.jobs if job.began is not None][: service.desk.n_places]
    ages: list[float | None] = [*taken, *[None] * (service.desk.n_places - len(taken))]
    n_ctx = service.opened().n_ctx
    return [{"id": i, "n_ctx": n_ctx, "is_processing": age is not None, "seconds": age} for i, age in enumerate(ages)]


def tokenizer_info(service: Service, _: dict[str, Any]) -> dict[str, Any]:
    """/tokenizer_info: what evaluation harnesses need to send token ids."""
    model = service.opened()
    tokenizer = model.tokenizer
    end = tokenizer.text_of(min(tokenizer.eog_ids)) if tokenizer.eog_ids else None
    return {
        "tokenizer_class": "glmrun", "vocab_size": tokenizer.n_vocab, "bos_token": None, "eos_token": end, "pad_token": end,
        "model_max_length": model.n_ctx, "chat_template": model.chat_format.source,
    }  # fmt: skip


class TokenizeBody(Strict):
    prompt: str | None = None
    content: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True


def tokenize(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """/tokenize: the ids of a text (`prompt` or `content`), in which nothing is a control token, or of a chat's prompt."""
    model, form = service.opened(), held_to(TokenizeBody, body)
    text = form.prompt if form.prompt is not None else form.content
    if form.messages is not None:
        ids = model.chat_format.encode(ChatRequest(form.messages, form.tools), form.add_generation_prompt)
    elif text is not None:
        ids = model.tokenizer.encode(text)
    else:
        raise BadRequest("prompt: a text is expected, or messages", "prompt")
    return {"tokens": ids, "count": len(ids), "max_model_len": model.n_ctx}


def apply_template(service: Service, body: dict[str, Any]) -> dict[str, str]:
    """/apply-template: what the model reads for a body of /v1/chat/completions."""
    asked = OpenAIChat(service.options.reasoning_field).asked(body, service.name)
    return {"prompt": service.opened().prompt_text(asked.requests[0])}


def count_tokens(service: Service, body: dict[str, Any]) -> dict[str, int]:
    """/v1/messages/count_tokens: what the prompt of Anthropic's body takes of the context."""
    return {"input_tokens": _n_prompt(service, request_of(body))}


def input_tokens(interface: Interface, service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """/input_tokens behind OpenAI's paths: the same for the bodies that are sent there."""
    return {"object": "response.input_tokens", "input_tokens": _n_prompt(service, interface.asked(body, service.name).requests[0])}


def _n_prompt(service: Service, asked: ChatRequest) -> int:
    return len(service.opened().chat_format.encode(asked))


class DetokenizeBody(Strict):
    tokens: list[Whole]


def detokenize(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    """/detokenize: the text of token ids."""
    tokenizer, tokens = service.opened().tokenizer, held_to(DetokenizeBody, body).tokens
    if wrong := next((i for i in tokens if not 0 <= i < tokenizer.n_vocab), None):
        raise BadRequest(f"tokens: {wrong} is outside the vocabulary of {tokenizer.n_vocab:,}", "tokens")
    text = tokenizer.decode(tokens)
    return {"prompt": text, "content": text}
