"""nano's tokenizer: byte-level BPE over its own text, GLM's pre-tokenizer, GLM's special and added tokens."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MEDIA = [f"<|{edge}_of_{kind}|>" for kind in ("image", "video", "audio", "transcription") for edge in ("begin", "end")]
CONTROL = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    *_MEDIA, "<|code_prefix|>", "<|code_middle|>", "<|code_suffix|>",
]  # fmt: skip
VISIBLE = [f"<{slash}{tag}>" for tag in ("think", "tool_call", "tool_response", "arg_key", "arg_value") for slash in ("", "/")] + [
    "/nothink"
]
LAST = ["<|begin_of_box|>", "<|end_of_box|>", "<|image|>", "<|video|>"]
ADDED = [*CONTROL, *VISIBLE, *LAST]  # GLM's 36, in GLM's order
PADDING = 16  # ids beyond the last token, as in the real model
SPLIT_ADDED = re.compile("|".join(re.escape(token) for token in ADDED))


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of vocab_size - PADDING defined tokens.

    Digits are kept apart while merges are learnt, so that every number is spelt digit by digit; the pre-tokenizer
    written to the file is GLM's own, and gives the same tokens because no merge joins two digits.
    """
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZER), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Digits(individual_digits=True), to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - PADDING - len(ADDED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learner.train_from_iterator((piece for text in texts for piece in SPLIT_ADDED.split(text)), trainer)
    model = json.loads(learner.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(pair) for pair in model["merges"]], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_tokens([AddedToken(token, special=token not in VISIBLE, normalized=False) for token in ADDED])
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json as Hugging Face lays them out."""
    tokenizer.save(str(folder / "tokenizer.json"))
    control = [token for token in ADDED if token not in VISIBLE]
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, **plain, "special": token in control} for token in ADDED
        },
        "additional_special_tokens": control,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "extra_special_tokens": {},
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
