"""Models on a hub: what there is, and downloads into huggingface_hub's own cache, shared with every program that uses it.

Large files go to a partial file named by their digest first, so that an interrupted download continues where it stopped, and are
compared with that digest before they appear in the cache. Names that come from a hub are hostile until they have been checked.
"""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from glmrun.machine import free_disk, nearest, network_error
from quant.errors import UserError
from quant.system import lock

LARGE, HUGE = 16 << 20, 50 * 10**9  # bytes: a later start resumes what is between; plain HTTP serves nothing larger
DEFAULT_QUANTIZATION = "Q4_K_M"
_REFERENCE = re.compile(
    r"(?:https?://[^/\s]+/|hf\.co/|hf://)?(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<quantization>[\w.-]+))?",
    re.ASCII,
)
_SPLIT = re.compile(r"(?P<stem>.*)-(?P<part>\d{5})-of-(?P<parts>\d{5})$")
_QUANTIZATION = re.compile(r"(?:^|[-._])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP\w*|NVFP\w*|BF16|F16|F32))$", re.IGNORECASE)
_SIDECAR = re.compile(r"(^|[-_.])(mmproj|imatrix|lora)([-_.]|$)", re.IGNORECASE)
_PREDICTION = re.compile(r"(^|[-_.])mtp([-_.]|$)", re.IGNORECASE)  # beside a model its prediction layer alone, else a model with it
_OTHER_WEIGHTS = re.compile(r"(consolidated|adapter)[-_.]")  # a second form of the same, an addition

Report = Callable[[str, int, int], None]  # (what, bytes done, bytes in all)


@dataclass(frozen=True)
class Reference:
    """What `user/model:Q4_K_M` means; revision is a branch, a tag or a commit."""

    repo: str
    quantization: str | None = None
    revision: str = "main"

    @classmethod
    def parse(cls, text: str) -> "Reference":
        """From user/model, user/model:QUANT, hf.co/user/model:QUANT, a link to the model's page, with @REVISION after the model."""
        found = _REFERENCE.fullmatch(text.strip().rstrip("/"))
        if found is None or ".." in text or "--" in found["repo"]:
            raise UserError(f"{text!r} names no model on a hub; write user/model or user/model:Q4_K_M", "usage")
        return cls(found["repo"], found["quantization"], found["revision"] or "main")


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository; sha256 where the hub reports it, which it does for large files."""

    name: str
    n_bytes: int
    sha256: str | None = None


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it downloads: HF_HUB_CACHE, or else under HF_HOME or the user's cache folder."""
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"))


def quantization_of(file_name: str) -> str | None:
    """`Q4_K_M` of `GLM-4.7-Flash-Q4_K_M.gguf` or of a part of it; None if the name has none."""
    stem = PurePosixPath(file_name).name.removesuffix(".gguf")
    split = _SPLIT.match(stem)
    found = _QUANTIZATION.search(split["stem"] if split else stem)
    return found[1].upper() if found else None


def list_files(reference: Reference) -> list[RemoteFile]:
    """The repository's files, but for names that no honest repository has. Raises UserError if it can't be read."""
    with _hub_errors(reference):
        info = _library().HfApi().model_info(reference.repo, revision=reference.revision, files_metadata=True)
    found = []
    for sibling in info.siblings or []:
        digest = sibling.lfs.sha256 if sibling.lfs else None
        if is_plain_path(sibling.rfilename):
            honest = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
            found.append(RemoteFile(sibling.rfilename, sibling.size or 0, digest if honest else None))
    return found


def is_plain_path(name: str) -> bool:
    """Whether a name stays below its folder and holds nothing but printable characters."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


def choose_files(reference: Reference, files: list[RemoteFile]) -> list[RemoteFile]:
    """The GGUF file that is meant, all its parts if it is split; a checkpoint's files if there is no GGUF file.

    Raises UserError that lists the quantizations if the wanted one is not there, is not whole, or several are called like it.
    """
    groups = group_models(files)
    if not groups:
        return _checkpoint_files(reference, files)
    known = {stem: quantization_of(parts[0].name) or PurePosixPath(stem).name for stem, parts in groups.items()}
    there = ", ".join(sorted(set(known.values())))
    wanted = (reference.quantization or (DEFAULT_QUANTIZATION if len(groups) > 1 else next(iter(known.values())))).upper()
    matching = [stem for stem, quantization in known.items() if quantization.upper() == wanted]
    if not matching:
        raise UserError(f"{reference.repo} has no {wanted}; there are {there}", "missing")
    if len(matching) > 1:
        raise UserError(
            f"{reference.repo} has {len(matching)} files of {wanted}: {', '.join(matching)}; glmrun can't tell them apart"
        )
    parts = groups[matching[0]]
    if not is_whole(parts):
        raise UserError(f"{reference.repo}: not all parts of {wanted} are there, only {', '.join(part.name for part in parts)}")
    return parts


def group_models(files: list[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """{name without part number and ending: its file, or the parts in order} of all GGUF files that are models."""
    models = [file for file in files if not _SIDECAR.search(PurePosixPath(file.name).name)]
    return group_parts([file for file in models if not _PREDICTION.search(PurePosixPath(file.name).name)]) or group_parts(models)


def group_parts(files: list[RemoteFile]) -> dict[str, list[RemoteFile]]:
    """The same of all GGUF files."""
    groups: dict[str, list[RemoteFile]] = {}
    for file in sorted(files, key=lambda f: f.name):
        stem = file.name.removesuffix(".gguf")
        if stem != file.name:
            split = _SPLIT.match(stem)
            groups.setdefault(split["stem"] if split else stem, []).append(file)
    return groups


def is_whole(parts: list[RemoteFile]) -> bool:
    """Whether these are all parts of a split file; a file that is not split is one."""
    split = _SPLIT.match(parts[0].name.removesuffix(".gguf"))
    return len(parts) == (int(split["parts"]) if split else 1)


def _checkpoint_files(reference: Reference, files: list[RemoteFile]) -> list[RemoteFile]:
    from quant.checkpoint import SMALL_FILES
    from quant.shards import INDEX, SINGLE

    names = {f.name: f for f in files}
    if SINGLE in names:
        shards = [names[SINGLE]]
    else:  # whatever the index calls them
        weights = [f for f in files if re.fullmatch(r"[^/]+\.safetensors", f.name) and not _OTHER_WEIGHTS.match(f.name)]
        shards = weights if INDEX in names else []
    if "config.json" not in names or not shards:
        raise UserError(f"{reference.repo} has neither a GGUF file nor a checkpoint in safetensors")
    small = [names[name] for name in (*SMALL_FILES, INDEX) if name in names]
    return small + sorted(shards, key=lambda f: f.name)


def is_checkpoint(files: list[RemoteFile]) -> bool:
    """Whether chosen files have to be converted."""
    return not files[0].name.endswith(".gguf")


def bytes_missing(reference: Reference, files: list[RemoteFile]) -> int:
    """Bytes that a download would still fetch."""
    return sum(file.n_bytes - min(file.n_bytes, _bytes_there(reference, file)) for file in files)


def _bytes_there(reference: Reference, file: RemoteFile) -> int:
    blobs = _blobs(reference)
    for path in (blobs / file.sha256, _partial(blobs, file.sha256)) if file.sha256 else ():
        if path.is_file():
            return path.stat().st_size
    return 0


def check_disk(reference: Reference, files: list[RemoteFile], models: Path | None = None, more: int = 0) -> None:
    """Raise UserError if there is no room for what is missing on the cache's disk, and on that of `models` for `more` bytes."""
    cache, missing = cache_folder(), bytes_missing(reference, files)
    if models is not None and nearest(models).stat().st_dev != nearest(cache).stat().st_dev:
        _check_room(models, more, "GLMRUN_MODELS")
    else:
        missing += more
    _check_room(cache, missing, "HF_HUB_CACHE")


def _check_room(folder: Path, needed: int, variable: str) -> None:
    if needed > (free := free_disk(folder)):
        raise UserError(f"not enough disk space in {folder}: {needed:,} bytes needed, {free:,} free; {variable} names another")


def download(reference: Reference, files: list[RemoteFile], report: Report = lambda what, done, total: None) -> list[Path]:
    """Have the files in the cache; returns their places there, in the same order.

    report   called with the file's name, bytes done and bytes in all, of all files together
    Raises UserError for whatever the hub, the network or the disk refuses; what came until then is kept for the next time.
    """
    total = sum(file.n_bytes for file in files)
    done, paths = 0, []
    hub = _library()
    for file in files:
        report(file.name, done, total)
        with _hub_errors(reference, file.name):
            if file.sha256 and LARGE <= file.n_bytes <= HUGE and not (_blobs(reference) / file.sha256).is_file():
                before = done
                _fetch(reference, file, lambda n, name=file.name, before=before: report(name, before + n, total))  # type: ignore[misc]
            found = hub.hf_hub_download(reference.repo, file.name, revision=reference.revision, cache_dir=cache_folder())
        paths.append(Path(found))
        done += file.n_bytes
        report(file.name, done, total)
    return paths


def _fetch(reference: Reference, file: RemoteFile, report: Callable[[int], None]) -> None:
    """Bring one large file into the cache's blobs; a partial one is continued."""
    from huggingface_hub.file_download import http_get

    hub, blobs = _library(), _blobs(reference)
    assert file.sha256 is not None
    blobs.mkdir(parents=True, exist_ok=True)
    partial = _partial(blobs, file.sha256)
    url = hub.hf_hub_url(reference.repo, file.name, revision=reference.revision)
    with open(partial, "ab") as stream:
        if not lock(stream.fileno()):
            raise UserError(f"another process is downloading {file.name}; wait for it", "busy")
        if stream.tell() > file.n_bytes:
            stream.truncate(0)
        target: Any = _Counted(stream, report)
        http_get(url, target, resume_size=stream.tell(), headers=hub.utils.build_hf_headers(), expected_size=file.n_bytes)
        stream.flush()
        os.fsync(stream.fileno())
        with open(partial, "rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != file.sha256:
            partial.unlink()
            raise UserError(f"{file.name} arrived damaged: its sha256 is {digest}, the hub says {file.sha256}; pull it again")
        os.replace(partial, blobs / file.sha256)


class _Counted:
    """The binary file that http_get writes to, reporting its length after each piece."""

    def __init__(self, stream: BinaryIO, report: Callable[[int], None]) -> None:
        self._stream, self._report = stream, report
        self.seek, self.tell, self.truncate = stream.seek, stream.tell, stream.truncate

    def write(self, data: bytes) -> int:
        written = self._stream.write(data)
        self._report(self._stream.tell())
        return written


def _blobs(reference: Reference) -> Path:
    return cache_folder() / f"models--{reference.repo.replace('/', '--')}" / "blobs"


def _partial(blobs: Path, sha256: str) -> Path:
    return blobs / f"{sha256}.glmrun.incomplete"


def _library() -> Any:
    """huggingface_hub, without its own bars and warnings: we report what happens."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    import huggingface_hub.utils

    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.utils.logging.set_verbosity_error()
    return huggingface_hub


@contextmanager
def _hub_errors(reference: Reference, file: str = "") -> Iterator[None]:
    """Turn what huggingface_hub and the network raise into one UserError."""
    from huggingface_hub import errors

    repo = reference.repo
    again = "; what has arrived is kept, the same command continues from there" if file else ""
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"{repo} is gated: accept its terms on its page, then set HF_TOKEN to a token of yours", "refused"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"the hub has no model {repo}, or it is private: then set HF_TOKEN to a token that may read it", "missing"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{repo} has no revision {reference.revision}", "missing") from None
    except errors.EntryNotFoundError:
        raise UserError(f"{repo} has no file {file}", "missing") from None
    except errors.OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: nothing can be downloaded") from None
    except errors.HfHubHTTPError as why:
        status = why.response.status_code if why.response is not None else "no status"
        raise UserError(f"the hub refuses {repo} {file}: HTTP {status}{again}") from None
    except (ImportError, ValueError) as why:
        raise network_error(why) or why from None
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk of {cache_folder()} is full{again}") from None
        if why.errno is not None:
            raise
        raise UserError(f"{file or repo}: the download ended early{again}") from None  # huggingface_hub's check of the length
    except Exception as why:
        if type(why).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "ssl"):
            raise
        raise UserError(f"the hub can't be reached: {type(why).__name__}: {why}{again}") from None
