"""Matrices that stand together in one tensor run where they stand: as the same model with a tensor for each, bit for bit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.foreign_file import READ_ONLY, Parts, random_blocks
from support.tiny_model import ODDER, Tiny

import glmrun
from glmrun.engine.importance import Collector
from glmrun.engine.model import Model
from glmrun.engine.passes import Run
from glmrun.engine.sequence import Sequence
from glmrun.gguf.architecture import open_model_file
from glmrun.kernels.disk import BLIND, LOOKS
from glmrun.measure.plan import demand_of_file
from glmrun.tensors import prefault
from glmrun.tensors.prefault import _extents, _slices, fit
from quant.errors import UserError
from quant.formats import FORMATS

# Gate and up have 96 rows, so they end within a panel; a head has 48 rows of keys and 40 of values.
CONFIG = replace(
    ODDER, num_hidden_layers=2, hidden_size=256, intermediate_size=512, moe_intermediate_size=96, n_routed_experts=5,
    num_experts_per_tok=2, num_attention_heads=4, v_head_dim=40,
)  # fmt: skip
TOKENS = np.random.default_rng(5).integers(0, 950, 70).tolist()
Files = tuple[Path, Path]  # fused, taken apart


@pytest.fixture(scope="module")
def files(tiny_gguf: Callable[..., Tiny], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """files(format) of what stands together; the rest is Q8_0."""
    made: dict[str, Files] = {}

    def of(kind: str) -> Files:
        if kind not in made:
            parts, folder = Parts.read(tiny_gguf("Q8_0", CONFIG).path), tmp_path_factory.mktemp(kind)
            parts.fuse_experts()
            parts.fuse_keys("F32")
            for name in [name for name in parts.blocks if "_gate_up_exps." in name or ".attn_kv_b." in name]:
                shape, values = parts.shapes[name], parts.take(name)
                if kind in READ_ONLY:
                    parts.shapes[name], parts.formats[name] = shape, kind
                    parts.blocks[name] = random_blocks(kind, values.size // 256, 256, 1 / 16, seed=len(made))
                else:
                    parts.put(name, values, kind)
            made[kind] = parts.write(folder / "fused.gguf"), parts.taken_apart(CONFIG).write(folder / "apart.gguf")
        return made[kind]

    return of


def computed(model: Model) -> list[np.ndarray]:
    """Logits of prompts of few and of many tokens, and of a step of several sequences, float32 (tokens, vocab_size)."""
    found = [model.logits(TOKENS[:n]) for n in (1, 3, 70)]
    runs = []
    for n in (1, 30, 2):
        logits = np.empty((n, CONFIG.vocab_size), np.float32)  # float32 (n, vocab_size)
        runs.append(Run(Sequence(*model.weights.cache_shape(256)), np.array(TOKENS[-n:]), logits))
    assert model.runner.step(runs)
    return found + [run.logits for run in runs]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_logits_as_taken_apart(files: Callable[[str], Files], kind: str) -> None:
    outcomes = []
    for path in files(kind):
        for n_threads in (1, 2):
            with glmrun.load(path, n_ctx=256, n_threads=n_threads) as model:
                outcomes.append((computed(model), model.weights.bytes_per_token))
    for logits, per_token in outcomes[1:]:
        assert all(map(np.array_equal, logits, outcomes[0][0])) and per_token == outcomes[0][1]


def test_only_keys_are_converted(files: Callable[[str], Files], tmp_path: Path) -> None:
    with glmrun.load(files("Q4_K")[0], n_ctx=64) as model:
        (line,) = model.weights.notes
        assert line.startswith("runs the keys in attn_kv_b, Q4_K, transposed to F16 (values rounded to 11 bits): ")
        assert int(line.split(": ")[1].split()[0]) == round(3 * 4 * 256 * 48 * 2 / 2**20)  # layers, heads, rows, columns, bytes
        mapping = model.file.mappings[0]
        copies = {name for name, t in model.weights.tensors.items() if not np.may_share_memory(t.data, mapping)}
        assert copies == {f"blk.{i}.attn_k_b.weight" for i in range(3)}
    parts = Parts.read(files("Q4_K")[1])
    parts.fuse_experts()
    told: list[object] = []
    with glmrun.load(parts.write(tmp_path / "experts.gguf"), n_ctx=64, converting=lambda *what: told.append(what)) as model:
        assert model.weights.notes == told == []
        assert all(np.may_share_memory(t.data, model.file.mappings[0]) for t in model.weights.tensors.values())


def test_records_lie_on_the_tensor(files: Callable[[str], Files]) -> None:
    with glmrun.load(files("Q6_K")[0], n_ctx=64) as model:
        gate, up, values = (model.weights.layers[1][name] for name in ("ffn_gate_exps", "ffn_up_exps", "attn_v_b"))
        both, kv = (model.file.tensors[f"blk.1.{name}.weight"].data for name in ("ffn_gate_up_exps", "attn_kv_b"))
        assert gate["address"] == both.ctypes.data and up["address"] == both.ctypes.data + 96 * 210
        assert gate["stride"] == up["stride"] == 2 * 96 * 210 and gate["rows"] == up["rows"] == 96
        assert (values["address"], values["stride"], values["rows"]) == (kv.ctypes.data + 48 * 210, 88 * 210, 40)


def test_what_plan_says_and_what_is_read_ahead(files: Callable[[str], Files], monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the file with a tensor for each, and experts are read from the disk where memory is short."""
    fused, apart = map(open_model_file, files("Q5_K"))
    demands = [demand_of_file(file, CONFIG) for file in (fused, apart)]
    assert demands[0] == replace(demands[1], name=demands[0].name, file_bytes=demands[0].file_bytes)
    assert fit(fused, CONFIG, 1 << 30) == fit(apart, CONFIG, 1 << 30)
    gate, up = (prefault.in_place(fused, CONFIG)[f"blk.1.ffn_{part}_exps.weight"] for part in ("gate", "up"))
    for e in range(5):
        (first, middle), (again, end) = *_extents(gate, e, e + 1), *_extents(up, e, e + 1)
        assert middle == again == (first + end) // 2 and end - first == 2 * 96 * 176
    assert _slices(_extents(gate) + _extents(up)) == _slices(_extents(fused.tensors["blk.1.ffn_gate_up_exps.weight"]))
    enough = fit(apart, CONFIG, 0).needed
    monkeypatch.setattr(prefault, "available_memory", lambda: enough - fit(apart, CONFIG, 0).experts // 2)
    with glmrun.load(fused, n_ctx=256, draft="off") as model:
        partial = model.prefault.partial
        assert partial and "50% of its experts stay there" in partial and model.prefault.from_disk == LOOKS
        model.logits(TOKENS)


def test_from_the_disk(files: Callable[[str], Files]) -> None:
    hits = []
    for path in files("Q4_K"):
        with glmrun.load(path, n_ctx=256, n_threads=2) as model:
            expected = computed(model)
            for way in (LOOKS, BLIND):
                model.prefault.from_disk = way
                assert all(map(np.array_equal, computed(model), expected))
                hits.append(model.runner.hits[0])
    assert hits[:2] == hits[2:] and hits[0] > 0 == hits[1]


def test_importance(files: Callable[[str], Files]) -> None:
    results = []
    for path in files("Q5_1"):
        with glmrun.load(path, n_ctx=256, n_threads=2) as model:
            collector = Collector(model, ["text"])
            collector.read(TOKENS)
            results.append(collector.result().packed())
    assert results[0] == results[1]


@pytest.mark.parametrize("tensor, row", [("ffn_gate_up_exps", 3 * 192 + 50), ("ffn_gate_up_exps", 4 * 192 + 191),
                                         ("attn_kv_b", 88 + 47), ("attn_kv_b", 2 * 88 + 48)])  # fmt: skip
def test_a_weight_that_is_not_finite(files: Callable[[str], Files], tmp_path: Path, tensor: str, row: int) -> None:
    """In gate, up, a key and a value: the byte and the tensor are the file's."""
    parts, name = Parts.read(files("Q8_0")[0]), f"blk.1.{tensor}.weight"
    parts.blocks[name][row, 34:36] = 0xFF  # the scale of the row's second block
    path = parts.write(tmp_path / "nan.gguf")
    byte = open_model_file(path).tensors[name].offset + row * parts.blocks[name].shape[1] + 34
    with pytest.raises(UserError, match=rf"blk\.1\.{tensor}\.weight at byte {byte:,}: a weight that is not a finite number"):
        glmrun.load(path, n_ctx=64).logits([1])
