"""glmrun beside llama.cpp on a file that is larger than memory, in turns, each in a control group of its own with cold pages.

    python benchmarks/small_memory.py MODEL.gguf --gb 1.5,2.2 [--prompt 19] [--generate 24] [--rounds 2]
    python benchmarks/small_memory.py --make 47:Q4_K_M --skew [--folder DIR] --gb 12.9 [...]

--make writes a synthetic file of so many layers and deletes it afterwards. Its experts are chosen nearly evenly, which is the worst
case; with --skew half of them get 77 % of the choices, as nano's do (3 of 6, 4,000 tokens of text).

--engines glmrun,llama.cpp,faults: the last one is glmrun whose steps ask for no experts, so that they come by page faults.
Needs root and control groups, version 1 or 2. The file's pages are dropped before each measurement, so no other program may have
the file mapped. Printed for each: seconds to open it (glmrun: until what all tokens read is there), of the prompt, tokens a second
of writing, GB that the process read from the disk in each part, glmrun's hit rate while it writes (1 where the system does not
report that).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")
SKEW = 0.057  # of the routers' biases: simulated with 64 experts of which 4 are chosen, scores as of normal logits


def make_group(name: str, n_bytes: int) -> Path:
    """A new control group with that limit, below the root."""
    old = GROUPS / "memory" / "memory.limit_in_bytes"
    folder = (GROUPS / "memory" if old.exists() else GROUPS) / name
    with suppress(OSError):  # version 2: the root hands the controller on, if it does not yet
        (GROUPS / "cgroup.subtree_control").write_text("+memory")
    folder.mkdir()
    (folder / ("memory.limit_in_bytes" if old.exists() else "memory.max")).write_text(str(n_bytes))
    return folder


def remove_group(folder: Path) -> None:
    """Remove it; the system takes a moment after its last process."""
    for _ in range(50):
        with suppress(OSError):
            folder.rmdir()
            return
        time.sleep(0.1)
    raise SystemExit(f"{folder} can't be removed")


def drop_pages(path: str) -> None:
    """Have the system forget what it has of the file."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(engine: str, path: str, threads: int, n_prompt: int, n_write: int) -> dict[str, float]:
    """What one process measures: seconds and bytes from the disk."""
    from compare import Glmrun, LlamaCpp

    from glmrun.machine import disk_bytes

    def read() -> int:
        return disk_bytes() or 0

    if engine == "faults":
        from glmrun.tensors.prefault import Prefault

        Prefault.way = lambda self: 0  # type: ignore[method-assign]  # steps ask for nothing: the system finds out page by page
    found, began, at = {}, time.perf_counter(), read()
    model = Glmrun(path, threads, 1024) if engine != "llama.cpp" else LlamaCpp(path, threads, 1024, 0, 1)
    if isinstance(model, Glmrun):
        model.model.prefault.wait(600)
    found["open"], found["open_gb"] = time.perf_counter() - began, (read() - at) / 1e9
    at = read()
    found["prompt"] = model.read(n_prompt)
    found["prompt_gb"], at = (read() - at) / 1e9, read()
    # Different tokens one after the other: one token again and again would ask for the same experts.
    found_before = model.model.runner.hits if isinstance(model, Glmrun) else (0, 0)
    began = time.perf_counter()
    for i in range(n_write):
        model.fill(n_prompt + i + 1)
    seconds = time.perf_counter() - began
    gb = (read() - at) / 1e9
    if isinstance(model, Glmrun):
        wanted, hits = (after - before for after, before in zip(model.model.runner.hits, found_before, strict=True))
        found["hit_rate"] = hits / wanted if wanted else 1.0
    return found | {"tokens_per_second": n_write / seconds, "gb_per_token": gb / n_write, "gb_per_second": gb / seconds}


@contextmanager
def model_file(path: str | None, make: str, skew: bool, folder: str | None) -> Iterator[str]:
    """The file to measure: the one that is named, or one that is made now and deleted at the end."""
    if path is not None:
        yield path
        return
    sys.path.append(str(Path(__file__).parents[1] / "scripts"))
    from make_synthetic import write_gguf

    layers, _, quantization = make.partition(":")
    with tempfile.TemporaryDirectory(prefix="small-memory-", dir=folder) as place:
        made = Path(place, f"synthetic-{layers}-{quantization}.gguf")
        write_gguf(made, int(layers), quantization, **({"skew": SKEW} if skew else {}))
        with open(made, "rb") as file:
            os.fsync(file.fileno())  # pages that are not written yet can't be dropped
        yield str(made)


def main() -> None:
    """Measure in turns and print a line for each run, then the medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--make", metavar="LAYERS:QUANT", default="8:Q4_K_M")
    parser.add_argument("--skew", action="store_true")
    parser.add_argument("--folder", help="where --make writes its file; left out: the system's place for temporary files")
    parser.add_argument("--gb", default="1.5,2.2")
    parser.add_argument("--prompt", type=int, default=19)
    parser.add_argument("--generate", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", default="glmrun,llama.cpp")
    options = parser.parse_args()
    with model_file(options.model, options.make, options.skew, options.folder) as path:
        from glmrun.measure.bandwidth import disk_bandwidth

        print(f"disk {(disk_bandwidth(Path(path)) or 0) / 1e9:.2f} GB/s, {Path(path).stat().st_size / 1e9:.1f} GB", flush=True)
        for gb in map(float, options.gb.split(",")):
            in_turns(path, gb, options)


def in_turns(path: str, gb: float, options: argparse.Namespace) -> None:
    """All engines in turns in so many GB."""
    samples: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for engine in options.engines.split(","):
            drop_pages(path)
            group = make_group(f"glmrun-{os.getpid()}", int(gb * 1e9))
            try:
                command = [sys.executable, __file__, "--serve", str(group), engine, path]
                command += [str(n) for n in (options.threads, options.prompt, options.generate)]
                with tempfile.TemporaryDirectory() as state:  # what an earlier run has used is not known
                    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XDG_STATE_HOME": state})
                if done.returncode:
                    raise SystemExit(f"{engine} ended with {done.returncode} in {gb} GB: {done.stderr[-1000:]}")
                samples.setdefault(engine, []).append(json.loads(done.stdout))
                print(gb, engine, _line(samples[engine][-1]), f"load {os.getloadavg()[0]:.1f}", flush=True)
            finally:
                remove_group(group)
    for engine, found in samples.items():
        print(gb, engine, "median", _line({key: statistics.median(run[key] for run in found) for key in found[0]}))


def _line(found: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.2f}" for key, value in found.items())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        group, engine, path, *numbers = sys.argv[2:]
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
        print(json.dumps(measure(engine, path, *map(int, numbers))))
    else:
        main()
