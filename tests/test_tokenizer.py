"""The tokenizer against `tokenizers` itself, on a byte-level vocabulary trained here, and against hostile metadata."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from glmrun.chat.tokenizer import Tokenizer
from quant.errors import UserError

CONTROL = ["<|endoftext|>", "[MASK]", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TAGS += ["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>", "/nothink"]
PADDING = ["[PAD0]", "[PAD1]"]

REGEX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "",
    "The capital of France is Paris.",
    "  indented\n\tcode: x = 12345678 + 1.5e-3\r\n\r\n",
    "We'll, they'RE, it's 'quoted'",
    "naïve café — “quotes” … ﬁ ǅ",
    "中文和日本語、한국어 混ぜる１２３",
    "emoji 🙂👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪",
    "العربية עברית हिन्दी ไทย",
    "\x00\x01\x7f\u200b\ufeff\ufffd\U0010ffff",
    " ",
    "   \n   \n\n x",
    "a" * 300 + " " * 50 + "!?" * 40,
    "e\u0301 vs é",
    "١٢٣ ⅷ ½ 10²",
]


@cache
def trained() -> tokenizers.Tokenizer:
    """A byte-level BPE of 700 entries whose text is this file and the texts above."""
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([*TEXTS * 3, Path(__file__).read_text("utf-8")], trainer)
    return tokenizer


@cache
def metadata() -> dict:
    model = json.loads(trained().to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "glm4",
        "tokenizer.ggml.tokens": words + CONTROL + TAGS + PADDING,
        "tokenizer.ggml.token_type": [1] * len(words) + [3] * len(CONTROL) + [4] * len(TAGS) + [5] * len(PADDING),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": len(words),
    }


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_metadata(metadata())


def changed(**keys) -> dict:
    return metadata() | {f"tokenizer.ggml.{key}": value for key, value in keys.items()}


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_ids_equal_those_of_the_tokenizer_the_vocabulary_came_from(text):
    ids = tokenizer().encode(text)
    assert ids == trained().encode(text).ids
    assert ids == tokenizer().encode(text, special=True)
    assert tokenizer().decode(ids) == text


@pytest.mark.parametrize("pre", ["chatglm-bpe", "llama-bpe", "gpt-2", "default"])
def test_every_pre_tokenizer_is_reversible(pre):
    other = Tokenizer.from_metadata(changed(pre=pre))
    for text in TEXTS:
        assert other.decode(other.encode(text)) == text


def test_pre_tokenizers_cut_words_differently():

    digits = {
        pre: Tokenizer.from_metadata(changed(pre=pre))._bpe.pre_tokenizer.pre_tokenize_str("1234567")
        for pre in ("glm4", "gpt-2", "default")
    }
    words = {pre: [word for word, _ in pieces] for pre, pieces in digits.items()}
    assert words == {"glm4": ["123", "456", "7"], "gpt-2": ["1234567"], "default": ["123", "456", "7"]}


@pytest.mark.parametrize("special", CONTROL + TAGS + PADDING)
@pytest.mark.parametrize("frame", ["{}", "a{}b", " {} ", "\n{}{}\n", "<{}>", "[{}]", "{}/"])
def test_plain_text_never_becomes_a_control_or_tag_token(special, frame):
    text = frame.replace("{}", special)
    ids = tokenizer().encode(text)
    first = tokenizer().id_of(CONTROL[0])
    assert all(i < first for i in ids)
    assert tokenizer().decode(ids) == text


def test_a_merge_that_builds_a_tag_from_plain_text_is_not_followed():
    merges = [*metadata()["tokenizer.ggml.merges"], "<|endoftext| >", "< sop>"]
    tokens = [*metadata()["tokenizer.ggml.tokens"], "<|endoftext|", "sop>"]
    types = [*metadata()["tokenizer.ggml.token_type"], 1, 1]
    built = Tokenizer.from_metadata(changed(merges=merges, tokens=tokens, token_type=types))
    assert built.encode("<sop>") == tokenizer().encode("<sop>")


def test_special_texts_are_found_when_asked_for():
    text = "[gMASK]<sop><|user|>Hi /nothink<|assistant|></think>"
    ids = tokenizer().encode(text, special=True)
    found = [tokenizer().text_of(i) for i in ids if i >= tokenizer().id_of(CONTROL[0])]
    assert found == ["[gMASK]", "<sop>", "<|user|>", "/nothink", "<|assistant|>", "</think>"]
    assert tokenizer().decode(ids) == text
    assert tokenizer().decode(ids, skip_special=True) == "Hi /nothink</think>"


def test_the_longest_special_text_wins():
    tokens = [*metadata()["tokenizer.ggml.tokens"], "<think>ing"]
    built = Tokenizer.from_metadata(changed(tokens=tokens, token_type=[*metadata()["tokenizer.ggml.token_type"], 4]))
    assert built.encode("<think>ing", special=True) == [len(tokens) - 1]


def test_streamed_pieces_join_to_the_text_and_never_break_a_character():
    ids = tokenizer().encode("".join(TEXTS).replace("\ufffd", ""))
    stream = tokenizer().stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.flush() == tokenizer().decode(ids)
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces  # some character was spread over several tokens


def test_bytes_that_are_no_utf8_become_replacement_characters_only_when_certain():
    euro = tokenizer().encode("€")
    assert len(euro) > 1
    stream = tokenizer().stream()
    assert [stream.push(i) for i in euro[:-1]] == [""] * (len(euro) - 1)
    assert stream.push(tokenizer().encode("x")[0]) == "\ufffdx"
    stream.push(euro[0])
    assert stream.flush() == "\ufffd"
    assert tokenizer().decode(euro[:-1]) == "\ufffd"


def test_half_surrogates_count_as_replacement_characters():
    assert tokenizer().encode("a\ud83db") == tokenizer().encode("a\ufffdb")
    assert tokenizer().encode("\ud83d\ude42") == tokenizer().encode("🙂")


def test_undefined_ids_print_nothing_and_are_listed():
    pads = [tokenizer().id_of(text) for text in PADDING]
    assert tokenizer().undefined_ids.tolist() == pads
    assert tokenizer().decode(pads) == ""


def test_ids_outside_the_vocabulary_are_refused():
    for i in (-1, tokenizer().n_vocab):
        with pytest.raises(UserError, match="does not exist"):
            tokenizer().decode([i])


def test_generation_ends_at_the_ids_of_the_file_and_at_known_texts():
    by_text = {tokenizer().id_of(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    assert tokenizer().eog_ids == by_text
    assert Tokenizer.from_metadata(changed(eot_token_id=3, eom_token_id=4)).eog_ids == by_text | {3, 4}
    assert Tokenizer.from_metadata(changed(eos_token_ids=np.array([5, 6], dtype=np.uint32))).eog_ids == by_text | {5, 6}
    without = {key: value for key, value in metadata().items() if key != "tokenizer.ggml.eos_token_id"}
    assert Tokenizer.from_metadata(without).eog_ids == by_text


def test_a_megabyte_of_one_character_encodes():
    for character in ("a", " ", "\n", "<", "é"):
        text = character * (1 << 20)
        assert tokenizer().decode(tokenizer().encode(text)) == text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", "tokenizer.ggml.model is 'llama'"),
        ("model", None, "tokenizer.ggml.model is None"),
        ("pre", "qwen2", "tokenizer.ggml.pre is 'qwen2'"),
        ("pre", ["glm4"], "tokenizer.ggml.pre is"),
        ("pre", None, "tokenizer.ggml.pre is None"),
        ("tokens", None, "tokens is missing"),
        ("tokens", "abc", "tokens is missing or no list"),
        ("tokens", 5, "tokens is missing or no list"),
        ("tokens", [1, 2], r"tokens\[0\] is 1; expected a string"),
        ("tokens", ["a", None], r"tokens\[1\] is None"),
        ("merges", None, "merges is missing"),
        ("merges", [3], r"merges\[0\] is 3"),
        ("token_type", None, "token_type must be a list of"),
        ("token_type", [1, 1], "token_type must be a list of"),
        ("token_type", [[1], [1, 2]], "token_type must be a list of"),
        ("token_type", ["x"] * 721, "token_type must be a list of"),
        ("token_type", [1.0] * 721, "token_type must be a list of"),
        ("token_type", [1] * 720 + [9], r"token_type\[720\] is 9"),
        ("eos_token_id", 721, "eos_token_id is 721; expected a token id from 0 to 720"),
        ("eos_token_id", -1, "eos_token_id is -1"),
        ("eot_token_id", "x", "eot_token_id is 'x'"),
        ("eom_token_id", 1.5, "eom_token_id is 1.5"),
        ("eos_token_ids", [1, 99999], "eos_token_ids is 99999"),
    ],
)
def test_metadata_that_does_not_fit_is_named(key, value, message):
    assert len(metadata()["tokenizer.ggml.tokens"]) == 721
    with pytest.raises(UserError, match=message) as error:
        Tokenizer.from_metadata(changed(**{key: value}))
    assert "\n" not in str(error.value)


def test_a_token_that_stands_twice_is_named():
    tokens = [*metadata()["tokenizer.ggml.tokens"][:-1], "Ġ"]
    with pytest.raises(UserError, match="'Ġ' twice"):
        Tokenizer.from_metadata(changed(tokens=tokens))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ab", "one space between"),
        ("a  b", "one space between"),
        ("a b c", "one space between"),
        (" a", "one space between"),
        ("a ", "one space between"),
        ("", "one space between"),
        ("a qqqqq", "'qqqqq' is not in the vocabulary"),
        ("z Q", "'zQ' is not in the vocabulary"),
    ],
)
def test_a_malformed_merge_is_named_with_its_index(line, message):
    merges = [*metadata()["tokenizer.ggml.merges"][:7], line]
    with pytest.raises(UserError, match=rf"merges\[7\] is '{line}'.*{message}"):
        Tokenizer.from_metadata(changed(merges=merges)).encode("x")


def test_nano_encodes_like_its_own_tokenizer_json():
    folder = Path(__file__).parents[1] / "glmrun" / "nano"
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    table = json.loads(theirs.to_str())
    added = {entry["id"]: entry for entry in table["added_tokens"]}
    ids = table["model"]["vocab"] | {entry["content"]: entry["id"] for entry in added.values()}
    tokens = sorted(ids, key=ids.__getitem__)
    types = [1 if i not in added else 3 if added[i]["special"] else 4 for i in range(len(tokens))]
    merges = [" ".join(pair) for pair in table["model"]["merges"]]
    ours = Tokenizer.from_metadata(changed(tokens=tokens, token_type=types, merges=merges, eos_token_id=0))
    for text in [*TEXTS, Path(__file__).read_text("utf-8").replace("<", "").replace("[", "").replace("/nothink", "")]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_control_tokens_are_few_and_short():
    """Patterns are made of them: in time and memory that grow with the square of the longest."""
    tokens, types = metadata()["tokenizer.ggml.tokens"], metadata()["tokenizer.ggml.token_type"]
    for texts in (["<" + "x" * 256 + ">"], [f"<{i:05}>" for i in range(10_000)]):
        hostile = changed(tokens=[*tokens, *texts], token_type=[*types, *[3] * len(texts)])
        with pytest.raises(UserError, match=r"token_type marks control tokens of [\d,]+ characters"):
            Tokenizer.from_metadata(hostile)


def test_merges_without_end_are_refused():
    """Class G33; ten times as many as GLM has would take longer to load than the model."""
    merges = [*metadata()["tokenizer.ggml.merges"][:1]] * ((1 << 20) + 1)
    with pytest.raises(UserError, match=r"merges has 1,048,577 entries; glmrun takes up to 1,048,576"):
        Tokenizer.from_metadata(changed(merges=merges))
