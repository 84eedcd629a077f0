"""The weights of a checkpoint: safetensors files and their index, checked whole before any weight is read.

Tensors stay on disk; rows are read into fresh arrays with plain reads, so a file that shrinks while it is read is an error
and not the end of the process.
"""

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from quant.errors import Interrupted, UserError, brief
from quant.formats import FORMATS
from quant.strict_json import parse_json_object, read_json_object
from quant.system import will_need

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER = 8 << 20  # bytes; a header of all this model's 10,000 tensors has 1.5 MB, the safetensors library takes 100
WEIGHT_DTYPES = frozenset(("BF16", "F16", "F32"))
# What the first bytes say when a file is not safetensors at all.
_DISGUISES = (
    (b"<", "a web page (a failed download?)"),
    (b"PK\x03\x04", "a zip archive (PyTorch's own format?)"),
    (b"\x80\x02", "a Python pickle; glmrun reads no pickles"),
    (b"\x80\x04", "a Python pickle; glmrun reads no pickles"),
    (b"GGUF", "a GGUF file"),
    (b"\0" * 16, "filled with zeros (an interrupted download?)"),
    (b"{", "a JSON text, perhaps an error message saved by a download"),
)


@dataclass(frozen=True)
class Shard:
    """A safetensors file as it was when its header was read."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class SourceTensor:
    """One tensor on disk."""

    name: str
    dtype: str  # BF16, F16, F32, ...; of a GGUF file also a quantized format
    shape: tuple[int, ...]
    shard: Shard
    begin: int  # byte in the file

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return FORMATS[self.dtype].row_bytes(self.shape[-1])

    def read_rows(self, first: int, n: int, into: np.ndarray | None = None) -> np.ndarray:
        """Rows first .. first + n - 1 as they are stored, all leading dimensions counted as rows: uint8 (n, row_bytes).

        into   uint8 (n * row_bytes,), the memory they are read into; None = fresh
        A one-dimensional tensor is one row. Raises UserError when the file has changed since it was checked, Interrupted when
        it cannot be read.
        """
        rows = np.empty((n, self.row_bytes), np.uint8) if into is None else into.reshape(n, self.row_bytes)
        buffer = rows.data.cast("B")
        try:
            with open(self.shard.path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if (found.st_size, found.st_mtime_ns) != (self.shard.size, self.shard.mtime_ns):
                    raise UserError(f"{self.shard.path} changed while it was being read; wait until it is complete and start again")
                file.seek(self.begin + first * self.row_bytes)
                done = 0
                while done < len(buffer):
                    got = file.readinto(buffer[done:])
                    if not got:
                        raise UserError(f"{self.shard.path} ended while {self.name} was being read")
                    done += got
        except OSError as error:
            raise Interrupted(f"cannot read {self.shard.path}: {error.strerror}") from None
        return rows

    def will_need(self, first: int, n: int) -> int:
        """Let the system begin to read these rows; returns their bytes."""
        with contextlib.suppress(OSError), open(self.shard.path, "rb", buffering=0) as file:
            will_need(file.fileno(), self.begin + first * self.row_bytes, n * self.row_bytes)
        return n * self.row_bytes


def open_shards(folder: Path) -> dict[str, SourceTensor]:
    """{name: tensor} of all the weights in a model folder, from its single model.safetensors or its index and shards.

    What transformers takes: a whole file before an index, which a fine-tuned model's folder may have kept from the base model;
    and the names of a model saved without its head, which begin without `model.`.
    Raises UserError for missing shards, for files that are not what they should be, and where index and shards disagree.
    """
    if (folder / SINGLE).is_file():
        return _with_prefix(read_header(folder / SINGLE))
    if (folder / INDEX).is_file():
        return _with_prefix(_open_indexed(folder))
    if any(folder.glob("adapter_*")):
        raise UserError(f"{folder} has the weights of an adapter alone; merge it into its base model, then convert that", "missing")
    if any(folder.glob("model-*-of-*.safetensors")):
        raise UserError(f"{folder} has shards but no {INDEX}; download the index, too", "missing")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        raise UserError(f"{folder} has weights in PyTorch's pickle format only; glmrun reads safetensors", "missing")
    raise UserError(f"{folder} has no weights: neither {INDEX} nor {SINGLE} is there", "missing")


def _with_prefix(tensors: dict[str, SourceTensor]) -> dict[str, SourceTensor]:
    if "embed_tokens.weight" not in tensors:
        return tensors
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in tensors.items()}


def _open_indexed(folder: Path) -> dict[str, SourceTensor]:
    index = folder / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; glmrun expects one that names each tensor's shard")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[^/\\\0]{1,200}\.safetensors", file):
            raise UserError(
                f"{index}: {name[:80]} lies in {brief(file)}; glmrun expects the name of a .safetensors file in the same folder"
            )
    files = sorted(set(weight_map.values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(files)} shards are missing: {some(missing)}; finish the download", "missing"
        )
    count = re.fullmatch(r"model-\d+-of-(\d+)\.safetensors", files[0])
    stray = [p.name for p in folder.glob(f"model-*-of-{count[1]}.safetensors") if p.name not in files] if count else []
    if stray:
        raise UserError(f"{folder}: the index does not mention {some(sorted(stray))}; is the index from another download?")
    tensors: dict[str, SourceTensor] = {}
    for file in files:
        for name, tensor in read_header(folder / file).items():
            if name in tensors:
                raise UserError(f"{folder}: {name} stands in two shards, {tensors[name].shard.path.name} and {file}")
            if weight_map.get(name) != file:
                place = f"in {weight_map[name]}" if name in weight_map else "nowhere"
                raise UserError(f"{folder}: {name} is in {file}, but the index has it {place}")
            tensors[name] = tensor
    absent = sorted(weight_map.keys() - tensors.keys())
    if absent:
        raise UserError(f"{folder}: the index promises {some(absent)}, and the shards do not have it")
    return tensors


def read_header(path: Path) -> dict[str, SourceTensor]:
    """{name: tensor} of one safetensors file whose header and size agree to the byte; UserError otherwise.

    Our parser takes the JSON apart, in bounds and without duplicates; the safetensors library proves types, shapes and offsets.
    """
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            start = file.read(512)
            _check_start(path, start, status.st_size)
            length = int.from_bytes(start[:8], "little")
            file.seek(8)
            header = parse_json_object(file.read(length), f"the header of {path}")
        with safe_open(path, "np"):
            now = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(_damage(path, status.st_size, str(error))) from None
    shard, data = Shard(path, status.st_size, status.st_mtime_ns), 8 + length
    if (now.st_size, now.st_mtime_ns) != (shard.size, shard.mtime_ns):
        raise UserError(f"{path} changed while it was being read; wait until it is complete and start again")
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        if not isinstance(entry, dict) or not isinstance(entry["dtype"], str):  # ways to write them that only the library takes
            raise UserError(f"{path}: the header's entry for {name[:80]!r} is not one of a tensor")
        found[name] = SourceTensor(name, entry["dtype"], tuple(entry["shape"]), shard, data + entry["data_offsets"][0])
    return found


def _damage(path: Path, size: int, why: str) -> str:
    if "IncompleteBuffer" in why or "not fully covered" in why:
        return f"{path} is cut off or damaged: {size:,} bytes are there, and its header says otherwise; download it again"
    return f"{path}: {why.removeprefix('Error while deserializing header: ')[:200]}; the file is damaged, or newer than glmrun"


def _check_start(path: Path, start: bytes, size: int) -> None:
    if start.startswith(b"version https://git-lfs"):
        expected = re.search(rb"\nsize (\d{1,15})\s", start)
        size_text = f" of {int(expected[1]):,} bytes" if expected else ""
        raise UserError(f"{path} is a git-lfs pointer to a file{size_text}, not the weights; run `git lfs pull` in its folder")
    length = int.from_bytes(start[:8], "little")
    # Only then: the length of a good header may begin with any byte.
    for prefix, what in _DISGUISES if not 2 <= length <= _MAX_HEADER else ():
        if start.startswith(prefix):
            raise UserError(f"{path} is {what}; glmrun expects safetensors weights")
    if size < 8 or length < 2:
        raise UserError(f"{path} has {size:,} bytes and no safetensors header; download it again")
    if length > _MAX_HEADER:
        raise UserError(f"{path} is not a safetensors file: it announces a header of {length:,} bytes (at most {_MAX_HEADER:,})")
    if 8 + length > size:
        raise UserError(f"{path} is cut off: {size:,} bytes are there, its header alone needs {8 + length:,}; download it again")


def some(names: list[str]) -> str:
    """Up to three names for an error line."""
    return ", ".join(name[:80] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
