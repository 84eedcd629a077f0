"""Text to token ids and back, from the vocabulary that stands in a GGUF file.

Byte-level BPE: a regular expression cuts text into words, each word's UTF-8 bytes are spelled in an alphabet of 256 printable
characters, and merges join neighbours by rank. The merging is done by `tokenizers`; decoding needs only the token table.

Two kinds of text never mix here. encode(text) treats everything as plain text: "<|user|>" typed by a user becomes the tokens of
its letters. Only encode(text, special=True) recognises the control and tag tokens, and only templates are encoded that way.
"""

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from quant.errors import UserError, brief

# llama.cpp's token types (tokenizer.ggml.token_type).
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 3, 4, 5, 6
_KNOWN_TYPES = range(1, 7)

MAX_MERGES = 1 << 20  # GLM has 321,649
MAX_SPECIAL, MAX_SPECIALS = 256, 1 << 16  # characters of one control or tag token, and of all: patterns are made of them

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# tokenizer.ggml.pre -> (regular expressions applied one after another, whether a word that is a token skips the merges).
_PRE_TOKENIZERS: dict[str, tuple[tuple[str, ...], bool]] = {
    "glm4": ((_LLAMA3,), True),
    "chatglm-bpe": ((_LLAMA3,), False),
    "llama-bpe": ((_LLAMA3,), True),
    "gpt-2": ((_GPT2,), False),
    "default": ((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"), False),
}

# GLM ends its turn with any of these; files whose metadata names only one of them exist, so they are also found by text.
_END_TEXTS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_END_KEYS = ("eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id")
_PADDING = re.compile(r"\[PAD\d+\]")


def _byte_alphabet() -> dict[int, str]:
    """{byte: character} of GPT-2: printable Latin-1 stands for itself, the rest for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_TO_BYTES = {ord(letter): byte for byte, letter in _byte_alphabet().items()}  # for str.translate: alphabet -> Latin-1


class Tokenizer:
    """The vocabulary of one file. Make it with from_metadata(), which proves everything used later.

    n_vocab         number of tokens
    eog_ids         every id that ends generation
    undefined_ids   int64 array of ids that stand for nothing and must never be sampled
    markers         {"bos_token": text, "eos_token": text}, as chat templates call them; those that the file names
    """

    def __init__(self, ids: dict[str, int], types: np.ndarray, merges: list[str], pre: str, eog_ids: Iterable[int]) -> None:
        self._ids, self._types, self._merges, self._pre = ids, types, merges, pre
        self.markers: dict[str, str] = {}
        self._tokens = tokens = list(ids)
        self.n_vocab = len(tokens)
        self.eog_ids = frozenset(eog_ids)
        unused = set(np.flatnonzero(types == _UNUSED).tolist())
        padding = {i for i, token in enumerate(tokens) if token.startswith("[PAD") and _PADDING.fullmatch(token)}
        self.undefined_ids = np.array(sorted(unused | padding), dtype=np.int64)  # (n_undefined,)
        self._undefined = frozenset(self.undefined_ids.tolist())
        self.special_texts = tuple(tokens[i] for i in np.flatnonzero((types == _CONTROL) | (types == _USER_DEFINED)) if tokens[i])

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer described by a GGUF file's tokenizer.ggml.* keys; raises UserError for whatever does not fit together."""
        model = metadata.get("tokenizer.ggml.model")
        if not isinstance(model, str) or model != "gpt2":
            raise UserError(f"tokenizer.ggml.model is {brief(model)}; glmrun reads byte-level BPE, which is called 'gpt2'")
        pre = metadata.get("tokenizer.ggml.pre")
        if not isinstance(pre, str) or pre not in _PRE_TOKENIZERS:
            raise UserError(f"tokenizer.ggml.pre is {brief(pre)}; glmrun knows {', '.join(_PRE_TOKENIZERS)}")
        tokens = _strings(metadata, "tokenizer.ggml.tokens")
        types = _token_types(metadata, len(tokens))
        ids = dict(zip(tokens, range(len(tokens)), strict=True))
        if len(ids) != len(tokens):
            i, token = next((i, token) for i, token in enumerate(tokens) if ids[token] != i)
            raise UserError(f"tokenizer.ggml.tokens has {brief(token)} twice, as {i} and {ids[token]}; tokens must be different")
        if not np.isin(types, (_NORMAL, _BYTE)).any():
            raise UserError("tokenizer.ggml.token_type marks no token as an ordinary one; no text could be encoded")
        merges = _strings(metadata, "tokenizer.ggml.merges", least=0)
        if len(merges) > MAX_MERGES:
            raise UserError(f"tokenizer.ggml.merges has {len(merges):,} entries; glmrun takes up to {MAX_MERGES:,}")
        found = cls(ids, types, merges, pre, _eog_ids(metadata, ids))
        named = {name: metadata.get(f"tokenizer.ggml.{name}_id") for name in ("bos_token", "eos_token")}
        found.markers = {name: tokens[i] for name, i in named.items() if type(i) is int and 0 <= i < len(tokens)}
        lengths = [len(text) for text in found.special_texts]
        if max(lengths, default=0) > MAX_SPECIAL or sum(lengths) > MAX_SPECIALS:
            raise UserError(
                f"tokenizer.ggml.token_type marks control tokens of {sum(lengths):,} characters, the longest of {max(lengths):,}; "
                f"glmrun takes up to {MAX_SPECIALS:,}, {MAX_SPECIAL} each"
            )
        return found

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text.

        special   False: all of it is plain text and gives only ordinary tokens, whatever it spells.
                  True: the texts of control and tag tokens give those tokens (longest first), the rest is plain text.
        Half surrogate pairs, which no UTF-8 can hold, count as U+FFFD.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if not special or not self.special_texts:
            return self._encode_plain(text)
        ids: list[int] = []
        for i, piece in enumerate(self.special_pattern.split(text)):
            if i % 2:
                ids.append(self._ids[piece])
            elif piece:
                ids += self._encode_plain(piece)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD. skip_special leaves out control tokens."""
        parts = [b"" if skip_special and self.is_control(i) else self.bytes_of(i) for i in ids]
        return b"".join(parts).decode("utf-8", "replace")

    def stream(self) -> "TextStream":
        """A decoder that is given one id at a time and returns whole characters only."""
        return TextStream(self)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes one token stands for; undefined ids stand for none."""
        self._check(token_id)
        if token_id in self._undefined:
            return b""
        token = self._tokens[token_id]
        if self._types[token_id] not in (_CONTROL, _USER_DEFINED):
            try:
                return token.translate(_TO_BYTES).encode("latin-1")
            except UnicodeEncodeError:  # not spelled in the byte alphabet: the token is its own text
                pass
        return token.encode("utf-8", "replace")

    def id_of(self, token_text: str) -> int | None:
        """The id of the token with exactly this text, None if there is none."""
        return self._ids.get(token_text)

    def text_of(self, token_id: int) -> str:
        """A token as it stands in the vocabulary (the inverse of id_of)."""
        self._check(token_id)
        return self._tokens[token_id]

    def is_control(self, token_id: int) -> bool:
        """True for tokens that steer the model and are no text (roles, end of text)."""
        self._check(token_id)
        return bool(self._types[token_id] == _CONTROL)

    @cached_property
    def special_pattern(self) -> re.Pattern[str]:
        """Matches the text of any control or tag token, the longest that fits; one group, so that split() keeps the matches."""
        longest_first = sorted(self.special_texts, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else r"((?!))")

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < self.n_vocab:
            raise UserError(f"token id {token_id} does not exist; the vocabulary has {self.n_vocab} tokens", "usage")

    def _encode_plain(self, text: str) -> list[int]:
        return self._bpe.encode_batch_fast([text], add_special_tokens=False)[0].ids  # the only way in that computes no offsets

    @cached_property
    def _bpe(self) -> Any:
        """The `tokenizers` pipeline over the ordinary tokens only: what it does not contain, plain text cannot become.

        This matters also for texts that are a single word to the regular expression, such as "/nothink".
        Built at the first encode: half a second at GLM's size that opening and inspecting a file should not cost.
        """
        import tokenizers
        from tokenizers import models, pre_tokenizers

        patterns, ignore_merges = _PRE_TOKENIZERS[self._pre]
        ordinary = self._ids.copy()
        for i in np.flatnonzero((self._types == _CONTROL) | (self._types == _USER_DEFINED) | (self._types == _UNUSED)):
            del ordinary[self._tokens[i]]
        pairs: list[Any] = [tuple(line.split(" ")) for line in self._merges]
        try:
            model = models.BPE(vocab=ordinary, merges=pairs, ignore_merges=ignore_merges)
        except Exception:  # a merge it cannot use: say which, or leave out those that would build a control token from plain text
            pairs = _checked_merges(self._merges, self._ids, ordinary)
            model = models.BPE(vocab=ordinary, merges=pairs, ignore_merges=ignore_merges)
        bpe = tokenizers.Tokenizer(model)
        splits = [pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated") for pattern in patterns]
        bpe.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        return bpe


class TextStream:
    """Decodes ids as they come; a character whose bytes are spread over several tokens appears when it is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, possibly none."""
        return self._decoder.decode(self._tokenizer.bytes_of(token_id))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never completed."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def _strings(metadata: Mapping[str, Any], key: str, least: int = 1) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)) or len(value) < least:
        raise UserError(f"{key} is missing or no list of strings; the file has no usable tokenizer")
    strings = value if type(value) is list else list(value)
    if set(map(type, strings)) - {str}:
        i = next(i for i, string in enumerate(strings) if type(string) is not str)
        raise UserError(f"{key}[{i}] is {brief(strings[i])}; expected a string")
    return strings


def _token_types(metadata: Mapping[str, Any], n_tokens: int) -> np.ndarray:
    key = "tokenizer.ggml.token_type"
    try:
        types = np.asarray(metadata[key])
    except (KeyError, ValueError):
        types = np.empty(0)
    if types.shape != (n_tokens,) or types.dtype.kind not in "iu":
        raise UserError(
            f"{key} must be a list of {n_tokens} whole numbers, one per token; without it text could pass for control tokens"
        )
    wrong = np.flatnonzero((types < _KNOWN_TYPES.start) | (types >= _KNOWN_TYPES.stop))
    if len(wrong):
        raise UserError(f"{key}[{wrong[0]}] is {types[wrong[0]]}; expected 1 to {_KNOWN_TYPES.stop - 1}")
    return types.astype(np.int8)  # (n_tokens,)


def _checked_merges(lines: list[str], ids: Mapping[str, int], ordinary: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for i, line in enumerate(lines):
        a, _, b = line.partition(" ")
        if not a or not b or " " in b:
            raise UserError(f"tokenizer.ggml.merges[{i}] is {brief(line)}; expected two tokens with one space between them")
        for token in (a, b, a + b):
            if token not in ids:
                raise UserError(f"tokenizer.ggml.merges[{i}] is {brief(line)}, but {brief(token)} is not in the vocabulary")
        if a in ordinary and b in ordinary and a + b in ordinary:
            merges.append((a, b))
    return merges


def _eog_ids(metadata: Mapping[str, Any], ids: Mapping[str, int]) -> set[int]:
    found = {ids[text] for text in _END_TEXTS if text in ids}
    for name in _END_KEYS:
        key = f"tokenizer.ggml.{name}"
        value = metadata.get(key)
        if value is None:
            continue
        for i in np.atleast_1d(np.asarray(value)).tolist():
            if not isinstance(i, int) or isinstance(i, bool) or not 0 <= i < len(ids):
                raise UserError(f"{key} is {brief(i)}; expected a token id from 0 to {len(ids) - 1}")
            found.add(i)
    return found
