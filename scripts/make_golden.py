"""Write tests/golden: what transformers computes for nano, so that the tests can compare without torch.

    python scripts/make_golden.py            # needs the dev extras: torch, transformers, llama-cpp-python

nano_logits.npz    float32 logits at some positions of the ten texts, from the BF16 checkpoint computed in float32
nano_greedy.json   the likeliest 100 tokens after each of ten prompts, and how clearly each one won
certificate.json   who made them: versions, command, digest of the checkpoint, llama.cpp's own error on the same files
"""

import hashlib
import json
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Glm4MoeLiteForCausalLM

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import llama  # type: ignore[import-not-found]  # noqa: E402  the tests' own driver of llama.cpp
from support.comparison import errors, nmse  # type: ignore[import-not-found]  # noqa: E402
from support.router_margins import router_margins  # type: ignore[import-not-found]  # noqa: E402

from quant.checkpoint import Checkpoint  # noqa: E402
from quant.convert import convert, plan  # noqa: E402
from quant.recipes import RECIPES  # noqa: E402

NANO, GOLDEN = ROOT / "glmrun" / "nano", ROOT / "tests" / "golden"
N_GREEDY = 100  # tokens after each prompt
N_LOGITS = 160  # positions whose logits are kept
CLOSE = 5e-3  # a router decided by less (in scores) may take another expert in another program: such a position is left out
MARGIN = 0.02  # a greedy choice won by less (in logits) could fall either way in another program: such a prompt is left out

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# (user's words, thinking, tools): more than ten, because some have a near tie on their way and are left out.
PROMPTS: list[tuple[str, bool, list[dict[str, Any]] | None]] = [
    ("What is glmrun?", True, None),
    ("What is 17 + 25?", True, None),
    ("Who are you?", False, None),
    ("Write a Python function that adds two numbers.", False, None),
    ("How is the weather in Paris?", True, [WEATHER]),
    ("What is GLM-4.7-Flash?", True, None),
    ("What is 8 * 7?", False, None),
    ("What can you do?", True, None),
    ("How big are you?", False, None),
    ("Thank you!", True, None),
    ("What is 63 - 28?", True, None),
    ("Tell me about quantization.", False, None),
    ("How were you made?", True, None),
    ("Write a Python function that reverses a string.", True, None),
    ("What is a token?", False, None),
    ("Good morning", False, None),
    ("How fast is glmrun?", True, None),
    ("What is the weather in Berlin?", False, [WEATHER]),
    ("What is 12 + 9?", False, None),
    ("Count from 3 to 9", False, None),
    ("Write a JSON list of apples and pears", False, None),
    ("What is the capital of Italy?", True, None),
    ("Bye", False, None),
    ("Weather in Rome?", False, [WEATHER]),
    ("How do I convert a model?", False, None),
    ("What is quantization?", True, None),
    ("What is 45 - 12?", False, None),
    ("Repeat: river stone bridge", False, None),
    ("Who made you?", True, None),
    ("What is the capital of Spain?", False, None),
]


def digest(folder: Path) -> str:
    """SHA-256 over names and contents of a checkpoint's files; the card may change without making the figures stale."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@torch.no_grad()
def greedy(model: Glm4MoeLiteForCausalLM, prompt: list[int]) -> tuple[list[int], float]:
    """(the likeliest N_GREEDY tokens, ends of answers included and passed over; the smallest margin to the runner-up)."""
    tokens, cache, ids, margin = [], None, torch.tensor([prompt]), float("inf")
    for _ in range(N_GREEDY):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, (best, second) = out.past_key_values, out.logits[0, -1].topk(2).values.tolist()
        tokens.append(int(out.logits[0, -1].argmax()))
        ids, margin = torch.tensor([[tokens[-1]]]), min(margin, best - second)
    return tokens, margin


def llama_errors(texts: list[list[int]], positions: np.ndarray, expected: np.ndarray, folder: Path) -> dict[str, dict[str, dict]]:
    """{recipe: {"flash attention off" | "on": llama.cpp's errors on our file}} at some positions of all texts."""
    found: dict[str, dict[str, dict]] = {}
    for recipe in RECIPES:
        for name, flash in (("flash attention off", False), ("flash attention on", True)):
            got = np.concatenate(llama.logits(folder / f"{recipe}.gguf", texts, flash))[positions]
            both = {"nmse": nmse(got, expected), "median": float(np.median(errors(got, expected)))}
            found.setdefault(recipe, {})[name] = both
    return found


def main() -> None:
    """Write the three files and print what is in the certificate."""
    torch.set_num_threads(1)  # so small a model gains nothing from a second
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = Glm4MoeLiteForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()
    kept: list[dict[str, Any]] = []
    left_out: list[dict[str, Any]] = []
    for text, thinking, tools in PROMPTS:
        if len(kept) == 10:
            break
        messages = [{"role": "user", "content": text}]
        rendered = tokenizer.apply_chat_template(
            messages, tools=tools, enable_thinking=thinking, add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer.encode(rendered, add_special_tokens=False)
        tokens, margin = greedy(model, ids)
        if margin < MARGIN:
            left_out.append({"user": text, "margin": margin})
            continue
        kept.append({"user": text, "thinking": thinking, "tools": tools, "prompt": ids, "greedy": tokens, "margin": margin})
    assert len(kept) == 10, f"only {len(kept)} prompts without a near tie: {left_out}"

    texts = [entry["prompt"] + entry["greedy"] for entry in kept]
    with torch.no_grad():
        logits = np.concatenate([model(torch.tensor([text])).logits[0].numpy() for text in texts])  # float32 (positions, n_vocab)
    with tempfile.TemporaryDirectory() as name:
        for recipe in RECIPES:
            for _ in convert(plan(Checkpoint.open(NANO), recipe), Path(name, f"{recipe}.gguf")):
                pass
        calm = np.flatnonzero(router_margins(Path(name, "F32.gguf"), texts) > CLOSE)
        positions = calm[np.linspace(0, len(calm) - 1, N_LOGITS).astype(int)]  # int64 (N_LOGITS,), spread over all texts
        theirs = llama_errors(texts, positions, logits[positions], Path(name))
    certificate = {
        "command": "python scripts/make_golden.py",
        "seed": "none: nothing is drawn",
        "checkpoint": "glmrun/nano",
        "checkpoint_sha256": digest(NANO),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "numpy", "llama-cpp-python")},
        "computed_in": "float32, weights as in the checkpoint (BF16)",
        "smallest_margin": min(entry["margin"] for entry in kept),
        "left_out_for_a_near_tie": left_out,
        "positions": f"{N_LOGITS} of the {len(calm)} whose routers are not near a tie, of {len(logits)}",
        "llama_cpp_errors": theirs,
    }
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / "nano_logits.npz", positions=positions, logits=logits[positions])
    (GOLDEN / "nano_greedy.json").write_text(json.dumps(kept, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")
    (GOLDEN / "certificate.json").write_text(json.dumps(certificate, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(certificate, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
