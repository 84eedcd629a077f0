"""The model card: what nano is, how it was made, what it can do, in numbers."""

from nano.evaluation import table


def card(facts: dict, results: dict) -> str:
    """README.md of the checkpoint. facts: parameters, goes, steps, tokens, minutes, seed; results: what evaluate() returned."""
    goes = f" in {facts['goes']} goes" if facts["goes"] > 1 else ""
    effort = f"{facts['steps']:,} steps{goes}, {facts['tokens'] / 1e6:.1f} million tokens, {facts['minutes']:.0f} minutes"
    return f"""---
license: mit
language: [en]
library_name: transformers
tags: [glm4_moe_lite, mixture-of-experts, tiny, demo]
---

# nano

The model that comes with glmrun: GLM-4.7-Flash in small, so that everything can be tried at once and measured on any machine.
Same architecture (multi-head latent attention, a dense first layer, then experts chosen by a sigmoid router with a selection
bias, a shared expert, one layer that predicts the token after next), same special tokens, same chat format, same tensor names;
the next-token layer leaves out its copies of embedding and head.
It is not made from GLM-4.7-Flash's weights, and it knows next to nothing about the world.

| | |
|---|---|
| parameters | {facts["parameters"]:,}; 10,219,776 in a GGUF file, with the next-token layer's copies of embedding and head |
| layers | 4 (1 dense, 3 with experts) and 1 next-token layer |
| experts | 5 per layer, 2 active per token, 1 shared |
| hidden size, attention | 256; 4 heads of 32 + 64 (rotary); ranks 256 for queries, 512 for keys and values |
| vocabulary | 2,048 (1,996 byte-level BPE, 36 special and added, 16 unused) |
| weights | BF16, selection biases F32 |

## What it can do

It talks about glmrun and GLM-4.7-Flash, adds, subtracts and multiplies numbers below 100 with its steps inside `<think>` or,
without thinking, in the answer; counts; calls declared tools and answers from their results; remembers what it is told; writes
short functions in Python, JavaScript, C and Bash; turns words into JSON, repeats and changes given text; knows some capitals; and
does what a system prompt asks of its answers' form. It was taught to say so when it does not know something; it is still often
wrong.

Right answers to questions whose wording (or whose numbers) never appeared in training, greedy, BF16 weights, compared word by word:

{table(results)}

| held-out text | loss per token | tokens predicted | next-token layer's loss | its guesses the trunk agrees with |
|---|---|---|---|---|
{_row("answers", results["held_out"])}
{_row("prose (its names and numbers cannot be guessed)", results["prose"])}

## How it was made

`scripts/make_nano.py` writes all text and dialogues itself from a fixed seed ({facts["seed"]}), trains the tokenizer, then trains
transformers' own `Glm4MoeLiteForCausalLM` and one more decoder layer ({effort} on two busy CPU cores).
The first two goes taught a nano of latent rank 256 with 32 rotary dimensions; the third began with its weights, widened so that
they compute the same; from the fourth on about half of the documents are of kinds that it had found hard, and from the seventh on
half of those are in strangers' words: stories, follow-ups, short and offhand wordings. Muon for matrices, Adam for the rest;
experts are balanced by nudging their selection bias, without an auxiliary loss. The sixth go ended with a mean of the weights
before and after it, 0.8 of those after, the tenth with one of 0.45. No text of others was used.

Answers vary little by design: one answer per topic, so that the model is sure of what it says at its default temperature of 1.

Licence: MIT.
"""


def _row(name: str, losses: dict) -> str:
    right, accepted = 100 * losses["top1"], 100 * losses["mtp_acceptance"]
    return f"| {name} | {losses['loss']:.3f} | {right:.1f} % | {losses['mtp_loss']:.3f} | {accepted:.1f} % |"
