"""The reader is total: every damaged file gives one UserError that names what is wrong, never another exception."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from glmrun.gguf_file import open_gguf
from quant.errors import UserError

ALIGNMENT = 32
STRING, ARRAY, U8, U32, BOOL, U64, F32 = 8, 9, 0, 4, 7, 10, 6


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, offset)


KEYS = [
    key("general.architecture", STRING, text("deepseek2")),
    key("a.flag", BOOL, b"\x01"),
    key("a.number", U32, struct.pack("<I", 7)),
    key("a.list", ARRAY, struct.pack("<IQ", U32, 3) + struct.pack("<3I", 1, 2, 3)),
    key("a.words", ARRAY, struct.pack("<IQ", STRING, 2) + text("one") + text("zwei")),
]
TENSORS = [tensor("first.weight", (4, 2), 0, 0), tensor("second.weight", (32, 3), 8, 32)]
DATA = np.arange(8, dtype=np.float32).tobytes() + bytes(3 * 34)


def build(
    keys: list[bytes] = KEYS,
    tensors: list[bytes] = TENSORS,
    data: bytes = DATA,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_tensors: int | None = None,
    n_keys: int | None = None,
) -> bytes:
    header = magic + struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys
    )
    header += b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % ALIGNMENT) + data


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    def refuse(content: bytes) -> str:
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            open_gguf(path)
        message = str(caught.value)
        assert "\n" not in message and str(path) in message and caught.value.exit_code == 1
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


def test_missing_and_not_a_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(UserError) as caught:
            open_gguf(path)
        assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "0 bytes"),
        (b"GGUF", "4 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", "git-lfs pointer"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"PK\x03\x04" + bytes(60), "zip archive"),
        (bytes(100), "zeros"),
        (struct.pack("<Q", 60) + b'{"a": 1}' + bytes(60), "safetensors"),
        (build(magic=b"GGML"), "begins with"),
        (build(version=1), "version 1"),
        (build(version=4), "version 4"),
        (build(version=3 << 24), "big-endian"),
        (build(n_tensors=2**64 - 1), "tensors"),
        (build(n_keys=2**64 - 1), "metadata keys"),
        (build(n_keys=len(KEYS) + 1), "at byte"),
    ],
)
def test_headers(refused: Callable[[bytes], str], content: bytes, said: str) -> None:
    assert said in refused(content)


@pytest.mark.parametrize(
    "bad, said",
    [
        (key("", U8, b"\x00"), "empty name"),
        (KEYS[0], "twice"),
        (struct.pack("<Q", 2**64 - 1) + b"x", "at most"),
        (struct.pack("<Q", 60_000) + b"x", "were expected"),
        (key("k", 13, b""), "value type 13"),
        (key("k", BOOL, b"\x02"), "0 or 1"),
        (key("k", STRING, text(b"\xff\xfe")), "UTF-8"),
        (key("k", ARRAY, struct.pack("<IQ", ARRAY, 1)), "element"),
        (key("k", ARRAY, struct.pack("<IQ", U8, 2**60)), "at most"),
        (key("k", ARRAY, struct.pack("<IQ", U64, 2**20)), "were expected"),
        (key("k", ARRAY, struct.pack("<IQ", STRING, 2**24)), "were expected"),
        (key("k", ARRAY, struct.pack("<IQ", STRING, 2) + text("ok") + text(b"\xff")), "UTF-8"),
        (key("k", ARRAY, struct.pack("<IQ", BOOL, 2) + b"\x01\x05"), "0 or 1"),
        (key("general.alignment", U32, struct.pack("<I", 0)), "general.alignment"),
        (key("general.alignment", U32, struct.pack("<I", 13)), "general.alignment"),
        (key("general.alignment", U32, struct.pack("<I", 2**31)), "general.alignment"),
        (key("general.alignment", STRING, text("32")), "general.alignment"),
        (key("general.alignment", U32, struct.pack("<I", 64)), "offset of second.weight"),
    ],
)
def test_metadata(refused: Callable[[bytes], str], bad: bytes, said: str) -> None:
    assert said in refused(build(keys=[*KEYS, bad]))


@pytest.mark.parametrize(
    "bad, said",
    [
        (tensor("first.weight", (4, 2), 0, 160), "twice"),
        (tensor("", (4,), 0, 160), "name"),
        (tensor("n" * 64, (4,), 0, 160), "at most"),
        (tensor("esc\x1b[31m", (4,), 0, 160), "name"),
        (tensor("t", (), 0, 160), "dimensions"),
        (tensor("t", (1, 1, 1, 1, 1), 0, 160), "dimensions"),
        (tensor("t", (2**63,), 0, 160), "shape"),
        (tensor("t", (2**39, 2**39), 0, 160), "shape"),
        (tensor("t", (0,), 0, 160), "shape"),
        (tensor("t", (4,), 99, 160), "not a GGML type"),
        (tensor("t", (256,), 16, 160), "IQ2_XXS"),
        (tensor("t", (33,), 8, 160), "blocks of 32"),
        (tensor("t", (4,), 0, 128), "offset of t"),
        (tensor("t", (4,), 0, 2**64 - 1), "offset of t"),
        (tensor("t", (1024,), 0, 160), "incomplete download"),
    ],
)
def test_tensor_table(refused: Callable[[bytes], str], bad: bytes, said: str) -> None:
    assert said in refused(build(tensors=[*TENSORS, bad]))


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
