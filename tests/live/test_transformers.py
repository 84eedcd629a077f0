"""glmrun against transformers: the same checkpoint, converted by `glmrun convert`, must give transformers' numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from naive import Naive, read_weights
from support.comparison import greedy_tokens, nmse
from transformers import AutoTokenizer, Glm4MoeLiteForCausalLM

import glmrun
from glmrun.chat.request import ChatRequest

CASES = ["nano", "odd"]
TEXTS = [
    "What is 17 + 25?",
    "  two  spaces,\ttabs\n\n\nlines \n and 1234567 numbers",
    "I'm sure it's THEY'LL we've",
    "naïve café 漢字 🦙 Ω½ e\u0301 \u200d",
    "<|user|>a<|assistant|><think>b</think><tool_call>f<arg_key>k</arg_key><arg_value>1</arg_value></tool_call>",
    "def add(a, b):\n    return a + b\n",
]


@pytest.fixture(params=CASES)
def case(request):
    return request.getfixturevalue(request.param)


def test_the_naive_model_gives_transformers_logits(case, gguf_of):
    """In float64 from the F32 file; what is left is transformers' float32 and its eps of 1e-6 in the two latent norms."""
    path = gguf_of(case, "F32")
    naive = Naive(read_weights(path)[0], glmrun.load(path).config)
    assert (
        nmse(np.concatenate([naive.logits(text) for text in case.texts[:3]]), case.truth[: sum(map(len, case.texts[:3]))]) <= 1e-8
    )


@torch.no_grad()
def test_greedy_text_is_transformers_text(nano, gguf_of):
    """100 tokens after each of ten prompts, ends of answers passed over."""
    model = Glm4MoeLiteForCausalLM.from_pretrained(nano.folder, dtype=torch.float32).eval()
    ours = glmrun.load(gguf_of(nano, "BF16"), n_ctx=1024, n_threads=2)
    assert len(nano.texts) == 10
    for text in nano.texts:
        prompt = text[:-100]
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": 100, "min_new_tokens": 100, "do_sample": False}
        options |= {"eos_token_id": None, "attention_mask": torch.ones_like(ids)}
        expected = model.generate(ids, **options)[0, len(prompt) :].tolist()
        assert len(expected) == 100
        assert greedy_tokens(ours, prompt, 100) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_cut_as_transformers_cuts_it(case, gguf_of, text):
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    ours = glmrun.load(gguf_of(case, "Q8_0")).tokenizer
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert ours.encode(text, special=True) == expected
    assert ours.decode(expected) == tokenizer.decode(expected, clean_up_tokenization_spaces=False)
    if "<|" not in text:
        assert ours.encode(text) == expected


def test_the_chat_format_is_rendered_as_transformers_renders_it(nano, gguf_of):
    tokenizer, ours = AutoTokenizer.from_pretrained(nano.folder), glmrun.load(gguf_of(nano, "Q8_0")).chat_format
    tool = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object", "properties": {}}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Paris", "n": 3, "o": {"k": "é"}, "b": True}}}
    asked = {"role": "user", "content": "Hi"}
    dialogue = [asked, {"role": "assistant", "content": "b", "reasoning_content": "r1"}, {"role": "user", "content": "c"}]
    loop = [asked, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "r"}]
    conversations = [[asked], [{"role": "system", "content": "S"}, asked], dialogue, loop]
    for messages in conversations:
        for tools in (None, [tool]):
            for thinking in (True, False):
                for clear in (True, False):
                    options = {"enable_thinking": thinking, "clear_thinking": clear, "add_generation_prompt": True}
                    expected = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
                    assert ours.render(ChatRequest(messages, tools, thinking, clear)) == expected


def test_the_second_checkpoint_is_what_it_should_be(odd):
    assert len(list(Path(odd.folder).glob("*.safetensors"))) == 11
