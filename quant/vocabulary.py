"""The tokenizer of a checkpoint as a GGUF file holds it: one text and one type per token id, and the merges in order.

Only byte-level BPE with a pre-tokenizer that GGUF has a name for: another one would cut text differently without a word.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.errors import UserError, brief
from quant.strict_json import MAX_TOKENIZER, read_json_object

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_UNSAID = ("lstrip", "rstrip", "single_word")  # flags of an added token; GLM's own tokens have none of them
_MAX_ADDED = 256  # characters, as when the file is read

# GLM's pre-tokenizer, as tokenizer.json writes it and with the case-insensitive group written out; GGUF's name is "glm4".
_GLM_TAIL = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GLM_REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _GLM_TAIL
_GLM_REGEXES = {GLM_REGEX, r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|" + _GLM_TAIL}


@dataclass(frozen=True)
class Vocabulary:
    """tokens[id] is a token's text (byte-level alphabet, except for added tokens), types[id] GGUF's token type."""

    tokens: list[str]
    types: list[int]
    merges: list[str]  # "left right"
    pre: str
    notes: list[str] = field(default_factory=list)  # lines the user should see
    ids: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {text: i for i, text in enumerate(self.tokens) if self.types[i] != UNUSED})


def read_vocabulary(path: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.json, padded with unused [PAD<id>] up to vocab_size (the rows of the embedding).

    Raises UserError for anything but byte-level BPE with GLM's or GPT-2's pre-tokenizer, and for ids, merges or texts
    that contradict each other.
    """
    if not path.is_file():
        raise UserError(f"{path.parent} has no tokenizer.json; a model without its tokenizer cannot be converted", "missing")
    source = read_json_object(path, MAX_TOKENIZER)
    model = source.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise UserError(f"{path}: no model with a vocabulary in it; glmrun expects a byte-level BPE tokenizer")
    _check_model(path, model)
    _check_normalizer(path, source.get("normalizer"))
    pre = _pre_tokenizer_name(path, source.get("pre_tokenizer"))
    texts: list[str | None] = [None] * vocab_size
    types = [UNUSED] * vocab_size
    for text, i in model["vocab"].items():
        _place(path, texts, i, text)
        types[i] = NORMAL
    flagged = list[str]()
    for token in _added_tokens(path, source.get("added_tokens") or []):
        text, i = token["content"], token["id"]
        _place(path, texts, i, text)
        types[i] = CONTROL if token.get("special") else USER_DEFINED
        flagged += [text] if any(token.get(flag) for flag in _UNSAID) else []
    tokens = [f"[PAD{i}]" if text is None else text for i, text in enumerate(texts)]
    if len(set(tokens)) < len(tokens):
        text, n = Counter(tokens).most_common(1)[0]
        raise UserError(f"{path}: the token {brief(text)} has {n} ids; tokens must be different")
    merges = _merges(path, model)
    made = {merge.replace(" ", "") for merge in merges}
    if any(types[i] == NORMAL and len(text) > 1 and text not in made for text, i in model["vocab"].items()):
        pre = _with_words(path, pre, bool(model.get("ignore_merges")))
    said = f"tokenizer.json sets {' or '.join(_UNSAID)} of the added tokens {brief(', '.join(flagged))}, which GGUF cannot say"
    return Vocabulary(tokens, types, merges, pre, [f"{said}: text beside them may be cut otherwise"] if flagged else [])


def _with_words(path: Path, pre: str, ignore_merges: bool) -> str:
    """The name where some words of the vocabulary are no merge's: whether text gives them is a part of GGUF's names."""
    if pre == "glm4":
        return pre if ignore_merges else "chatglm-bpe"
    if ignore_merges:
        raise UserError(f"{path}: ignore_merges is true beside GPT-2's pre-tokenizer, and GGUF has no name for the two together")
    return pre


def _check_model(path: Path, model: dict[str, Any]) -> None:
    # tokenizers writes "type"; very old files leave it out, and only BPE has merges.
    if model.get("type", "BPE") != "BPE" or "merges" not in model:
        kind = brief(model.get("type", "not BPE"))
        raise UserError(f"{path}: the tokenizer is {kind}; glmrun converts byte-level BPE tokenizers")
    for key in ("byte_fallback", "fuse_unk", "dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"{path}: the tokenizer's {key} is {brief(model[key])}; glmrun converts byte-level BPE without it")


def _check_normalizer(path: Path, normalizer: Any) -> None:
    if normalizer and not (isinstance(normalizer, dict) and normalizer.get("normalizers") == []):
        kind = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
        raise UserError(f"{path}: the tokenizer normalizes text ({str(kind)[:40]}); GLM's does not, and GGUF cannot say it")


def _pre_tokenizer_name(path: Path, pre_tokenizer: Any) -> str:
    """GGUF's name for how the tokenizer cuts text before BPE."""
    steps = list(_flatten(pre_tokenizer))
    kinds = [step.get("type") for step in steps]
    if kinds and kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        gpt2 = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and gpt2:
            return "gpt-2"
        if kinds == ["Split", "ByteLevel"] and not gpt2:
            split, pattern = steps[0], steps[0].get("pattern")
            # Keeping the matches and dropping the gaps is the same as isolating them: the pattern leaves no gaps.
            whole = (split.get("behavior"), bool(split.get("invert"))) in (("Isolated", False), ("Removed", True))
            if whole and isinstance(pattern, dict) and str(pattern.get("Regex")) in _GLM_REGEXES:
                return "glm4"
    found = " + ".join(str(kind)[:40] for kind in kinds[:8]) or "none"
    raise UserError(
        f"{path}: the pre-tokenizer ({found}) is neither GLM's nor GPT-2's; glmrun converts byte-level BPE cut by these"
    )


def _flatten(step: Any) -> Iterator[dict[str, Any]]:
    if isinstance(step, dict):
        if step.get("type") == "Sequence":
            inner = step.get("pretokenizers")
            for part in inner if isinstance(inner, list) else []:
                yield from _flatten(part)
        else:
            yield step


def _added_tokens(path: Path, added: Any) -> Iterator[dict[str, Any]]:
    for token in added if isinstance(added, list) else [added]:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or type(token.get("id")) is not int:
            raise UserError(f"{path}: an added token without text and id: {str(token)[:80]}")
        if len(token["content"]) > _MAX_ADDED:
            raise UserError(f"{path}: an added token of {len(token['content']):,} characters; glmrun takes up to {_MAX_ADDED}")
        yield token


def _place(path: Path, texts: list[str | None], i: Any, text: str) -> None:
    if type(i) is not int or i < 0:
        raise UserError(f"{path}: token {brief(text)} has the id {brief(i)}; glmrun expects a whole number from 0")
    if i >= len(texts):
        raise UserError(f"{path}: token {brief(text)} has the id {brief(i)}, but config.json says vocab_size is {len(texts)}")
    if texts[i] not in (None, text):
        raise UserError(f"{path}: tokens {brief(texts[i])} and {brief(text)} share the id {i}")
    texts[i] = text


def _merges(path: Path, model: dict[str, Any]) -> list[str]:
    """The merges as "left right"; tokenizer.json has them so, or as pairs."""
    merges, known = [], model["vocab"]
    source: Sequence[Any] = model["merges"] if isinstance(model["merges"], list) else [model["merges"]]
    for merge in source:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) and part in known for part in pair)):
            raise UserError(f"{path}: the merge {str(merge)[:80]!r} does not join two tokens of the vocabulary")
        if pair[0] + pair[1] not in known:
            raise UserError(f"{path}: the merge {str(merge)[:80]!r} does not join two tokens of the vocabulary to a third")
        merges.append(f"{pair[0]} {pair[1]}")
    return merges
