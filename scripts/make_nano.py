"""Train nano, the small model of GLM-4.7-Flash's architecture that comes with glmrun, and write its checkpoint.

    python scripts/make_nano.py --minutes 600              # from nothing
    python scripts/make_nano.py --minutes 143 --widen OLD  # with the weights of a narrower nano: as glmrun/nano was made first
    python scripts/make_nano.py --go-on FOLDER --steps 2700 --peak 0.6 --practice 0.45  # and then: more of what it had found hard
    python scripts/make_nano.py --go-on FOLDER --minutes 110 --peak 0.6 --practice 0.45  # and again: 3,931 steps
    python scripts/make_nano.py --go-on FOLDER --minutes 30 --peak 0.3 --practice 0.45 --average 0.8  # 1,429
    python scripts/make_nano.py --go-on FOLDER --minutes 68 --peak 0.6 --practice 0.7  # with nano/own_words.py: 1,157
    python scripts/make_nano.py --go-on FOLDER --minutes 13 --peak 0.4 --practice 0.55  # 243
    python scripts/make_nano.py --go-on FOLDER --minutes 83 --peak 0.5 --practice 0.6 --seed 49  # and offhand.py: 2,914
    python scripts/make_nano.py --go-on FOLDER --minutes 8 --peak 0.3 --practice 0.5 --seed 50 --average 0.45  # about 255
    (Numbers of steps are what the minutes gave. The last two were evaluated with the first seed's questions, as the others.)
    python scripts/make_nano.py --steps 100 --out /tmp/nano

A training that was stopped goes on from its state (--state) when it is started again.

Needs torch and transformers (the extra `dev`). Everything is made here: text, tokenizer, weights, test and model card.
The data depend on the seed alone; the weights also on the number of steps (with --minutes: on the machine's speed).
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two Python threads work side by side instead, see nano/training.py

import torch
from make_skills import suite
from nano import checkpoint, vocabulary
from nano.architecture import Nano, nano_config
from nano.card import card
from nano.corpus import Corpus, test_documents, training_documents
from nano.evaluation import evaluate, table
from nano.training import Batch, micro_batches, train
from nano.widen import widened
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "glmrun" / "chat" / "chat_template.jinja"
VOCABULARY = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "glmrun" / "nano", help="folder of the checkpoint (default: glmrun/nano)"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, default=55.0, help="training time (default: 55)")
    budget.add_argument("--steps", type=int, help="training steps instead of minutes")
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument("--widen", type=Path, metavar="FOLDER", help="begin with the weights and tokens of a narrower checkpoint")
    begin.add_argument("--go-on", type=Path, metavar="FOLDER", help="begin with the weights and tokens of a checkpoint")
    parser.add_argument(
        "--average",
        type=float,
        metavar="SHARE",
        help="with --go-on: write a mean of the weights, SHARE of those after",
    )
    parser.add_argument(
        "--state", type=Path, default=Path("nano-training.pt"), help="file of a training under way (default: nano-training.pt)"
    )
    parser.add_argument("--peak", type=float, default=1.0, help="learning rate, as a factor (default: 1)")
    parser.add_argument(
        "--practice", type=float, default=0.0, metavar="SHARE", help="of the documents: of kinds that nano found hard (default: 0)"
    )
    parser.add_argument("--seed", type=int, default=47)
    parser.add_argument("--per-skill", type=int, default=100, help="held-out questions per skill (default: 100)")
    parser.add_argument("--show", type=int, default=2, help="wrong answers shown per skill (default: 2)")
    args = parser.parse_args()

    if args.average is not None and not args.go_on:
        parser.error("--average needs --go-on: the weights before, to take the mean with")
    torch.manual_seed(args.seed)
    corpus = Corpus(TEMPLATE)
    documents = training_documents(random.Random(f"vocabulary {args.seed}"))
    source = args.widen or args.go_on
    if source:
        tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    else:
        tokenizer = vocabulary.train((corpus.text(next(documents)) for _ in range(8000)), VOCABULARY)
    ids = tokenizer.get_vocab()
    ends = [ids[token] for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    model = Nano(nano_config(VOCABULARY, ends[0], ends))
    parameters = sum(tensor.numel() for name, tensor in checkpoint.tensors(model).items() if not name.endswith("_bias"))
    print(f"{parameters:,} parameters, {tokenizer.get_vocab_size()} tokens", flush=True)

    before = {"goes": 0, "steps": 0, "tokens": 0, "minutes": 0.0}
    if source:
        checkpoint.give(model, widened(source, model) if args.widen else checkpoint.read(source))
        before = json.loads((source / "evaluation.json").read_text(encoding="utf-8"))["training"]

    mean = 0.0

    def on_progress(step: int, seconds: float, loss: float) -> None:
        nonlocal mean
        mean = 0.95 * mean + 0.05 * loss if mean else loss
        if step % 20 == 0:
            print(f"step {step:5d}  {seconds:6.0f} s  loss {mean:.4f}", flush=True)

    def progress_at(step: int, seconds: float) -> float:
        return step / args.steps if args.steps else seconds / (60 * args.minutes)

    def batches_from(step: int) -> Iterator[Batch]:
        return micro_batches(corpus, tokenizer, args.seed + before["steps"] + step, args.practice)

    steps, tokens, seconds_used = train(model, batches_from, progress_at, on_progress, args.state, args.peak)
    if args.average is not None:
        old, new = checkpoint.read(source), checkpoint.tensors(model)
        checkpoint.give(model, {name: torch.lerp(old[name].float(), new[name].float(), args.average) for name in new})
    checkpoint.round_weights(model)
    checkpoint.write(model, tokenizer, TEMPLATE, args.out)
    args.state.unlink(missing_ok=True)

    tests = test_documents(random.Random(f"test {args.seed}"), args.per_skill)
    began = time.monotonic()
    results = evaluate(model, tokenizer, corpus, tests, args.show)
    facts = {
        "parameters": parameters,
        "seed": args.seed,
        "goes": before["goes"] + 1,
        "steps": before["steps"] + steps,
        "tokens": before["tokens"] + tokens,
        "minutes": round(before["minutes"] + seconds_used / 60, 1),
    }
    print(f"{table(results)}\n\n{json.dumps({k: v for k, v in results.items() if k != 'skills'}, indent=2)}")
    print(
        f"{steps} steps, {tokens:,} tokens, {seconds_used / 60:.1f} minutes; evaluated in {time.monotonic() - began:.0f} s",
        file=sys.stderr,
    )
    (args.out / "evaluation.json").write_text(json.dumps({"training": facts, **results}, indent=2) + "\n", encoding="utf-8")
    (args.out / "README.md").write_text(card(facts, results), encoding="utf-8")
    (args.out / "heldout.txt").write_text(held_out_text(corpus, tests), encoding="utf-8")
    (args.out / "skills.jsonl").write_text(suite(tests), encoding="utf-8")


def held_out_text(corpus: Corpus, tests: list, limit: int = 60_000) -> str:
    """Held-out documents as plain text, taken in turn from every skill, for measuring perplexity."""
    shuffled = random.Random(0).sample(tests, len(tests))
    text = ""
    for document in shuffled:
        piece = corpus.text(document) + "\n"
        if len((text + piece).encode()) <= limit:
            text += piece
    return text


if __name__ == "__main__":
    main()
