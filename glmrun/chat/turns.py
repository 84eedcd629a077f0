"""Earlier answers in the model's own tokens.

A text can be cut into tokens in many ways, and a model need not write the cut that encode() makes; templates strip white space,
and a forgotten tag comes back repaired. So an answer that is rendered anew often differs from the tokens in the cache, and all
behind it would be read again. An assistant's message may therefore carry `token_ids`, its turn as it was written; they take the
place of the rendering where both say the same.
"""

from collections.abc import Sequence

from glmrun.chat.stream import TAGS, ChatStream
from glmrun.chat.tokenizer import Tokenizer

_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


class Turns:
    """Knows where an assistant's turn begins and ends: between <|assistant|> and the next role."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._assistant = tokenizer.id_of("<|assistant|>")
        self._roles = {tokenizer.id_of(text) for text in _ROLES}

    def written(self, prompt: Sequence[int], answer: list[int], state: str) -> list[int] | None:
        """`token_ids` of the turn that a prompt opened and an answer's tokens (without the end token) went on with.

        state   of the ChatStream after the answer; thinking that was not closed is closed here
        None where the turn cannot stand in a prompt: cut off inside a tool call, or with tokens that steer.
        """
        opening = next((i for i in range(len(prompt) - 1, -1, -1) if prompt[i] == self._assistant), None)
        close = self._tokenizer.id_of("</think>")
        if opening is None or state == "call" or (state == "thinking" and close is None):
            return None
        ids = [*prompt[opening + 1 :], *answer, *([close] if state == "thinking" and close is not None else [])]
        return ids if self._is_text(ids) else None

    def restored(self, prompt: list[int], messages: Sequence[dict], tools: Sequence[dict]) -> list[int]:
        """The prompt with the `token_ids` of messages where their rendering stands; unchanged where that cannot be found."""
        answers = [message.get("token_ids") for message in messages if message["role"] == "assistant"]
        starts = [i + 1 for i, token in enumerate(prompt) if token == self._assistant]
        if not any(answers) or len(starts) not in (len(answers), len(answers) + 1):
            return prompt
        out, done = [], 0
        for start, ids in zip(starts, answers, strict=False):
            end = next((i for i in range(start, len(prompt)) if prompt[i] in self._roles), len(prompt))
            if ids and self._is_text(ids) and self._says(ids, tools) == self._says(prompt[start:end], tools):
                out += [*prompt[done:start], *ids]
                done = end
        return out + prompt[done:]

    def _is_text(self, ids: object) -> bool:
        """Whether these are token ids that may stand inside a turn: words and tags, nothing that steers the model."""
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < self._tokenizer.n_vocab for i in ids):
            return False
        steering = (i for i in ids if self._tokenizer.is_control(i))
        return all(self._tokenizer.text_of(i) in TAGS for i in steering)

    def _says(self, ids: Sequence[int], tools: Sequence[dict]) -> tuple[str, str, list[dict]]:
        """(thinking, answer, functions called) of a turn."""
        stream = ChatStream(self._tokenizer, False, tools)
        said, rest = stream.feed(self._tokenizer.decode(ids)), stream.finish()
        calls = [*(said.tool_calls or ()), *(rest.tool_calls or ())]
        thinking, answer = said.reasoning + rest.reasoning, said.text + rest.text
        return thinking.strip(), answer.strip(), [call["function"] for call in calls]
