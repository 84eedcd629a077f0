"""Documents -> token ids and the weight each token has in the loss; training and held-out documents kept apart."""

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import jinja2.sandbox
import numpy as np
from tokenizers import Tokenizer

from nano import arithmetic, dialogues, offhand, own_words, prose, text_tasks, tools
from nano.document import Document

HELD_OUT_SHARE = 16  # one key in so many never appears in training
PROMPT_WEIGHT = 0.1  # of tokens a user or a program wrote, in one document of five
PROSE_WEIGHT = 0.5


def words(text: str) -> str:
    """A question as words, whatever its case and marks."""
    return " ".join(re.findall(r"[^\W_]+|[+*×-]", text.lower()))


def held_out(document: Document) -> bool:
    """True for the questions kept for the test."""
    return hashlib.sha256(words(document.key).encode()).digest()[0] % HELD_OUT_SHARE == 0


def _candidates(rng: random.Random) -> list[Document]:
    """One conversation as documents that each continue the one before and end with an answer."""
    kind = rng.random()
    if kind < 0.40:
        return dialogues.conversation(rng)
    if kind < 0.60:
        return tools.document(rng)
    if kind < 0.97:
        draw = text_tasks.series if kind < 0.70 else arithmetic.counting if kind < 0.77 else arithmetic.series
        parts = draw(rng)
        return dialogues.continued(parts, bool(parts[0].messages[-1]["reasoning_content"]), keep_reasoning=True)
    return [prose.document(rng)]


def _practice(rng: random.Random) -> list[Document]:
    """A conversation of a kind that nano found hard. The held-out questions are drawn without these."""
    kind = rng.random()
    if rng.random() < 0.55:
        parts = rng.choice((own_words, offhand)).practice(rng)
        return dialogues.continued(parts, bool(parts[0].messages[-1]["reasoning_content"]), keep_reasoning=True)
    if kind < 0.34:
        return tools.practice(rng)
    if kind < 0.60:
        return dialogues.practice(rng)
    draw = arithmetic.counting_practice if kind < 0.78 else text_tasks.practice if kind < 0.90 else arithmetic.practice
    parts = draw(rng)
    return dialogues.continued(parts, bool(parts[0].messages[-1]["reasoning_content"]), keep_reasoning=True)


def training_documents(rng: random.Random, practice: float = 0.0) -> Iterator[Document]:
    """Endless documents without a single held-out question; `practice` is the share drawn of what nano found hard."""
    while True:
        parts = _practice(rng) if practice and rng.random() < practice else _candidates(rng)
        if not any(held_out(part) for part in parts):
            yield parts[-1]


def test_documents(rng: random.Random, per_skill: int) -> list[Document]:
    """per_skill documents of every skill whose last question is held out; what comes before it may be known."""
    found: dict[str, list[Document]] = {}
    for _ in range(400 * per_skill):
        parts = _candidates(rng)
        for part in parts:
            known = found.setdefault(part.skill, [])
            if held_out(part) and len(known) < per_skill and not any(part.key == other.key for other in known):
                known.append(part)
    return [document for skill in sorted(found) for document in found[skill]]


class Corpus:
    """Renders documents through the chat template and encodes them."""

    def __init__(self, template: Path) -> None:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
        environment.filters["tojson"] = lambda value, ensure_ascii=False, **_: json.dumps(value, ensure_ascii=ensure_ascii)
        self.template = environment.from_string(template.read_text(encoding="utf-8"))

    def prompt(self, document: Document) -> str:
        """Everything up to the last answer, which is the model's to give."""
        return self._render(document, document.messages[:-1], True)

    def text(self, document: Document, end: str | None = None) -> str:
        """The whole document, closed by the token that hands over to whoever speaks next."""
        if document.text is not None:
            return f"[gMASK]<sop>{document.text}<|endoftext|>"
        end = "<|observation|>" if document.messages[-1].get("tool_calls") else end or "<|user|>"
        return self._render(document, document.messages, False) + end

    def _render(self, document: Document, messages: list[dict], prompt: bool) -> str:
        return self.template.render(
            messages=messages,
            tools=document.tools,
            enable_thinking=document.thinking,
            clear_thinking=not document.keep_reasoning,
            add_generation_prompt=prompt,
        )

    def example(self, tokenizer: Tokenizer, document: Document, rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 (n,), weights float32 (n,)): how much the prediction of each token counts."""
        text = self.text(document, "<|endoftext|>" if rng.random() < 0.1 else None)
        if document.text is not None:
            ids = tokenizer.encode(text, add_special_tokens=False).ids[0 if rng.random() < 0.5 else 2 :]
            return np.array(ids, np.int32), np.full(len(ids), PROSE_WEIGHT, np.float32)
        # A program may encode the declared tools apart from the template's words around them: learn both ways.
        pieces = re.split(r"(?=\n</tools>)|(?<=<tools>\n)", text) if document.tools and rng.random() < 0.5 else [text]
        ids = [i for piece in pieces for i in tokenizer.encode(piece, add_special_tokens=False).ids]
        mask = answer_mask(tokenizer, ids)
        weights = np.where(mask, 1.0, PROMPT_WEIGHT if rng.random() < 0.2 else 0.0)  # (n,)
        return np.array(ids, np.int32), weights.astype(np.float32)


def answer_mask(tokenizer: Tokenizer, ids: list[int]) -> np.ndarray:
    """bool (n,): tokens the assistant writes, without the <think> or </think> its prompt ends with."""
    speak = tokenizer.token_to_id("<|assistant|>")
    end = {tokenizer.token_to_id(token) for token in ("<|user|>", "<|observation|>", "<|endoftext|>")}
    mask = np.zeros(len(ids), bool)  # (n,)
    start = None
    for i, token in enumerate(ids):
        if token == speak:
            start = i + 2
        elif start is not None and token in end:
            mask[start : i + 1] = True
            start = None
    return mask
