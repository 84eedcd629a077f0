"""What nano has learnt: greedy answers to held-out questions, held-out loss, and how often its next-token layer guesses right."""

import re
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from tokenizers import Tokenizer
from torch.nn import functional

from nano.architecture import Nano
from nano.corpus import Corpus, answer_mask
from nano.document import Document

_model: Nano  # of a process of greedy()
_max_tokens: int


def greedy(model: Nano, tokenizer: Tokenizer, prompts: list[str], max_tokens: int = 200, batch: int = 32) -> list[str]:
    """The most likely continuation of each prompt, special tokens included, without the token that ends it.

    Batches of prompts of similar length, each in one of as many processes as there are cores.
    """
    encoded = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(encoded[i]))
    groups = [order[start : start + batch] for start in range(0, len(order), batch)]
    answers = [""] * len(prompts)
    with ProcessPoolExecutor(mp_context=get_context("fork"), initializer=_share, initargs=(model, max_tokens)) as pool:
        for group, rows in zip(groups, pool.map(_continued, [[encoded[i] for i in group] for group in groups]), strict=True):
            for i, row in zip(group, rows, strict=True):
                answers[i] = tokenizer.decode(row, skip_special_tokens=False)
    return answers


def _share(model: Nano, max_tokens: int) -> None:
    global _model, _max_tokens
    _model, _max_tokens = model, max_tokens
    torch.set_flush_denormal(True)  # as in training


@torch.no_grad()
def _continued(group: list[list[int]]) -> list[list[int]]:
    ends = _model.trunk.config.eos_token_id
    longest = max(map(len, group))
    ids = torch.tensor([[ends[0]] * (longest - len(row)) + row for row in group])  # (rows, positions)
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in group])  # (rows, positions)
    out = _model.trunk.generate(
        input_ids=ids,
        attention_mask=seen,
        do_sample=False,
        temperature=None,
        top_p=None,
        max_new_tokens=_max_tokens,
        pad_token_id=ends[0],
        eos_token_id=ends,
    )
    written = out[:, longest:].tolist()
    return [row[: next((n for n, token in enumerate(row) if token in ends), len(row))] for row in written]


def normalized(answer: str) -> str:
    """The answer after its thinking, with runs of white space as one space; tool calls stay as they are."""
    return re.sub(r"\s+", " ", answer.split("</think>")[-1]).strip()


def expected(corpus: Corpus, document: Document) -> str:
    """The answer a document gives, as normalized() gives the model's."""
    text = corpus.text(document)
    return normalized(re.sub(r"<\|\w+\|>$", "", text[len(corpus.prompt(document)) :]))


@torch.no_grad()
def held_out_loss(model: Nano, tokenizer: Tokenizer, texts: list[str], answers_only: bool = True) -> dict[str, float]:
    """Mean loss of the trunk and of the next-token layer over the counted tokens, and how often they are right.

    A guess for token p+2 is accepted if it equals the trunk's own most likely token there, given the true tokens before.
    """
    sums: dict[str, float] = defaultdict(float)
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) < 4:
            continue
        counted = (
            torch.from_numpy(answer_mask(tokenizer, ids)) if answers_only else torch.ones(len(ids), dtype=torch.bool)
        )  # (positions,)
        tokens = torch.tensor([ids])  # (1, positions)
        states = model.trunk.model(tokens, use_cache=False).last_hidden_state
        logits = model.trunk.lm_head(states)[0]  # (positions, vocabulary)
        embeddings = model.trunk.model.embed_tokens(tokens[:, 1:-1])
        after = model.trunk.lm_head(model.next_token(embeddings, states[:, :-2], model.trunk.model.rotary_emb))[
            0
        ]  # (positions - 2, vocabulary)
        here, there = counted[1:], counted[2:]
        sums["tokens"] += float(here.sum())
        sums["guesses"] += float(there.sum())
        sums["loss"] += float(functional.cross_entropy(logits[:-1][here], tokens[0, 1:][here], reduction="sum"))
        sums["after"] += float(functional.cross_entropy(after[there], tokens[0, 2:][there], reduction="sum"))
        sums["right"] += float((logits[:-1][here].argmax(-1) == tokens[0, 1:][here]).sum())
        sums["accepted"] += float((after.argmax(-1) == logits[1:-1].argmax(-1))[there].sum())
    return {
        "tokens": int(sums["tokens"]),
        "loss": round(sums["loss"] / sums["tokens"], 4),
        "top1": round(sums["right"] / sums["tokens"], 4),
        "mtp_loss": round(sums["after"] / sums["guesses"], 4),
        "mtp_acceptance": round(sums["accepted"] / sums["guesses"], 4),
    }


def evaluate(model: Nano, tokenizer: Tokenizer, corpus: Corpus, documents: list[Document], show: int = 0) -> dict:
    """{"skills": {skill: {"right", "of", "accuracy"}}, "held_out": answers' losses, "prose": prose's losses}."""
    model.eval()
    chats = [document for document in documents if document.text is None]
    answers = greedy(model, tokenizer, [corpus.prompt(document) for document in chats])
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    shown: dict[str, int] = defaultdict(int)
    for document, answer in zip(chats, answers, strict=True):
        right = normalized(answer) == expected(corpus, document)
        tally[document.skill][0] += right
        tally[document.skill][1] += 1
        if not right and shown[document.skill] < show:
            shown[document.skill] += 1
            question = next(m["content"] for m in reversed(document.messages) if m["role"] == "user")
            print(f"  {document.skill}: {question!r}\n     expected {expected(corpus, document)!r}\n     got      {answer!r}")
    return {
        "skills": {s: {"right": r, "of": n, "accuracy": round(r / n, 4)} for s, (r, n) in sorted(tally.items())},
        "held_out": held_out_loss(model, tokenizer, [corpus.text(document) for document in chats]),
        "prose": held_out_loss(
            model, tokenizer, [corpus.text(document) for document in documents if document.text is not None], answers_only=False
        ),
    }


def table(results: dict) -> str:
    """The evaluation as a Markdown table."""
    rows = [f"| {skill} | {row['of']} | {100 * row['accuracy']:.1f} % |" for skill, row in results["skills"].items()]
    return "| skill | held-out questions | right |\n|---|---|---|\n" + "\n".join(rows)
