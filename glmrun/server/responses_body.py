"""The form of a body of OpenAI's Responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from glmrun.server.form import Sparse

CALLS = ("function_call", "custom_tool_call")
ITEMS = ("message", "reasoning", *CALLS, *(f"{call}_output" for call in CALLS))  # all others are other servers' business


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


def _as_items(given: Any) -> Any:
    """Of items that we never make (references to what is not kept, calls that a server carries out) only the type stays: whatever
    else they hold is not looked at."""
    if not isinstance(given, list):
        return given or []
    return [{"type": item["type"]} if isinstance(item, dict) and _is_foreign(item.get("type")) else item for item in given]


def _is_foreign(kind: Any) -> bool:
    return isinstance(kind, str) and kind not in ITEMS


class Part(Sparse):
    type: str
    text: str = ""
    refusal: str = ""


Parts = Annotated[list[Part], BeforeValidator(_as_parts)]


class Item(Sparse):
    """A piece of the history of any type."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Parts = Field(default_factory=list)
    summary: Parts = Field(default_factory=list)
    name: str = ""
    call_id: str = ""
    arguments: Any = None
    input: Any = None
    output: Parts = Field(default_factory=list)


class Tool(Sparse):
    type: str
    name: str = ""
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolChoice(Sparse):
    type: str
    name: str = ""
    mode: Literal["auto", "required"] = "auto"
    tools: list[Tool] = Field(default_factory=list)


class Reasoning(BaseModel):
    effort: str | None = None
    summary: str | None = None


class Format(BaseModel):
    """The form of an answer; all of it is repeated in the response, its name and the rest, too."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class Text(BaseModel):
    format: Format | None = None


class Body(Sparse):
    """What POST /v1/responses may say, as far as it means something here."""

    input: Annotated[list[Item], BeforeValidator(_as_items)] = Field(default_factory=list)
    instructions: str | None = None
    tools: list[Tool] | None = None
    tool_choice: Annotated[ToolChoice, BeforeValidator(lambda said: {"type": said} if isinstance(said, str) else said)] | None = (
        None
    )
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=0)
    stream: bool | None = None
    include: list[str] | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, ge=0, le=1)
    previous_response_id: str | None = None
    store: bool | None = None
    metadata: Any = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
