"""What to compare on: above all a second checkpoint, saved by transformers itself, with neither nano's nor the real dimensions."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import Glm4MoeLiteConfig, Glm4MoeLiteForCausalLM, PreTrainedTokenizerFast

from quant.vocabulary import GLM_REGEX
from support.tiny_model import SPECIAL, vocabulary

N_VOCAB = 1016


@dataclass(frozen=True)
class Case:
    """A checkpoint and texts to compare on, with transformers' float32 logits."""

    name: str
    folder: Path
    texts: list[list[int]]
    truth: np.ndarray  # float32 (positions of all texts, n_vocab)


def save(folder: Path, n_shards: int = 11, seed: int = 5) -> Path:
    """A random model in BF16 with its tokenizer, in n_shards files: hidden 512, 6 heads, 12 experts of which 3 are taken."""
    torch.manual_seed(seed)
    tokens, merges, _ = vocabulary(N_VOCAB)
    n_special = tokens.index("<|endoftext|>")
    config = Glm4MoeLiteConfig(
        vocab_size=N_VOCAB,
        hidden_size=512,
        intermediate_size=768,
        moe_intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=6,
        n_routed_experts=12,
        num_experts_per_tok=3,
        kv_lora_rank=256,
        q_lora_rank=256,
        qk_rope_head_dim=32,
        qk_nope_head_dim=96,
        v_head_dim=128,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.05,
        bos_token_id=tokens.index("[gMASK]"),
        eos_token_id=[tokens.index(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")],
        pad_token_id=tokens.index("<|endoftext|>"),
    )
    model = Glm4MoeLiteForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            if name.endswith("mlp.gate.weight"):
                parameter.mul_(3)  # a router that decides clearly
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    model = model.to(torch.bfloat16)
    size = sum(p.numel() * 2 for p in model.parameters())
    for attempt in range(40):  # shards end with whole tensors, so the size that gives n_shards is found by trying
        for old in folder.glob("*.safetensors*"):
            old.unlink()
        model.save_pretrained(folder, max_shard_size=size // n_shards + attempt * size // 400)
        if len(list(folder.glob("*.safetensors"))) == n_shards:
            break
    else:
        raise AssertionError(f"no shard size gives {n_shards} files")

    bpe = models.BPE(vocab={t: i for i, t in enumerate(tokens[:n_special])}, merges=[tuple(m.split(" ")) for m in merges])
    tokenizer = Tokenizer(bpe)
    split = pre_tokenizers.Split(Regex(GLM_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    for text, kind in SPECIAL:
        (tokenizer.add_special_tokens if kind == 3 else tokenizer.add_tokens)([text])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>").save_pretrained(
        folder
    )
    return folder
