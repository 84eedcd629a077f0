"""GGUF files that others made of trained models, and vocabularies with the ids that their own tokenizers give."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from make_golden_blocks import ggml_encode, mean_squared_error
from support import real_files

from glmrun.chat.tokenizer import Tokenizer
from glmrun.gguf.open import open_gguf
from quant.errors import UserError
from quant.formats import FORMATS

CHUNK = 1 << 16  # blocks decoded at a time
SAMPLE = 256  # rows of 256 weights of a tensor that are encoded
# Weights that a format held already come back: exactly, or with a hundredth of the error of their first time. (GGML's search finds
# the scales of Q4_K and Q6_K again to 3e-7.)
AGAIN = {"Q4_K": 3e-5, "Q5_0": 0.0, "Q6_K": 3e-5, "Q8_0": 0.0}
REFUSED = "glmrun runs GLM-4.7-Flash"


@pytest.fixture(scope="module")
def vocabularies() -> Path:
    return real_files.vocabularies()


@pytest.mark.parametrize(("name", "n_tokens"), [("llama-bpe", 128_256), ("gpt-2", 50_257)])
def test_ids_are_the_expected_ones(vocabularies: Path, name: str, n_tokens: int) -> None:
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    tokenizer = Tokenizer.from_metadata(open_gguf(path).metadata)
    *texts, last = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    expected = [[int(number) for number in line.split()] for line in Path(f"{path}.out").read_text().splitlines()]
    assert tokenizer.n_vocab == n_tokens and len(texts) >= 46 and not last
    assert [tokenizer.encode(text) for text in texts] == expected
    assert [tokenizer.decode(ids) for ids in expected] == texts


def test_other_vocabularies_are_refused_in_one_line(vocabularies: Path) -> None:
    refused = []
    for path in sorted(vocabularies.glob("*.gguf")):
        metadata = open_gguf(path).metadata
        try:
            Tokenizer.from_metadata(metadata)
        except UserError as why:
            assert "tokenizer.ggml." in str(why) and "\n" not in str(why)
            refused.append(path.name)
    assert len(refused) >= 15 and not [name for name in refused if "llama-bpe" in name or "gpt-2" in name]


@pytest.mark.parametrize("name", ["llama-bpe", "llama-spm", "deepseek-coder"])
def test_metadata_is_what_gguf_py_reads(vocabularies: Path, name: str) -> None:
    path = vocabularies / f"ggml-vocab-{name}.gguf"
    fields = gguf.GGUFReader(path).fields
    theirs = {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}
    ours = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in open_gguf(path).metadata.items()}
    assert ours == theirs


MODELS = pytest.mark.parametrize("fetch", [real_files.smollm2, real_files.gemma3], ids=["smollm2", "gemma3"])


@MODELS
def test_every_tensor_decodes_as_gguf_py_has_it(fetch: Callable[[], Path]) -> None:
    path = fetch()
    ours, formats = open_gguf(path).tensors, set()
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.shape == tuple(map(int, theirs[name].shape[::-1]))
        formats.add(tensor.format)
        blocks = tensor.data.reshape(-1, FORMATS[tensor.format].block_bytes)  # uint8 (blocks, bytes of one)
        other = theirs[name].data.view(np.uint8).reshape(blocks.shape)
        for at in range(0, len(blocks), CHUNK):
            expected = gguf.quants.dequantize(other[at : at + CHUNK], theirs[name].tensor_type)
            found = FORMATS[tensor.format].decode(blocks[at : at + CHUNK])
            assert np.array_equal(found.view(np.uint32), expected.view(np.uint32)), name
    print(f"{path.name}: {len(ours)} tensors in {', '.join(sorted(formats))}")
    assert formats == ({"F32", "Q4_1", "Q8_0"} if fetch is real_files.smollm2 else {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"})


@MODELS
def test_real_weights_are_encoded_with_less_error(fetch: Callable[[], Path]) -> None:
    """Tensors of the first, a middle and the last layer, decoded and encoded in each format, beside GGML's own encoders."""
    tensors = open_gguf(fetch()).tensors
    layers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("blk.")})
    chosen = [f"blk.{layer}." for layer in (layers[0], layers[len(layers) // 2], layers[-1])]
    sums = {name: np.zeros(2) for name in ("Q4_K", "Q5_0", "Q6_K", "Q8_0")}
    for tensor in tensors.values():
        if len(tensor.shape) == 2 and tensor.name.startswith((*chosen, "token_embd.")):
            step = max(tensor.rows.shape[0] // SAMPLE, 1)
            rows = FORMATS[tensor.format].decode(tensor.rows[::step]).reshape(-1)
            rows = rows[: rows.size // 256 * 256].reshape(-1, 256)[:SAMPLE]  # float32 (at most SAMPLE, 256)
            size = float(np.mean(rows.astype(np.float64) ** 2))
            for name, total in sums.items():
                blocks = FORMATS[name].encode(rows), ggml_encode(name, rows)
                pair = np.array([mean_squared_error(name, rows, found) for found in blocks]) / size
                if tensor.format == name:
                    assert pair[0] <= AGAIN[name], (tensor.name, name, pair)
                    continue
                assert pair[0] <= pair[1] * (1 + 1e-5), (tensor.name, name, pair)
                total += pair
    for name, (ours, theirs) in sums.items():
        print(f"{fetch.__name__} as {name}: relative squared error {ours:.3e}, GGML's {theirs:.3e}, ratio {ours / theirs:.4f}")


@MODELS
def test_another_model_is_shown_and_refused(fetch: Callable[[], Path]) -> None:
    def glmrun(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "glmrun", *arguments]
        return subprocess.run(command, capture_output=True, text=True, input="hi\n", timeout=600)

    path = str(fetch())
    shown = glmrun("inspect", path)
    assert shown.returncode == 0 and f"can't be run: {path}: architecture" in shown.stdout
    for arguments in (("run", path, "hi"), ("chat", path), ("perplexity", path, "-f", __file__)):
        done = glmrun(*arguments)
        assert done.returncode == 1 and not done.stdout, arguments
        assert done.stderr.startswith("error: ") and REFUSED in done.stderr and done.stderr.count("\n") == 1, arguments
