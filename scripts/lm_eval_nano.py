"""lm-evaluation-harness against `glmrun serve`: endings of nano's held-out answers, each among three of other answers.

    python scripts/lm_eval_nano.py [--lm-eval PROGRAM] [--number 55]

PROGRAM is lm_eval of an environment that has lm-eval[api], 500 MB that are none of our dependencies. Ends with 1 unless every
loglikelihood that the harness read is the model's own to 1e-4, and the accuracy is at least 0.6 (chance: 0.25).
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from support.served import served  # type: ignore[import-not-found]  # noqa: E402

import glmrun  # noqa: E402
from glmrun.engine.model import Model  # noqa: E402
from glmrun.store.nano import CHECKPOINT  # noqa: E402

TASK, LEAST, CLOSE = "nano_heldout", 0.6, 1e-4
_ANSWER = re.compile(r"</think>([^<>]+)<\|")
_YAML = """
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""


def questions(number: int) -> list[dict[str, Any]]:
    """{text, choices, label}: the first half of an answer that nano has not seen, and four second halves."""
    answers = dict.fromkeys(_ANSWER.findall((CHECKPOINT / "heldout.txt").read_text(encoding="utf-8")))
    words = [answer.split(" ") for answer in answers if answer.count(" ") >= 7 and "\n" not in answer]
    halves = [(" ".join(w[: len(w) // 2]), " " + " ".join(w[len(w) // 2 :])) for w in words]
    chance, found = random.Random(1), []
    for text, end in halves[:number]:
        choices = [end, *chance.sample(sorted({other for _, other in halves} - {end}), 3)]
        chance.shuffle(choices)
        found.append({"text": text, "choices": choices, "label": choices.index(end)})
    return found


def expected(model: Model, text: str, end: str) -> float:
    """The loglikelihood of an end behind a text, from the model's logits."""
    n_text, ids = len(model.tokenizer.encode(text)), model.tokenizer.encode(text + end)
    rows = model.logits(ids)[n_text - 1 : -1].astype(np.float64)  # float64 (n_end, n_vocab)
    top = rows.max(1, keepdims=True)
    likely = rows - top - np.log(np.exp(rows - top).sum(1, keepdims=True))
    return float(likely[np.arange(len(rows)), ids[n_text:]].sum())


def run(program: str, url: str, folder: Path, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The samples that the harness writes: {arguments, resps, acc, ...} of each question."""
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(question) + "\n" for question in asked), encoding="utf-8")
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, file=json.dumps(str(file))), encoding="utf-8")
    settings = f"model=nano,base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=4"
    subprocess.run(
        [
            program, "--model", "local-completions", "--model_args", settings, "--tasks", TASK, "--include_path", str(folder),
            "--output_path", str(folder / "results"), "--log_samples",
        ],
        check=True,
    )  # fmt: skip
    [samples] = folder.glob("results/**/samples_*.jsonl")
    return [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Run it, and print the accuracy and the largest difference."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lm-eval", default="lm_eval")
    parser.add_argument("--number", type=int, default=55)
    options = parser.parse_args()
    asked = questions(options.number)
    with tempfile.TemporaryDirectory() as folder, glmrun.load(n_ctx=1024) as model, served(model) as server:
        samples = run(options.lm_eval, server.url, Path(folder), asked)
        differences = [
            abs(float(response[0][0]) - expected(model, pair["arg_0"], pair["arg_1"]))
            for sample in samples
            for pair, response in zip(sample["arguments"].values(), sample["resps"], strict=True)
        ]
    accuracy = sum(sample["acc"] for sample in samples) / len(samples)
    print(
        f"{len(samples)} questions, {len(differences)} loglikelihoods: at most {max(differences):.1e} off; accuracy {accuracy:.2f}"
    )
    whole = len(samples) == len(asked) and len(differences) == 4 * len(asked)
    return 0 if whole and max(differences) <= CLOSE and accuracy >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
