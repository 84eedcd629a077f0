"""How often each expert of a model file was read for, kept from one start to the next: the likely ones are then read first.

A file of JSON for each model file in the state folder: {"uses": counts, a row for each layer}. One that is damaged or of another
shape is ignored. Where there is none, an importance matrix beside the model counts how often it has seen each expert.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from glmrun.gguf.open import open_parts
from glmrun.gguf.watch import Watched
from glmrun.machine import state_folder
from quant.config import Config
from quant.errors import UserError

_FRONT, _MIDDLE = 1 << 20, 4096  # bytes that a file is known by: its metadata, and some weights
_MOST = 1 << 30  # of a count: halved from there on, so that what was used lately counts more


def place(parts: Sequence[Watched]) -> Path:
    """Where the counts of a model file stand. It is known by its size and some of what is in it. Raises OSError."""
    digest = hashlib.sha256()
    for part in parts:
        size = part.status().st_size
        digest.update(size.to_bytes(8, "little") + os.pread(part.descriptor, _FRONT, 0))
        digest.update(os.pread(part.descriptor, _MIDDLE, size // 2))
    return state_folder() / "experts" / f"{digest.hexdigest()[:32]}.json"


def known_uses(parts: Sequence[Watched], config: Config) -> np.ndarray:
    """int64 (num_hidden_layers + 1, n_routed_experts): as kept, else as an importance matrix beside the file counts; else zeros.

    The last row is the prediction layer's.
    """
    shape = (config.num_hidden_layers + 1, config.n_routed_experts)
    kept = None
    with contextlib.suppress(OSError):
        kept = _read(place(parts), shape)
    return kept if kept is not None else _of_importance(parts[0].path, shape)


def keep_uses(parts: Sequence[Watched], uses: np.ndarray) -> None:
    """Add counts, int64 (num_hidden_layers + 1, n_routed_experts), to those that are kept, where that is possible."""
    if not uses.any():
        return
    with contextlib.suppress(OSError):
        path = place(parts)
        before = _read(path, uses.shape)
        total = uses if before is None else uses + before
        while total.max() > _MOST:
            total = total // 2
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            unfinished.write_text(json.dumps({"uses": total.tolist()}), encoding="utf-8")
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["uses"]
        uses = np.array(rows)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    sound = uses.shape == shape and uses.dtype == np.int64 and bool(((uses >= 0) & (uses <= _MOST)).all())
    return uses if sound else None


def _of_importance(model: Path, shape: tuple[int, ...]) -> np.ndarray:
    """What the first importance matrix in the model's folder has seen; zeros without one."""
    found = np.zeros(shape, np.int64)
    for path in sorted(model.parent.glob("*imatrix*.gguf")):
        with contextlib.suppress(UserError, OSError):
            tensors = open_parts(path)[0].tensors
            for i, row in enumerate(found):
                counts = tensors.get(f"blk.{i}.ffn_gate_exps.weight.counts")
                if counts is not None and counts.format == "F32" and counts.n_bytes == 4 * len(row):
                    seen = counts.floats().reshape(-1)  # float32 (n_routed_experts,)
                    row[:] = np.nan_to_num(seen, nan=0, posinf=0, neginf=0).clip(0, _MOST)
            if found.any():
                break
    return found
