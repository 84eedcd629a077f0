"""The bodies of OpenAI's interfaces: fields under the names of all clients."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json

from glmrun.server.interface import BadRequest
from quant.errors import brief

MAX_ANSWERS = 16
# What other servers hold an answer to: whoever sends one of these counts on it.
_UNREAD = ("grammar", "guided_regex", "guided_choice", "guided_grammar")
_KINDS = ("json_object", "regex", "choice", "grammar", "structural_tag")  # of structured_outputs, beside json
_SCHEMAS = ("json_schema", "guided_json", "structured_outputs")  # llama.cpp's name, vLLM's two


def _whole(given: Any) -> Any:
    return int(given) if isinstance(given, float) and given.is_integer() else given


Whole = Annotated[int, BeforeValidator(_whole)]  # JSON knows one kind of number, and languages that do, too, write 1.0


class Strict(BaseModel):
    """A form that takes a number for a number only, and ignores what it does not know."""

    model_config = ConfigDict(strict=True)


class StreamOptions(Strict):
    include_usage: bool | None = None


class Thinking(Strict):
    """`thinking` of the makers' own interface, `reasoning` of OpenRouter's."""

    type: str | None = None
    enabled: bool | None = None
    effort: str | None = None
    budget_tokens: Whole | None = Field(default=None, ge=0)
    max_tokens: Whole | None = Field(default=None, ge=0)
    clear_thinking: bool | None = None


class TemplateOptions(Strict):
    enable_thinking: bool | None = None
    thinking: bool | None = None
    clear_thinking: bool | None = None
    reasoning_effort: str | None = None


class JsonSchema(Strict):
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


Schema = dict[str, Any] | Json[dict[str, Any]]


class StructuredOutputs(Strict):
    json_: Schema | None = Field(default=None, alias="json")


class SamplingBody(Strict):
    """What steers the choice of tokens, under the names of all servers."""

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: Whole | None = Field(default=None, ge=-1, le=1 << 31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Whole | None = None
    max_tokens: Whole | None = Field(default=None, ge=-1)
    stop: str | list[str] | None = None
    n: Whole | None = Field(default=None, ge=1, le=MAX_ANSWERS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def sampling(self, answer: int = 0) -> dict[str, Any]:
        """ChatRequest.sampling of the answer with this number: a seed gives each another, and all of them again the next time."""
        names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        if self.top_k is not None:
            given["top_k"] = max(0, self.top_k)  # -1 is off for others
        if (penalty := self.repeat_penalty or self.repetition_penalty) is not None:
            given["repeat_penalty"] = penalty
        if self.seed is not None and self.seed != -1:
            given["seed"] = (self.seed + answer) % (1 << 64)
        if self.logit_bias:
            given["logit_bias"] = {_token(key): value for key, value in self.logit_bias.items()}
        return given

    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer. Raises BadRequest for too many or too long ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > 16 or any(len(stop) > 1024 for stop in stops):
            raise BadRequest("stop: at most 16 texts of at most 1,024 characters are taken", "stop")
        return tuple(stop for stop in stops if stop)

    def limit(self, *names: str) -> int | None:
        """The first of the fields of these names that sets a limit on an answer's tokens; -1 is none, as is leaving it out."""
        for name in names:
            if (value := getattr(self, name)) is not None and value != -1:
                if value < 1:
                    raise BadRequest(f"{name}: a number of at least 1 is expected, found {value}", name)
                return int(value)
        return None


class ChatBody(SamplingBody):
    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: Whole | None = Field(default=None, ge=-1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required", "any"] | dict[str, Any] | None = None
    functions: Any = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    json_schema: Schema | None = None
    guided_json: Schema | None = None
    structured_outputs: StructuredOutputs | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    reasoning_effort: str | None = None
    reasoning: Thinking | None = None
    thinking: Thinking | bool | None = None
    think: bool | str | None = None
    enable_thinking: bool | None = None
    thinking_budget: Whole | None = Field(default=None, ge=-1)
    thinking_budget_tokens: Whole | None = Field(default=None, ge=-1)
    reasoning_budget: Whole | None = Field(default=None, ge=-1)
    clear_thinking: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    return_progress: bool | None = None
    continue_final_message: bool | None = None


def refuse_unread(body: dict[str, Any], schemas: bool = False) -> None:
    """Raise BadRequest for what an answer would not be, and its client would not see it; schemas: whether those are read."""
    found = {name: body.get(name) for name in (_UNREAD if schemas else _UNREAD + _SCHEMAS)}
    if isinstance(other := body.get("structured_outputs"), dict):
        found |= {f"structured_outputs.{kind}": other.get(kind) for kind in _KINDS}
    for name, value in found.items():
        if value:
            raise BadRequest(f"{name}: not read here; response_format of chat completions takes a JSON schema", name)
    if body.get("modalities") not in (None, [], ["text"]):
        raise BadRequest(f"modalities: this model writes text only, found {brief(str(body['modalities']))}", "modalities")


def _token(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        raise BadRequest(f"logit_bias: {text[:40]!r} is no token's id", "logit_bias")
    return int(text)
