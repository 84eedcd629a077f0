"""The contract of a chat: what is asked, and who can answer it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from glmrun.chat.chunk import Chunk
from quant.errors import UserError, brief


class TooLong(UserError):
    """A prompt that the context does not hold."""

    def __init__(self, n_tokens: int, n_ctx: int) -> None:
        super().__init__(
            f"the prompt has {n_tokens:,} tokens and the context {n_ctx:,}; shorten it or ask for a larger context",
            "refused", "n_ctx",
        )  # fmt: skip
        self.n_tokens, self.n_ctx = n_tokens, n_ctx


@dataclass(frozen=True)
class ChatRequest:
    """One answer that is asked for.

    messages         OpenAI's dicts: role (system, developer, user, assistant, tool) and content (a text, a list of parts, or None);
                     an assistant's may have reasoning_content (or reasoning), tool_calls and token_ids
    tools            function declarations, {"type": "function", "function": {...}} or the inner object alone
    thinking         let the model think before it answers
    clear_thinking   leave earlier turns' thinking out of the prompt, as the model's makers do by default
    think_budget     close the thinking after so many tokens; None: the model closes it
    max_tokens       at most so many new tokens; None: until the model ends or the context is full
    json_schema      the answer, after the thinking, is JSON of this schema; not together with tools
    stop             texts, or one, that end the answer and do not appear in it
    sampling         temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, presence_penalty, frequency_penalty,
                     logit_bias, seed; None or absent: as the model advises
    tool_choice      auto; none: no tool is called; required: at least one is; or the name of the declared function to call
    parallel_tool_calls  False ends the answer behind its first call
    continues        the last message is the assistant's own beginning of this answer, which goes on behind it without thinking
    logprobs         each token of the answer comes with its probability and so many likeliest ones; None: without
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    thinking: bool = True
    clear_thinking: bool = True
    think_budget: int | None = None
    max_tokens: int | None = None
    json_schema: dict[str, Any] | None = None
    stop: str | Sequence[str] = ()
    sampling: Mapping[str, Any] = field(default_factory=dict)
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    logprobs: int | None = None
    continues: bool = False

    @property
    def thinks(self) -> bool:
        """Whether the prompt ends with an open thinking."""
        return self.thinking and not self.continues

    @classmethod
    def of(cls, messages: list[dict[str, Any]], **options: Any) -> Self:
        """The request that keyword arguments of Model.chat() mean: fields by their names, every other is a setting of sampling."""
        sampling = {**(options.pop("sampling", None) or {})}
        named = {name: value for name, value in options.items() if name in cls.__dataclass_fields__}
        return cls(messages, **named, sampling=sampling | {name: value for name, value in options.items() if name not in named})


def stop_texts(stop: Any) -> tuple[str, ...]:
    """The texts of ChatRequest.stop. Raises UserError (usage) if it is something else."""
    texts = (stop,) if isinstance(stop, str) else stop or ()
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"stop is {brief(stop)}; expected a text or a list of texts", "usage", "stop")
    return tuple(text for text in texts if text)


class ChatModel(Protocol):
    """What answers requests: engine.Model, chat.remote.RemoteModel, or what tests put in their place."""

    @property
    def name(self) -> str:
        """What people call it: a file's name, or a model's name and its server."""

    @property
    def path(self) -> Any:
        """What opens it again: a file's path, or a text that names a server."""

    @property
    def n_ctx(self) -> int:
        """Tokens of context."""

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the largest context that the model takes."""

    @property
    def n_threads(self) -> int:
        """Threads of this machine that compute; 0 for a server."""

    def answer(self, request: ChatRequest) -> Iterator[Chunk]:
        """The answer in pieces; raises UserError, at once or while it is iterated."""

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the conversation as the next prompt repeats it."""

    def prompt_text(self, request: ChatRequest) -> str:
        """What the model is given to read; UserError where only a server knows."""

    def cancel(self) -> None:
        """End the running answers soon; safe in a signal handler."""
