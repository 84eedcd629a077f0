"""What quantization costs, ours beside llama-quantize's at the same size: squared error per tensor class, nano's KL divergence.

python benchmarks/quality.py     # needs llama-cpp-python; prints Markdown, writes benchmarks/results/quality.json

Error  sum((x - y)**2) over all tensors of a class, ours / llama-quantize's; of nano, and of normal and heavy-tailed rows with the
       full model's row lengths
KL     mean over the positions of held-out text of sum(p log(p / q)): p from the BF16 file, q from the quantized one, both by
       glmrun; the standard error is that of the mean over documents, because positions of one document are not independent
"""

import json
import random
import re
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "scripts")]

from make_golden_blocks import ggml_encode, mean_squared_error, sample_rows  # noqa: E402
from nano.corpus import Corpus, test_documents, training_documents  # noqa: E402
from support import llama  # type: ignore[import-not-found]  # noqa: E402  the tests' own driver of llama.cpp

import glmrun  # noqa: E402
from glmrun.engine.importance import Collector  # noqa: E402
from glmrun.engine.model import Model  # noqa: E402
from glmrun.gguf.open import open_gguf  # noqa: E402
from glmrun.store.nano import CHECKPOINT  # noqa: E402
from quant.checkpoint import Checkpoint  # noqa: E402
from quant.convert import convert, plan  # noqa: E402
from quant.formats import FORMATS  # noqa: E402
from quant.importance import Importance  # noqa: E402
from quant.recipes import RECIPES, choose_format  # noqa: E402

COMPARED = ("Q4_K_M", "Q6_K", "Q8_0")
POSITIONS = 24_000
CALIBRATION_CHUNKS = 100
# Row lengths of the full model's matrices, by class; the ones a recipe treats alike and of one length share a line.
FULL_SHAPES = {
    "attn_q_a, attn_kv_a_mqa, ffn_gate*, ffn_up*, token_embd, output": 2048,
    "attn_q_b": 768,
    "attn_k_b": 192,
    "attn_v_b": 512,
    "attn_output": 5120,
    "ffn_down": 10240,
    "ffn_down_exps, ffn_down_shexp": 1536,
}


def tensor_class(name: str) -> str:
    """blk.3.ffn_up_exps.weight -> ffn_up_exps."""
    return re.sub(r"^blk\.\d+\.|\.weight$", "", name)


def errors_by_class(original: Path, ours: Path, theirs: Path, means: dict[str, np.ndarray]) -> dict[str, dict]:
    """{class: formats, sums of squared errors, plain and weighed by what the columns are multiplied by, and their ratios}.

    means   {tensor name: mean squares of its columns' inputs}; the embedding has none and counts plainly
    Tensors that are stored exactly are left out.
    """
    files = [open_gguf(path).tensors for path in (original, ours, theirs)]
    found: dict[str, dict] = {}
    for name, tensor in files[1].items():
        assert tensor.format == files[2][name].format, name
        if FORMATS[tensor.format].block_length == 1:
            continue
        x, *both = (file[name].floats().astype(np.float64) for file in files)
        weights = means[name].reshape(*x.shape[:-2], 1, x.shape[-1]) if name in means else np.ones(1)
        row = found.setdefault(tensor_class(name), {"formats": [], "plain": [0.0, 0.0], "weighted": [0.0, 0.0]})
        row["formats"] = sorted({*row["formats"], tensor.format})
        for i, y in enumerate(both):
            squares = (y - x) ** 2
            row["plain"][i] += float(squares.sum())
            row["weighted"][i] += float((weights * squares).sum())
    for row in found.values():
        row |= {f"{kind} ratio": row[kind][0] / row[kind][1] for kind in ("plain", "weighted")}
    return found


def errors_of_full_shapes(recipe: str) -> dict[str, dict[str, float]]:
    """{class: {distribution: ratio}} on 64 rows of the full model's length."""
    found: dict[str, dict[str, float]] = {}
    for label, columns in FULL_SHAPES.items():
        format_name = choose_format(RECIPES[recipe], "blk.20.attn_q_a.weight", (64, columns), 47, 64)
        found[f"{label} ({format_name})"] = row = {}
        for kind in ("normal", "laplace", "student t, df 3"):
            x = sample_rows(kind, 64, columns)
            ours = mean_squared_error(format_name, x, FORMATS[format_name].encode(x))
            row[kind] = ours / mean_squared_error(format_name, x, ggml_encode(format_name, x))
    return found


def held_out_documents() -> list[list[int]]:
    """Token ids of held-out documents, at least POSITIONS in all: those that come with nano, then more of the same making."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    corpus = Corpus(CHECKPOINT / "chat_template.jinja")
    shipped = ("[gMASK]" + part for part in (CHECKPOINT / "heldout.txt").read_text(encoding="utf-8").split("[gMASK]")[1:])
    texts = [text.removesuffix("\n") for text in shipped]
    more = [corpus.text(document) for document in test_documents(random.Random("quality"), 60)]
    texts += [text for text in random.Random(0).sample(more, len(more)) if text not in texts]
    documents: list[list[int]] = []
    for text in texts:
        if sum(map(len, documents)) >= POSITIONS:
            break
        documents.append(tokenizer.encode(text, add_special_tokens=False).ids[:1024])
    return documents


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 (positions, n_vocab)."""
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def distance(reference: Model, model: Model, documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(KL divergence, same likeliest token) summed over the positions of each document: float64 (documents,) each."""
    kl, same = [], []
    for ids in documents:
        p, q = log_softmax(reference.logits(ids)), log_softmax(model.logits(ids))
        kl.append(float(np.sum(np.exp(p) * (p - q))))
        same.append(int(np.sum(p.argmax(axis=1) == q.argmax(axis=1))))
    return np.array(kl), np.array(same)


def mean_and_error(sums: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """(sum(sums) / sum(lengths), its standard error over documents)."""
    mean = float(sums.sum() / lengths.sum())
    return mean, float(np.sqrt(np.sum((sums - mean * lengths) ** 2)) / lengths.sum())


def divergence(reference: Path, files: dict[str, Path], documents: list[list[int]]) -> dict[str, dict]:
    """{name: mean KL, standard error, top-1 agreement, and the same of the difference from the file named first}."""
    lengths = np.array([len(ids) for ids in documents])
    exact, found, first = glmrun.load(reference, n_ctx=1024), {}, None
    for name, path in files.items():
        kl, same = distance(exact, glmrun.load(path, n_ctx=1024), documents)
        first = kl if first is None else first
        mean, error = mean_and_error(kl, lengths)
        less, less_error = mean_and_error(kl - first, lengths)
        found[name] = {
            "kl": mean,
            "standard error": error,
            "same likeliest token": float(same.sum() / lengths.sum()),
            "difference": less,
            "its standard error": less_error,
        }
    return found


def calibration() -> list[list[int]]:
    """Chunks of 512 token ids of training documents, which share no question with the held-out ones."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    corpus, documents = Corpus(CHECKPOINT / "chat_template.jinja"), training_documents(random.Random("calibration"))
    ids: list[int] = []
    while len(ids) < CALIBRATION_CHUNKS * 512:
        ids += tokenizer.encode(corpus.text(next(documents)), add_special_tokens=False).ids
    return [ids[i * 512 : (i + 1) * 512] for i in range(CALIBRATION_CHUNKS)]


def collected(original: Path) -> Importance:
    """The importance matrix of nano over calibration()."""
    collector = Collector(glmrun.load(original, n_ctx=512), ["training documents"])
    for ids in calibration():
        collector.read(ids)
    return collector.result()


def markdown(results: dict) -> str:
    """The tables of the printed report."""
    nano = results["nano"]
    classes = list(dict.fromkeys(name for recipe in nano.values() for name in recipe["error"]))
    lines = [f"| nano, error ratio, plain and weighted | {' | '.join(COMPARED)} |", "|---|" + "---|" * len(COMPARED)]
    for name in classes:
        cells = [nano[r]["error"].get(name) for r in COMPARED]
        lines.append(
            f"| {name} | " + " | ".join(f"{c['plain ratio']:.3f}, {c['weighted ratio']:.3f}" if c else "" for c in cells) + " |"
        )
    for title, kind in (("llama-quantize's", "divergence"), ("glmrun's without a matrix", "with importance matrix")):
        lines += ["", f"| nano, KL divergence | mean | less {title} | same likeliest token |", "|---|---|---|---|"]
        for recipe in COMPARED:
            lines += _divergence_rows(recipe, nano[recipe][kind])
    return "\n".join(lines)


def _divergence_rows(recipe: str, found: dict[str, dict]) -> list[str]:
    rows = []
    for name, row in found.items():
        kl = f"{row['kl']:.3e} ± {row['standard error']:.1e}"
        less = f"{row['difference']:.2e} ± {row['its standard error']:.1e}"
        rows.append(f"| {recipe}, {name} | {kl} | {less} | {row['same likeliest token']:.2%} |")
    return rows


def main() -> None:
    """Measure, print the tables, write the numbers."""
    documents = held_out_documents()
    results: dict = {
        "command": "python benchmarks/quality.py",
        "date": date.today().isoformat(),
        "with": {package: version(package) for package in ("llama-cpp-python", "numba", "numpy")},
        "positions": sum(map(len, documents)),
        "documents": len(documents),
        "nano": {},
        "full shapes": {recipe: errors_of_full_shapes(recipe) for recipe in COMPARED},
    }
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder, "BF16.gguf")
        write(original, "BF16")
        importance = collected(original)
        means = {name: sums / importance.counts[name][:, None].clip(1) for name, sums in importance.sums.items()}
        for recipe in COMPARED:
            names = ("glmrun", "llama-quantize", "glmrun, imatrix", "llama-quantize, imatrix")
            ours, theirs, ours_weighed, theirs_weighed = files = [Path(folder, f"{recipe}-{name}.gguf") for name in names]
            write(ours, recipe)
            llama.quantize(original, theirs, recipe)
            write(ours_weighed, recipe, importance)
            llama.quantize(original, theirs_weighed, recipe, means)
            results["nano"][recipe] = {
                "bytes": dict(zip(names, map(tensor_bytes, files), strict=True)),
                "error": errors_by_class(original, ours, theirs, means),
                "error, imatrix": errors_by_class(original, ours_weighed, theirs_weighed, means),
                "divergence": divergence(original, {"llama-quantize": theirs, "glmrun": ours}, documents),
                "with importance matrix": divergence(
                    original, dict(zip(names[::2] + names[3:], files[::2] + files[3:], strict=True)), documents
                ),
            }
    (ROOT / "benchmarks" / "results" / "quality.json").write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))


def write(path: Path, recipe: str, importance: Importance | None = None) -> None:
    """Convert nano."""
    for _ in convert(plan(Checkpoint.open(CHECKPOINT), recipe, importance=importance), path):
        pass


def tensor_bytes(path: Path) -> int:
    """Bytes of all tensors."""
    return sum(tensor.rows.nbytes for tensor in open_gguf(path).tensors.values())


if __name__ == "__main__":
    main()
