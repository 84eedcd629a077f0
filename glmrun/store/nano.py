"""nano, the small model that comes with glmrun, as a GGUF file: converted once per quantization into the user's cache."""

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

import quant
from glmrun.machine import cache_folder
from quant.errors import UserError

CHECKPOINT = Path(__file__).parents[1] / "nano"
QUANTIZATIONS = ("Q4_K_M", "Q6_K", "Q8_0")


def nano_path(quantization: str = "Q8_0") -> Path:
    """The path of nano in that quantization, after converting it if it is not in the cache yet.

    The folder is named by a digest of the checkpoint and of the converter, so that neither a new nano nor a new quantizer meets
    an old file. The file appears under its name only when complete; two programs that convert at once both succeed. Where the
    cache can't be written it is a temporary file, of this process: is_temporary() reports that.
    """
    name = f"nano-{quantization}.gguf"
    folder = _folder(name)
    path = folder / name
    if not path.exists():
        from quant.checkpoint import Checkpoint
        from quant.convert import convert, plan

        unfinished = folder / f"{quantization}.{os.getpid()}.gguf"
        try:
            for _ in convert(plan(Checkpoint.open(CHECKPOINT), quantization), unfinished, resumable=False):
                pass
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    return path


def is_temporary(path: Path) -> bool:
    """Whether nano_path() gave this path because the user's cache can't be written."""
    return bool(_temporary.cache_info().currsize) and path.is_relative_to(_temporary().name)


def _folder(name: str) -> Path:
    chosen = cache_folder() / "nano" / _digest()
    try:
        chosen.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(_temporary().name)
    return chosen if os.access(chosen, os.W_OK) or (chosen / name).exists() else Path(_temporary().name)


@cache
def _temporary() -> tempfile.TemporaryDirectory:
    """A folder that is removed when this process ends. Raises UserError (missing) if there can be none."""
    try:
        return tempfile.TemporaryDirectory(prefix="glmrun-nano-")
    except OSError:
        why = f"neither {cache_folder()} nor a temporary folder can be written; GLMRUN_CACHE_DIR and TMPDIR name others"
        raise UserError(why, "missing") from None


@cache
def _digest() -> str:
    """16 hexadecimal digits over nano's files and the converter's source."""
    digest = hashlib.sha256()
    for folder, pattern in ((CHECKPOINT, "*"), (Path(quant.__file__).parent, "**/*.py")):
        for path in sorted(p for p in folder.glob(pattern) if p.is_file()):
            digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
