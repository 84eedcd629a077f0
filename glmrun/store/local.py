"""Models on this machine: pulled from a hub, or converted here; listed, found by name, removed.

<hub's cache>/models--USER--MODEL/snapshots/COMMIT/FILE -> ../../blobs/DIGEST
<models folder>/NAME.gguf, or NAME-00001-of-00003.gguf and so on
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from glmrun.store import hub

_CHECKPOINT_TYPE = "glm4_moe_lite"


@dataclass(frozen=True)
class LocalModel:
    """One model; files are all that belong to it, the first is the one to open."""

    name: str  # user/model:QUANT for a pulled file, the file's name without .gguf and part number for a converted one
    kind: str  # pulled, converted or checkpoint
    files: tuple[Path, ...]
    quantization: str | None
    n_bytes: int
    modified: float  # seconds since 1970

    @property
    def path(self) -> Path:
        """What is opened: the GGUF file, its first part if it is split; a checkpoint's folder."""
        return self.files[0].parent if self.kind == "checkpoint" else self.files[0]


def models_folder() -> Path:
    """Where converted models are put: GLMRUN_MODELS, or the system's place for a user's data."""
    import platformdirs

    return Path(os.path.expanduser(os.environ.get("GLMRUN_MODELS") or f"{platformdirs.user_data_dir('glmrun')}/models"))


def local_models() -> list[LocalModel]:
    """All models that are here and whole, by name."""
    folder = models_folder()
    there = [hub.RemoteFile(path.name, 0) for path in folder.glob("*.gguf") if path.is_file()]
    groups = {name: parts for name, parts in hub.group_parts(there).items() if hub.is_whole(parts)}
    found = [_model(name, "converted", tuple(folder / part.name for part in parts)) for name, parts in groups.items()]
    for repo in sorted(hub.cache_folder().glob("models--*--*")):
        found += _pulled(repo)
    return sorted(found, key=lambda model: model.name.casefold())


def _pulled(repo: Path) -> list[LocalModel]:
    """The models of one repository in the hub's cache; of several revisions the latest that has the file."""
    owner, _, name = repo.name.removeprefix("models--").partition("--")
    snapshots = sorted((s for s in (repo / "snapshots").glob("*") if s.is_dir()), key=lambda s: s.stat().st_mtime, reverse=True)
    found: dict[str, LocalModel] = {}
    for snapshot in snapshots:
        files = [
            hub.RemoteFile(path.relative_to(snapshot).as_posix(), path.stat().st_size)
            for path in sorted(snapshot.rglob("*.gguf"))
            if path.is_file()
        ]
        for parts in hub.group_models(files).values():
            if hub.is_whole(parts):
                quantization = hub.quantization_of(parts[0].name)
                label = f"{owner}/{name}:{quantization or Path(parts[0].name).stem}"
                found.setdefault(label, _model(label, "pulled", tuple(snapshot / part.name for part in parts)))
        if f"{owner}/{name}" not in found and _is_checkpoint(snapshot):
            files_there = tuple(path for path in sorted(snapshot.iterdir()) if path.is_file())
            found[f"{owner}/{name}"] = _model(f"{owner}/{name}", "checkpoint", files_there)
    return list(found.values())


def _model(name: str, kind: str, files: tuple[Path, ...]) -> LocalModel:
    stats = [path.stat() for path in files]
    quantization = None if kind == "checkpoint" else hub.quantization_of(files[0].name)
    return LocalModel(name, kind, files, quantization, sum(s.st_size for s in stats), max(s.st_mtime for s in stats))


def _is_checkpoint(snapshot: Path) -> bool:
    try:
        config = json.loads((snapshot / "config.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("model_type") == _CHECKPOINT_TYPE and any(snapshot.glob("*.safetensors"))


def matching(text: str, models: list[LocalModel]) -> list[LocalModel]:
    """The model whose name equals the text, else all whose names contain it, ignoring case."""
    wanted = text.casefold()
    for prefix in ("hf.co/", "hf://"):
        wanted = wanted.removeprefix(prefix)
    exact = [model for model in models if wanted in (model.name.casefold(), model.path.name.casefold())]
    return exact or [model for model in models if wanted and wanted in model.name.casefold()]


def remove(model: LocalModel) -> None:
    """Delete a model's files; in the hub's cache also the blobs behind them that no other revision uses, and empty folders."""
    if model.kind == "converted":
        for path in model.files:
            path.unlink()
        return
    repo = next(parent for parent in model.files[0].parents if parent.parent.name == "snapshots").parent.parent
    if model.kind == "checkpoint":
        shutil.rmtree(repo)
        return
    blobs = {path.resolve() for path in model.files}
    for link in [path for path in (repo / "snapshots").rglob("*") if path.is_symlink() or path.is_file()]:
        if link in model.files or link.resolve() in blobs:
            link.unlink()
    for blob in blobs:
        if blob.parent == (repo / "blobs").resolve():
            blob.unlink(missing_ok=True)
    if not any(path.is_symlink() or path.is_file() for path in (repo / "snapshots").rglob("*")):
        shutil.rmtree(repo)
