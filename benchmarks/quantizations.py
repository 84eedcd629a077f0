"""What each quantization costs and gives: docs/measurements.md's tables of sizes, quality and speed.

    python benchmarks/quantizations.py [FULL-SHAPE.gguf ...]    everything below, then docs/measurements.md's tables
    python benchmarks/quantizations.py --only quality           nano: perplexity, KL divergence, likeliest token, right answers
    python benchmarks/quantizations.py --only sizes             the full-size model, computed from its shapes and checked
    python benchmarks/quantizations.py --only speed [FILE ...]  glmrun bench of nano and of the files; wants a quiet machine
    python benchmarks/quantizations.py --only table             only rewrite docs/measurements.md from results/quantizations.json

Quality is told against nano's BF16 file, whose logits are transformers', over the held-out documents of quality.py; the skills are
asked at temperature 0. The importance matrix is collected from training documents. Sizes are checked against files
that `convert` writes from a checkpoint of the full model's shapes (two layers, sparse on disk), and against the files given.
A part that is not asked for stays as it was. Needs what the extra `dev` brings.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import numpy as np  # noqa: E402
from quality import calibration, held_out_documents, log_softmax, write  # noqa: E402
from synthetic_checkpoint import write_checkpoint  # noqa: E402

import glmrun  # noqa: E402
from glmrun.engine.importance import Collector  # noqa: E402
from glmrun.engine.model import Model  # noqa: E402
from glmrun.gguf.architecture import config_from_gguf  # noqa: E402
from glmrun.gguf.open import open_gguf  # noqa: E402
from glmrun.machine import cpu_name  # noqa: E402
from glmrun.measure.bench import case_name  # noqa: E402
from glmrun.measure.evaluation import by_skill, evaluate, read_suite  # noqa: E402
from glmrun.measure.perplexity import Scores, statistics  # noqa: E402
from glmrun.store.nano import CHECKPOINT, QUANTIZATIONS, nano_path  # noqa: E402
from glmrun.terminal.tables import bytes_text  # noqa: E402
from quant.checkpoint import Checkpoint  # noqa: E402
from quant.config import FLASH, Config, read_per_token  # noqa: E402
from quant.convert import convert, plan  # noqa: E402
from quant.recipes import RECIPES, tensor_formats  # noqa: E402

RESULT, PAGE = ROOT / "benchmarks" / "results" / "quantizations.json", ROOT / "docs" / "measurements.md"
BEGIN, END = "<!-- quantizations: made by benchmarks/quantizations.py -->\n", "<!-- end of quantizations -->\n"
SUITE = CHECKPOINT / "skills.jsonl"


# ---- quality on nano -------------------------------------------------------------------------------------------------


def quality() -> dict[str, Any]:
    """{file: sizes, statistics against BF16, right answers}, BF16 first."""
    documents, found = held_out_documents(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as folder:
        original, path = Path(folder, "BF16.gguf"), Path(folder, "quantized.gguf")
        write(original, "BF16")
        base = glmrun.load(original, n_ctx=2048)
        collector = Collector(base, ["training documents"])
        for ids in calibration():
            collector.read(ids)
        importance = collector.result()
        files = [("BF16", None), *((name, matrix) for name in reversed(QUANTIZATIONS) for matrix in (None, importance))]
        for name, matrix in files:
            label = f"{name}, imatrix" if matrix else name
            write(path, name, matrix)
            model = glmrun.load(path, n_ctx=2048)
            found[label] = sizes_of_file(path) | predictions(base, model, documents) | {"skills": skills(model)}
            print(f"{label}: KL divergence {found[label]['kld'][0]:.2e}", file=sys.stderr)
            path.unlink()
    return {"positions": sum(map(len, documents)), "questions": len(read_suite(SUITE)), "files": found}


def predictions(base: Model, model: Model, documents: list[list[int]]) -> dict[str, Any]:
    """The statistics of `glmrun perplexity --kl-divergence` over documents that are each read from an empty cache."""
    scores = Scores([], [], [], [], [])
    for ids in documents:
        log_p, log_q = (log_softmax(each.logits(ids)) for each in (base, model))  # float64 (positions, n_vocab)
        came = np.arange(len(ids) - 1), ids[1:]
        scores.nll.append(-log_q[came])
        scores.nll_base.append(-log_p[came])
        scores.delta_p.append(np.exp(log_q[came]) - np.exp(log_p[came]))
        scores.kld.append(np.sum(np.exp(log_p) * (log_p - log_q), axis=1))
        scores.same_top.append((log_p.argmax(axis=1) == log_q.argmax(axis=1)).astype(np.float64))
    return statistics(scores)


def skills(model: Model) -> dict[str, Any]:
    """Right answers by skill."""
    return by_skill(list(evaluate(model.answer, read_suite(SUITE), set(), 0, temperature=0.0)))


def sizes_of_file(path: Path) -> dict[str, Any]:
    """Sizes of a file that is there, as sizes() tells them."""
    file = open_gguf(path)
    tensors = {t.name: (t.shape, t.format, t.n_bytes) for t in file.tensors.values()}
    return _sizes(config_from_gguf(file), tensors)


# ---- sizes at full size ----------------------------------------------------------------------------------------------


def _sizes(config: Config, tensors: dict[str, tuple[Sequence[int], str, int]]) -> dict[str, Any]:
    n_bytes, weights = sum(n for *_, n in tensors.values()), sum(prod(shape) for shape, *_ in tensors.values())
    per_token = read_per_token(config, {name: n for name, (*_, n) in tensors.items()})
    return {"bytes": n_bytes, "weights": weights, "bits_per_weight": 8 * n_bytes / weights, "bytes_per_token": per_token}


def sizes(name: str, config: Config) -> dict[str, Any]:
    """Of the model that config describes, in a quantization: tensor bytes, weights, bits a weight, bytes that one token reads."""
    return _sizes(config, dict(tensor_formats(RECIPES[name], config)))


def checked_sizes(files: list[Path]) -> dict[str, Any]:
    """Sizes at full size, and the files that agree with the same computation for their layers; raises if one does not."""
    small, checks = replace(FLASH, num_hidden_layers=2, num_nextn_predict_layers=0), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder, "checkpoint"), small)
        source = Checkpoint.open(Path(folder, "checkpoint"))
        for name in QUANTIZATIONS:
            path = Path(folder, f"{name}.gguf")
            for _ in convert(plan(source, name), path, resumable=False):
                pass
            checks.append(_check(path, f"converted from a checkpoint of 2 layers to {name}"))
            path.unlink()
    checks += [_check(path, path.name) for path in files]
    trunk = replace(FLASH, num_nextn_predict_layers=0)
    found = {name: sizes(name, trunk) | {"with_prediction_layer": sizes(name, FLASH)} for name in QUANTIZATIONS}
    return {"files": found, "checks": checks}


def _check(path: Path, what: str) -> str:
    """Hold a file's sizes against the computed ones; returns a line that says so."""
    file = open_gguf(path)
    found, config = sizes_of_file(path), config_from_gguf(file)
    name = next(r.name for r in RECIPES.values() if r.file_type == file.metadata["general.file_type"])
    computed = sizes(name, replace(FLASH, num_hidden_layers=config.num_hidden_layers, num_nextn_predict_layers=0))
    if found != computed:
        raise SystemExit(f"{path}: {found}, but computed are {computed}")
    return f"{what}: {found['bytes']:,} bytes, {found['bytes_per_token']:,} a token"


# ---- speed -----------------------------------------------------------------------------------------------------------


def speed(files: list[Path]) -> dict[str, Any]:
    """{"nano" or a file's name: rows of glmrun bench}; a file that is not given keeps those of the same processor."""
    before = kept().get("speed", {})
    found = before["files"] if before.get("cpu") == cpu_name() else {}
    for name, path in [*((f"nano {name}", nano_path(name)) for name in QUANTIZATIONS), *((path.stem, path) for path in files)]:
        command = [sys.executable, "-m", "glmrun", "bench", "-m", str(path), "-p", "512", "-n", "64", "-r", "5", "--wide"]
        done = subprocess.run([*command, "-o", "json"], stdout=subprocess.PIPE, check=True, cwd=ROOT)
        found[name] = [row | {"model_filename": path.name} for row in json.loads(done.stdout)]
    return {"cpu": cpu_name(), "files": found}


# ---- docs/measurements.md ------------------------------------------------------------------------------------------------------


def tables(result: dict[str, Any]) -> list[str]:
    """Lines of the page."""
    return [*_quality_table(result["quality"], result["speed"]["files"]), "", *_size_table(result), "", *_speed_table(result)]


def _rates(rows: list[dict[str, Any]]) -> tuple[str, str]:
    """(pp, tg) tokens a second."""
    pp, tg = (next(row["avg_ts"] for row in rows if bool(row["n_prompt"]) is prompt) for prompt in (True, False))
    return f"{pp:,.0f}", f"{tg:,.0f}"


def _quality_table(found: dict[str, Any], speeds: dict[str, Any]) -> list[str]:
    files = found["files"]
    lines = [
        f"**Quality**: nano against its BF16 file, {found['positions']:,} positions and {found['questions']:,} questions held out:",
        "",
        "| nano as | MiB | bits a weight | MB a token | pp512 / tg64 | perplexity, ratio | KL divergence | same top | right |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in files.items():
        rows = speeds.get(f"nano {name}")
        size = f"{row['bytes'] / 2**20:.2f} | {row['bits_per_weight']:.2f} | {row['bytes_per_token'] / 1e6:.2f}"
        (ratio, ratio_error), (kld, kld_error), (same, _) = row["ppl_ratio"], row["kld"], row["same_top_p"]
        against = [f"{ratio:.4f} ± {ratio_error:.4f}", f"{kld:.2e} ± {kld_error:.0e}", f"{same:.2%}"] if kld else ["", "", ""]
        everything = row["skills"]["all"]
        share = f"{everything['accuracy']:.1%} ± {100 * everything['error']:.1f}"
        lines.append(f"| {name} | {size} | {' / '.join(_rates(rows)) if rows else ''} | {' | '.join(against)} | {share} |")
    lines += ["", f"| right answers | {' | '.join(files)} |", "|---|" + "---|" * len(files)]
    for skill in files["BF16"]["skills"]:
        if skill != "all":
            shares = [f"{row['skills'][skill]['accuracy']:.0%}" for row in files.values()]
            lines.append(f"| {skill} | {' | '.join(shares)} |")
    return lines


def _size_table(result: dict[str, Any]) -> list[str]:
    found = result["sizes"]["files"]
    lines = [
        "**Sizes** of GLM-4.7-Flash, computed from its shapes; files that `glmrun convert` wrote are equal to the byte:",
        "",
        "| GLM-4.7-Flash as | GB | GiB | bits a weight | GB a token | with the next-token-prediction layer, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        more = row["with_prediction_layer"]["bytes"] / 2**30
        lines.append(
            f"| {name} | {row['bytes'] / 1e9:.2f} | {row['bytes'] / 2**30:.2f} | {row['bits_per_weight']:.3f} | "
            f"{row['bytes_per_token'] / 1e9:.3f} | {more:.2f} |"
        )
    return lines


def _speed_table(result: dict[str, Any]) -> list[str]:
    cpu, files = result["speed"]["cpu"], result["speed"]["files"]
    lines = [
        f"`glmrun bench -p 512 -n 64 --wide` on {cpu}; full-shape files with random weights, 8 of 47 layers:",
        "",
        "| file | size | threads | test | tokens a second | first token | peak memory | weights read | of bandwidth |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in files.items():
        for row in rows:
            first, read, share = row["ttft_ms"], row["weights_gb_s"], row["bandwidth_share"]
            test = case_name(row["n_prompt"], row["n_gen"], row["n_depth"])
            cells = [
                name, bytes_text(row["model_size"]), str(row["n_threads"]), test,
                f"{row['avg_ts']:,.1f} ± {row['stddev_ts']:,.1f}", f"{first:,.0f} ms" if first else "",
                bytes_text(row["peak_memory_bytes"] or 0), f"{read:.1f} GB/s" if read else "", f"{share:.0%}" if share else "",
            ]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def kept() -> dict[str, Any]:
    """What was measured before."""
    return json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}


def write_tables(result: dict[str, Any]) -> None:
    """Put the tables between docs/measurements.md's marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(tables(result)) + "\n\n" + END + rest.split(END)[1], encoding="utf-8")


def main() -> None:
    """Measure what is asked for, keep the rest, rewrite docs/measurements.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FULL-SHAPE.gguf")
    parser.add_argument("--only", choices=("quality", "sizes", "speed", "table"))
    options = parser.parse_args()
    parts = {"quality": quality, "sizes": lambda: checked_sizes(options.files), "speed": lambda: speed(options.files)}
    for name, measure in parts.items():
        if options.only in (None, name):
            packages = {package: version(package) for package in ("numba", "numpy")}
            measured = {name: {"date": date.today().isoformat(), "with": packages, **measure()}}
            RESULT.write_text(json.dumps(kept() | measured, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    result = kept()
    if parts.keys() <= result.keys():
        write_tables(result)
        print("\n".join(tables(result)))


if __name__ == "__main__":
    main()
