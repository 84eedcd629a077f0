"""A vocabulary with the shape of GLM-4.7-Flash's: 154,820 byte-level tokens, 321,649 merges, the special tokens at their real ids.

The real tokenizer.json cannot be shipped; this one has the same sizes and the same special tokens, and made-up words of up to
four letters. It can encode any text and every token can be reached by merges.
"""

import itertools
import random

from quant.vocabulary import CONTROL, GLM_REGEX, NORMAL, UNUSED, USER_DEFINED, Vocabulary

N_TOKENS, N_MERGES, VOCAB_SIZE = 154_820, 321_649, 154_880

# In the order of their ids, from 154,820; those that stand in an answer's text are no control tokens.
# fmt: off
ADDED_TOKENS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
    "<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>",
    "<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
    "<tool_response>", "</tool_response>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink",
    "<|begin_of_box|>", "<|end_of_box|>", "<|image|>", "<|video|>",
]
_IN_TEXT = {*ADDED_TOKENS[21:32]}  # <think> ... /nothink
# fmt: on


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE, in the order of GPT-2's ids (a line feed is number 198)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def make_vocabulary(seed: int = 0) -> Vocabulary:
    """The vocabulary, the same for the same seed."""
    letters, space = "abcdefghijklmnopqrstuvwxyz", "Ġ"  # "Ġ" is the space of the byte alphabet
    words = ["".join(w) for n in (2, 3) for w in itertools.product(letters, repeat=n)]
    words += [space + "".join(w) for n in (1, 2, 3) for w in itertools.product(letters, repeat=n)]
    long = random.Random(seed).sample(range(26**4), N_TOKENS - 256 - len(words))
    words += [letters[n // 17576] + letters[n // 676 % 26] + letters[n // 26 % 26] + letters[n % 26] for n in long]
    # Every word of three letters or fewer is a token, so all ways to cut a word of four are merges, too.
    first = [f"{w[:-1]} {w[-1]}" for w in words]
    others = [f"{w[:i]} {w[i:]}" for w in words for i in range(1, len(w) - 1)]
    merges = first + others[: N_MERGES - len(first)]
    pads = range(N_TOKENS + len(ADDED_TOKENS), VOCAB_SIZE)
    tokens = byte_alphabet() + words + ADDED_TOKENS + [f"[PAD{i}]" for i in pads]
    types = [NORMAL] * N_TOKENS + [USER_DEFINED if t in _IN_TEXT else CONTROL for t in ADDED_TOKENS] + [UNUSED] * len(pads)
    return Vocabulary(tokens, types, merges, "glm4")


def tokenizer_json(vocabulary: Vocabulary) -> dict:
    """The same vocabulary as the object in a tokenizer.json."""
    added = [(i, text) for i, text in enumerate(vocabulary.tokens) if vocabulary.types[i] in (CONTROL, USER_DEFINED)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    split = {"type": "Split", "pattern": {"Regex": GLM_REGEX}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": text, "special": vocabulary.types[i] == CONTROL, **flags} for i, text in added],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": {text: i for i, text in enumerate(vocabulary.tokens) if vocabulary.types[i] == NORMAL},
            "merges": [merge.split(" ") for merge in vocabulary.merges],
        },
    }
