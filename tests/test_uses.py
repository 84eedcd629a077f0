"""How often experts are used: counted by the kernels, kept for the next start, damaged files ignored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.tiny_model import Tiny

from glmrun.engine.importance import Collector
from glmrun.engine.model import Model
from glmrun.gguf.architecture import config_from_gguf
from glmrun.gguf.open import open_gguf
from glmrun.kernels.disk import BLIND, LOOKS
from glmrun.tensors import prefault, uses


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(uses, "state_folder", lambda: tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def path(tiny_gguf: Callable[..., Tiny], tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return Path(shutil.copy(tiny_gguf("Q4_K_M").path, tmp_path / "models" / "model.gguf"))


def test_each_use_is_counted(path: Path) -> None:
    """As the importance matrix does, which counts tokens: of a step with one token that is the same."""
    with Model(path, 256, 2) as model:
        counted = model.runner.workspace.uses
        collector = Collector(model, [])
        model.logits([1, 2, 3])
        assert not counted.any() and model.runner.hits == (0, 0)  # all is in memory
        model.prefault.from_disk = LOOKS
        for token in (5, 17, 300, 5):
            collector.read([token])
        seen = collector.result().counts
        for layer, row in enumerate(counted):
            assert np.array_equal(row, seen.get(f"blk.{layer}.ffn_up_exps.weight", np.zeros(12)))
        assert counted.sum() == 4 * 2 * 3
        before = model.runner.hits
        wanted = sum(int(counted[i].sum()) * t.n_bytes // 12 for i in (1, 2) for t in model.file.tensors.values()
                     if t.name.startswith(f"blk.{i}.") and "_exps." in t.name)  # fmt: skip
        assert before[0] == wanted and 0 <= before[1] <= wanted
        model.logits([5])  # its experts have just been read
        wanted, hits = (after - b for after, b in zip(model.runner.hits, before, strict=True))
        assert wanted == hits > 0
        model.prefault.from_disk = BLIND
        model.logits(list(range(200)))
        assert counted.max() <= 6 and (counted[1:] >= 1).sum() > 18  # a step counts once
        assert model.runner.hits == (0, 0)  # nobody knows


def test_counts_are_kept_until_the_next_start(path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefault, "available_memory", lambda: prefault.ROOM)
    total = 0
    for start in range(3):
        with Model(path, 64, 1) as model:
            file, config = model.file, model.config
            assert uses.known_uses(file.watched, config).sum() == total
            model.logits([start])
            total += int(model.runner.workspace.uses.sum())
        model.close()  # again: nothing is added twice
    assert total == 3 * 6 and uses.known_uses(file.watched, config).sum() == total
    assert len(list((state / "experts").iterdir())) == 1
    forgotten = Model(path, 64, 1)
    forgotten.logits([1])
    del forgotten, model
    assert uses.known_uses(file.watched, config).sum() == total + 6


def test_what_was_used_is_read_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = open_gguf(path)
    config = config_from_gguf(file)
    counts = np.zeros((config.num_hidden_layers + 1, config.n_routed_experts), np.int64)
    counts[2, 9] = 5
    uses.keep_uses(file.watched, counts)
    asked: list[int] = []
    monkeypatch.setattr(prefault, "populate", lambda start, n_bytes: asked.append(start) or True)
    monkeypatch.setattr(prefault, "keep", lambda start, n_bytes: False)
    found = prefault.Prefault(file, config, prefault.fit(file, config, 0).needed - 1)
    experts = [file.tensors[f"blk.2.ffn_{kind}_exps.weight"] for kind in ("gate", "up", "down")]
    firsts = {prefault._extents(t, 9)[0][0] // prefault.PAGE * prefault.PAGE for t in experts}
    n = len(found._ranges)
    assert firsts <= {start for start, _ in found._experts[:20]} and n > 0


def test_a_file_is_known_by_what_is_in_it(path: Path, tmp_path: Path) -> None:
    def place(file: Path) -> Path:
        return uses.place(open_gguf(file).watched)

    other = Path(shutil.copy(path, tmp_path / "moved.gguf"))
    assert place(path) == place(other)
    with open(other, "r+b") as file:
        file.seek(other.stat().st_size // 2 + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert place(path) != place(other)


def test_damage_is_ignored(path: Path) -> None:
    file = open_gguf(path)
    config = config_from_gguf(file)
    shape = (config.num_hidden_layers + 1, config.n_routed_experts)
    counts = np.arange(shape[0] * shape[1], dtype=np.int64).reshape(shape)
    uses.keep_uses(file.watched, counts)
    kept = uses.place(file.watched)
    assert np.array_equal(uses.known_uses(file.watched, config), counts) and kept.parent.stat().st_mode & 0o077 == 0
    for damage in (
        b"", b"\xff\xfe", b"{", b"[]", b"[1]", b"7", b'{"uses": 3}', b'{"uses": [[1, 2]]}', b'{"uses": [[1], [1, 2]]}',
        json.dumps({"uses": (-counts).tolist()}).encode(),
        json.dumps({"uses": (counts * 0.5).tolist()}).encode(),
        json.dumps({"uses": [[1 << 70] * shape[1]] * shape[0]}).encode(),
        json.dumps({"uses": [["x"] * shape[1]] * shape[0]}).encode(),
        b"[" * 100_000,
    ):  # fmt: skip
        kept.write_bytes(damage)
        assert not uses.known_uses(file.watched, config).any(), damage[:40]
        uses.keep_uses(file.watched, counts)  # and is replaced
        assert np.array_equal(uses.known_uses(file.watched, config), counts)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_counts_do_not_grow_without_limit(path: Path) -> None:
    file = open_gguf(path)
    config = config_from_gguf(file)
    counts = np.full((config.num_hidden_layers + 1, config.n_routed_experts), 1 << 30, np.int64)
    counts[0, 0] = 1 << 29
    for _ in range(2):
        uses.keep_uses(file.watched, counts)
    found = uses.known_uses(file.watched, config)
    assert found.max() == 1 << 30 and found[0, 0] == 1 << 29


def test_nothing_is_kept_where_nothing_can_be_written(path: Path, state: Path) -> None:
    state.write_text("a file, not a folder")
    file = open_gguf(path)
    config = config_from_gguf(file)
    uses.keep_uses(file.watched, np.ones((config.num_hidden_layers + 1, config.n_routed_experts), np.int64))
    assert not uses.known_uses(file.watched, config).any()


def test_an_importance_matrix_counts_too(path: Path) -> None:
    with Model(path, 64, 1) as model:
        collector = Collector(model, ["text"])
        collector.read([5, 6, 7, 8])
        found = collector.result()
        file, config = model.file, model.config
        (path.parent / "a.imatrix.gguf").write_bytes(b"damaged")
        (path.parent / "tiny-imatrix.gguf").write_bytes(found.packed())
        counted = uses.known_uses(file.watched, config)
        assert counted.sum() == 4 * 3 * 2
        for layer in (1, 2):
            assert np.array_equal(counted[layer], found.counts[f"blk.{layer}.ffn_gate_exps.weight"])
        model.prefault.from_disk = LOOKS
        model.logits([5])
    assert uses.known_uses(file.watched, config).sum() == 6  # what was really used counts more
