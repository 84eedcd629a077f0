"""Run tests as an ARM processor does, on another machine: an ARM Python under qemu-user, kernels compiled for it beforehand.

    python scripts/arm64_root.py FOLDER [--cpu cortex-a76|neoverse-v1] [-- ARGUMENTS OF PYTHON]

needs Debian's qemu-user and debootstrap, root for the latter, and Numba in a Python of the same version as bookworm's (3.11).
FOLDER keeps the root, the wheels and the kernels: the first run takes some minutes, and as many to compile. Without arguments the
kernels' tests run; `-- -m pytest -q tests/test_golden.py` runs others. What is run is the code that such a processor would run; how
fast it is says nothing.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
TRIPLE, PLATFORMS = "aarch64-unknown-linux-gnu", ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
# What LLVM compiles for: its features, qemu's processor that has them.
CPUS = {"cortex-a76": ("+neon,+dotprod", "cortex-a76"), "neoverse-v1": ("+neon,+dotprod,+i8mm", "max")}
DEFAULT = ["-m", "pytest", "-q", "tests/test_kernels.py", "tests/test_attention.py"]


def make_root(root: Path, suite: str = "bookworm") -> None:
    """Debian's packages for ARM, unpacked and not configured: nothing of them runs but Python."""
    if not (root / "usr/bin/python3").exists():
        options = ["--foreign", "--arch=arm64", "--variant=minbase", "--include=python3,libgomp1"]
        subprocess.run(["debootstrap", *options, suite, root], check=True)
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            subprocess.run(["dpkg", "-x", package, root], check=True)


def make_site(site: Path) -> None:
    """The project's dependencies and pytest as wheels for ARM."""
    if not site.exists():
        project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--target", site, *platforms, "--python-version", version,
             "--implementation", "cp", "--only-binary=:all:", *project["dependencies"], "pytest"],
            check=True,
        )  # fmt: skip


def main() -> None:
    """Set up what is missing, compile what is not compiled, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cpu", choices=CPUS, default="cortex-a76")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, arguments = parser.parse_args(sys.argv[1:end]), sys.argv[end + 1 :] or DEFAULT
    folder, (features, qemu) = given.folder.resolve(), CPUS[given.cpu]
    root, site, crossed, cache = folder / "root", folder / "site", folder / f"{given.cpu}.crossed", folder / f"{given.cpu}.cache"
    make_root(root)
    make_site(site)
    env = {
        **os.environ, "NUMBA_CPU_NAME": given.cpu, "NUMBA_CPU_FEATURES": features, "GLMRUN_SIMD": "", "PYTHONPATH": str(HERE),
        "GLMRUN_CACHE_DIR": str(crossed),
    }  # fmt: skip
    script = HERE / "tests/support/cross_compile.py"
    made = subprocess.run([sys.executable, script, TRIPLE], env=env, check=True, stdout=subprocess.PIPE, text=True)
    env |= {"GLMRUN_CACHE_DIR": str(cache), "PYTHONPATH": f"{HERE}:{site}", "QEMU_CPU": qemu, "QEMU_LD_PREFIX": str(root)}
    python = ["qemu-aarch64", str(root / "usr/bin/python3")]
    code = (
        "from glmrun.kernels.compiled import self_test; self_test.is_right = lambda dots: True; "
        "from glmrun.kernels.compiled.cache import folder; print(folder)"
    )
    asked = subprocess.run([*python, "-c", code], env=env, check=True, stdout=subprocess.PIPE, text=True, cwd=HERE)
    place = Path(asked.stdout.strip())
    shutil.copytree(made.stdout.split()[-1], place, dirs_exist_ok=True)
    (place / "dot").unlink(missing_ok=True)  # the emulated processor's products are tested when they are first used
    sys.exit(subprocess.run([*python, *arguments], env=env, cwd=HERE).returncode)


if __name__ == "__main__":
    main()
