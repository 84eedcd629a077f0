"""The reader is total: every damaged file gives one UserError that names what is wrong, never another exception."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.gguf_bytes import DATA, build

from glmrun.gguf import reader
from glmrun.gguf.open import open_gguf
from quant.errors import UserError


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    def refuse(content: bytes) -> str:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            open_gguf(path)
        message = str(caught.value)
        assert "\n" not in message and str(path) in message and caught.value.kind == "failed"
        return message

    return refuse


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(build())
    file = open_gguf(path)
    assert (
        file.metadata["general.architecture"] == "deepseek2" and file.metadata["a.flag"] is True and file.metadata["a.number"] == 7
    )
    assert file.metadata["a.list"].tolist() == [1, 2, 3] and file.metadata["a.words"] == ["one", "zwei"]
    assert file.tensors["first.weight"].shape == (2, 4) and file.tensors["second.weight"].format == "Q8_0"
    assert file.tensors["first.weight"].floats().tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert file.tensors["second.weight"].rows.shape == (3, 34)
    with pytest.raises(ValueError):
        file.tensors["first.weight"].rows[0, 0] = 1


def test_reading_equals_gguf_py(tiny_gguf: Callable) -> None:
    tiny = tiny_gguf("everything")
    file = open_gguf(tiny.path)
    assert set(file.tensors) == set(tiny.weights)
    for name, values in tiny.weights.items():
        assert np.array_equal(file.tensors[name].floats(), values), name


def test_lists_of_texts_are_read_as_one_text_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "texts"
    kinds = (b"ab", "\u0120t".encode(), b"", bytes(7), bytes(8), b"\0a" + bytes(6), b"x" * 255, b"y" * 256, b"z" * 65_536, b"\xff")
    for _ in range(1000):
        texts = [kinds[i] for i in rng.integers(rng.integers(1, len(kinds) + 1), size=rng.integers(300))]
        content = b"".join(struct.pack("<Q", len(text)) + text for text in texts) + bytes(rng.integers(20))
        content = content[: rng.integers(len(content) + 1)] if rng.random() < 0.2 else content
        path.write_bytes(content)
        monkeypatch.setattr(reader, "_WINDOW", int(rng.choice([1, 50, 1000, 1 << 18])))
        read: list[tuple[list[str] | str, int]] = []
        for how in ("one by one", "together"):
            with path.open("rb") as file:
                cursor = reader._Cursor(path, file.fileno(), len(content))
                try:
                    if how == "together":
                        read.append((cursor.strings(len(texts), "k"), cursor.at))
                    else:
                        cursor.need(8 * len(texts), "k")
                        read.append(([cursor.string(f"k[{i}]", reader.MAX_KEY) for i in range(len(texts))], cursor.at))
                except UserError as refusal:
                    read.append((str(refusal), cursor.at))
        assert read[0] == read[1]


def test_missing_and_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(UserError) as caught:
            open_gguf(path)
        assert caught.value.kind == "missing"


def test_every_truncation_is_refused(refused: Callable[[bytes], str]) -> None:
    whole = build()
    for length in range(len(whole)):
        refused(whole[:length])


def test_how_much_is_there(refused: Callable[[bytes], str]) -> None:
    whole = build()
    assert f"{len(whole) - 50:,} of {len(whole):,} bytes" in refused(whole[:-50])


def test_single_damaged_bytes_never_escape(tmp_path: Path) -> None:
    """Each header byte with each of seven values: a file or a UserError, and an accepted file's tensors lie inside it."""
    whole, path = bytearray(build()), tmp_path / "model.gguf"
    for at in range(len(whole) - len(DATA)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, whole[at] ^ 1, whole[at] ^ 0x80):
            damaged = whole[:at] + bytes([value]) + whole[at + 1 :]
            path.write_bytes(damaged)
            try:
                file = open_gguf(path)
            except UserError:
                continue
            start = file.mappings[0].ctypes.data
            for info in file.tensors.values():
                assert start <= info.data.ctypes.data and info.data.ctypes.data + len(info.data) <= start + len(whole)
                assert info.rows.size == info.n_bytes
