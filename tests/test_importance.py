"""Importance matrices: what the kernels sum against the model in NumPy, the file against gguf-py, and what a conversion gains."""

import struct
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from naive import Naive
from support.tiny_model import ODD, Tiny

import glmrun
from glmrun.engine.importance import Collector
from glmrun.gguf.open import open_gguf
from glmrun.gguf.source import GGUFSource, read_importance
from quant.convert import convert, plan
from quant.errors import UserError
from quant.gguf_header import TensorEntry, pack_header
from quant.importance import Importance

EXPERTS, HEADS, SHARED = "blk.1.ffn_down_exps.weight", "blk.0.attn_k_b.weight", "blk.1.attn_k_b.weight"
IDS = np.random.default_rng(5).integers(0, ODD.vocab_size, 70).tolist()


class Recording(Naive):
    """Notes the squares of what each matrix reads."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        object.__setattr__(self, "sums", defaultdict(float))
        object.__setattr__(self, "counts", defaultdict(int))

    def note(self, name: str, matrix: int, x: np.ndarray) -> None:
        self.sums[name, matrix] = self.sums[name, matrix] + (x**2).sum(axis=0)  # type: ignore[attr-defined]
        self.counts[name, matrix] += len(x)  # type: ignore[attr-defined]

    def attention(self, i: int, x: np.ndarray) -> np.ndarray:
        for name in ("attn_q_a", "attn_kv_a_mqa"):
            self.note(f"blk.{i}.{name}.weight", 0, x)
        return super().attention(i, x)

    def linear(self, name: str, x: np.ndarray, expert: int | None = None) -> np.ndarray:
        self.note(name, expert or 0, x)
        return super().linear(name, x, expert)

    def rounded(self, name: str, x: np.ndarray) -> np.ndarray:
        if "attn_k_b" in name or "attn_v_b" in name:
            for head in range(x.shape[1]):
                self.note(name, head, x[:, head])
        return super().rounded(name, x)


def collected(path: Path, chunks: list[list[int]], n_threads: int = 2) -> Importance:
    collector = Collector(glmrun.load(path, n_ctx=128, n_threads=n_threads), ["seeded"])
    for ids in chunks:
        collector.read(ids)
    return collector.result()


def test_sums_are_those_of_the_model_in_numpy(tiny_gguf: Callable[..., Tiny]) -> None:
    tiny = tiny_gguf("F32")
    naive = Recording(tiny.weights, tiny.config, None, absorbed=True)
    for ids in (IDS[:50], IDS[50:]):
        naive.logits(ids)
    found = collected(tiny.path, [IDS[:50], IDS[50:]])
    matrices = {name for name, formed in tiny.formats.items() if len(tiny.weights[name].shape) > 1 and "ffn_gate_inp" not in name}
    assert matrices - set(found.sums) == {"token_embd.weight"}
    assert set(found.sums) - matrices == set()
    for (name, matrix), expected in naive.sums.items():  # type: ignore[attr-defined]
        heads = "attn_k_b" in name or "attn_v_b" in name
        assert found.counts[name][0 if heads else matrix] == naive.counts[name, matrix]  # type: ignore[attr-defined]
        error = np.abs(found.sums[name].reshape(-1, len(expected))[matrix] - expected)
        assert np.all(error <= 1e-3 * expected + 1e-4 * expected.mean()), name
    for name, sums in found.sums.items():
        assert len(sums) == len(found.counts[name]) == (tiny.config.n_routed_experts if "exps" in name else 1)
        for matrix in np.flatnonzero(found.counts[name]):
            assert (name, matrix) in naive.sums or name == "output.weight"  # type: ignore[attr-defined]
    assert found.counts["output.weight"][0] == 32 + 20  # the last of each step
    assert (found.n_chunks, found.chunk_size) == (2, 50)


def test_sums_do_not_depend_on_the_number_of_threads(tiny_gguf: Callable[..., Tiny]) -> None:
    one, three = (collected(tiny_gguf().path, [IDS], n) for n in (1, 3))
    assert one.sums.keys() == three.sums.keys()
    for name in one.sums:
        assert np.array_equal(one.sums[name], three.sums[name]), name
        assert np.array_equal(one.counts[name], three.counts[name]), name


def test_a_model_answers_as_before_afterwards(tiny_gguf: Callable[..., Tiny]) -> None:
    model = glmrun.load(tiny_gguf().path, n_ctx=128)
    before = model.logits(IDS)
    collector = Collector(model, [])
    collector.read(IDS)
    once = collector.result()
    assert np.array_equal(model.logits(IDS), before)
    assert np.array_equal(collector.result().sums["output.weight"], once.sums["output.weight"])


def example() -> Importance:
    rng = np.random.default_rng(1)
    sums = {EXPERTS: rng.random((3, 8), np.float32), HEADS: rng.random((1, 6), np.float32)}
    sums[EXPERTS][1] = 0
    counts = {EXPERTS: np.array([5, 0, 1000], np.float32), HEADS: np.array([7], np.float32)}
    return Importance(sums, counts, ["a.txt", "b.txt"], 9, 512)


def test_the_file_is_llama_cpps(tmp_path: Path) -> None:
    written = example()
    (tmp_path / "x.gguf").write_bytes(written.packed())
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt", "b.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 9
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    tensors = {t.name: (t.tensor_type.name, list(map(int, t.shape)), t.data) for t in reader.tensors}
    assert list(tensors) == [f"{name}.{what}" for name in sorted(written.sums) for what in ("in_sum2", "counts")]
    assert tensors[f"{EXPERTS}.in_sum2"][:2] == ("F32", [8, 3])
    assert tensors[f"{EXPERTS}.counts"][:2] == ("F32", [1, 3])
    assert tensors[f"{HEADS}.in_sum2"][1][0] == 6 and np.prod(tensors[f"{HEADS}.counts"][1]) == 1
    again = read_importance(tmp_path / "x.gguf")
    assert (again.datasets, again.n_chunks, again.chunk_size) == (written.datasets, 9, 512)
    for name in written.sums:
        assert np.array_equal(again.sums[name], written.sums[name]) and np.array_equal(again.counts[name], written.counts[name])
    assert again.digest() == written.digest()


def test_experts_that_saw_little_are_weighed_nearly_evenly() -> None:
    importance = example()
    weights, sums = importance.weights(EXPERTS, (3, 16, 8)), importance.sums[EXPERTS]
    assert weights is not None and weights.shape == (3, 8)
    even = sums.sum() / 1005 / 8
    assert weights[1] == pytest.approx(np.full(8, even), rel=1e-6)
    assert weights[2] == pytest.approx((sums[2] + 32 * even) / 1032, rel=1e-6)
    assert importance.weights("blk.2.ffn_down_exps.weight", (3, 16, 8)) is None
    with pytest.raises(UserError, match=r"3 x 8 values for .*, the model 3 x 16: it is of another model"):
        importance.weights(EXPERTS, (3, 16, 16))


def test_heads_with_one_count_or_one_each() -> None:
    """llama.cpp counted for each head once, and counts for all of them together since."""
    one = example()
    each = replace(one, sums={HEADS: one.sums[HEADS].reshape(2, 3)}, counts={HEADS: np.array([7, 7], np.float32)})
    weights = one.weights(HEADS, (2, 16, 3))
    assert weights is not None and weights.shape == (2, 3)
    assert np.array_equal(weights, each.weights(HEADS, (2, 16, 3)))
    even = float(one.sums[HEADS].sum()) / 7 / 6
    assert weights.reshape(-1) == pytest.approx((one.sums[HEADS][0] + 32 * even) / 39, rel=1e-6)


def old_form(importance: Importance, n_calls: int, named: bool) -> bytes:
    """The matrix in llama.cpp's older form: means times calls, and who made it if `named`."""
    out = struct.pack("<i", len(importance.sums))
    for name, sums in importance.sums.items():
        means = sums / importance.counts[name][:, None]
        out += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_calls, means.size)
        out += (means * n_calls).astype("<f4").tobytes()
    return out + (struct.pack("<ii", n_calls, 5) + b"a.txt" if named else b"")


@pytest.mark.parametrize("named", [False, True])
def test_llama_cpps_older_form(tmp_path: Path, named: bool) -> None:
    """It was called no GGUF file. Beside thousands of tokens the 32 even ones change little."""
    path, rng = tmp_path / "x.dat", np.random.default_rng(2)
    names = {EXPERTS: (3, 8), HEADS: (1, 6), SHARED: (1, 3)}
    sums = {name: rng.uniform(1, 2, shape).astype(np.float32) for name, shape in names.items()}
    written = Importance(sums, {name: np.full(shape[0], 4608, np.float32) for name, shape in names.items()}, [], 9, 512)
    path.write_bytes(old_form(written, 9, named))
    found = read_importance(path)
    assert (found.datasets, found.n_chunks, found.chunk_size) == ((["a.txt"], 9, 512) if named else ([], 0, 512))
    for name, shape in ((EXPERTS, (3, 16, 8)), (HEADS, (2, 16, 3))):
        assert found.weights(name, shape) == pytest.approx(written.weights(name, shape), rel=1e-5)
    of_all = found.weights(SHARED, (2, 16, 3))  # one row for all heads
    assert of_all is not None and of_all == pytest.approx(np.repeat(sums[SHARED] / 4608, 2, axis=0), rel=0.01)
    for n in range(40, path.stat().st_size - 4):
        (tmp_path / "cut.dat").write_bytes(path.read_bytes()[:n])
        if not (named and n == len(old_form(written, 9, False))):
            with pytest.raises(UserError, match="cut off or damaged at byte"):
                read_importance(tmp_path / "cut.dat")
    with pytest.raises(UserError, match="no such file"):
        read_importance(tmp_path / "none.dat")


def test_what_is_no_importance_matrix_is_refused(tmp_path: Path, tiny_gguf: Callable[..., Tiny]) -> None:
    with pytest.raises(UserError, match="is not an importance matrix"):
        read_importance(tiny_gguf().path)
    path = tmp_path / "bad.gguf"
    for sums, counts, message in (
        (np.array([[1, -1]]), np.array([[1]]), "negative or not finite"),
        (np.array([[1, np.nan]]), np.array([[1]]), "negative or not finite"),
        (np.array([[1, 1], [2, 2]]), np.array([[1]]), "2 rows and 1 counts"),
    ):
        arrays = {"w.in_sum2": sums.astype(np.float32), "w.counts": counts.astype(np.float32)}
        header = pack_header({"general.type": "imatrix"}, [TensorEntry(n, a.shape, 0, a.nbytes) for n, a in arrays.items()])
        path.write_bytes(header + b"".join(a.tobytes().ljust(32, b"\0") for a in arrays.values()))
        with pytest.raises(UserError, match=message):
            read_importance(path)
    header = pack_header({"general.type": "imatrix", "imatrix.datasets": 5, "imatrix.chunk_count": "many"}, [])
    path.write_bytes(header)
    nothing = read_importance(path)
    assert (nothing.datasets, nothing.n_chunks, nothing.chunk_size) == ([], 0, 0)
    (tmp_path / "own.gguf").write_bytes(collected(tiny_gguf("BF16").path, [IDS]).packed())
    own = plan(GGUFSource.open(tiny_gguf("BF16").path), "Q8_0", importance=read_importance(tmp_path / "own.gguf"))
    with pytest.raises(UserError, match="one of the files it would be made from"):
        next(convert(own, tmp_path / "own.gguf", force=True))
    other = replace(example(), sums={"w": np.ones((1, 4), np.float32)}, counts={"w": np.ones(1, np.float32)})
    with pytest.raises(UserError, match="none of the model's tensors"):
        plan(GGUFSource.open(tiny_gguf("BF16").path), "Q8_0", importance=other)


@pytest.mark.parametrize("recipe", ["Q4_K_M", "Q6_K", "Q8_0"])
def test_errors_fall_where_they_cost_less(recipe: str, tmp_path: Path, tiny_gguf: Callable[..., Tiny]) -> None:
    """In every tensor the weighted error is less than without an importance matrix, each expert weighed by its own."""
    tiny = tiny_gguf("BF16")
    rng, importance = np.random.default_rng(2), collected(tiny.path, [IDS])
    for sums in importance.sums.values():
        sums *= rng.lognormal(size=sums.shape).astype(np.float32)
    source = GGUFSource.open(tiny.path)
    files = []
    for chosen in (None, importance):
        path = tmp_path / f"{len(files)}.gguf"
        for _ in convert(plan(source, recipe, importance=chosen), path):
            pass
        files.append(open_gguf(path))
    assert files[1].metadata["quantize.imatrix.chunks_count"] == 1
    assert files[1].metadata["quantize.imatrix.dataset"] == "seeded"
    n = 0
    for name, tensor in files[0].tensors.items():
        if name not in importance.sums:
            if tensor.format != "F32":
                assert np.array_equal(tensor.rows, files[1].tensors[name].rows)
            continue
        x = tiny.weights[name].reshape(-1, *tiny.weights[name].shape[-2:])
        found = importance.weights(name, tiny.weights[name].shape)
        assert found is not None
        weights = found[:, None, :]
        errors = [float(np.sum(weights * (file.tensors[name].floats().reshape(x.shape) - x) ** 2)) for file in files]
        assert errors[1] <= 0.99 * errors[0], (name, errors)
        n += 1
    assert n >= 20


def test_a_kind_that_is_no_text_is_refused_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is given by mistake would fill the memory."""
    monkeypatch.delattr("glmrun.gguf.file.TensorInfo.floats")
    path = tmp_path / "model.gguf"
    for kind in ("model", 3, np.array([1, 2], np.uint32)):
        path.write_bytes(pack_header({"general.type": kind}, [TensorEntry("w.in_sum2", (8,), 0, 32)]) + bytes(32))
        with pytest.raises(UserError, match=r"is not an importance matrix: its general\.type is "):
            read_importance(path)


def test_a_text_from_standard_input(tmp_path: Path) -> None:
    text, out = b"Water is wet, and fire is warm. " * 20, tmp_path / "x.gguf"
    line = [sys.executable, "-m", "glmrun", "imatrix", "nano", "-f", "-", "-c", "16", "--chunks", "2", "-o", str(out)]
    few = subprocess.run(line, input=b"Water", capture_output=True, timeout=600)
    assert few.returncode == 1 and few.stderr.startswith(b"error: the text has ")
    done = subprocess.run(line, input=text, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert gguf.GGUFReader(out).fields["imatrix.datasets"].contents() == ["standard input"]
