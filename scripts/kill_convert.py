"""Kill a conversion again and again: its output's name is absent or the file verifies, and the same call goes on to the same bytes.

kill_convert.py random SRC -n 200      SIGKILL after a random time
kill_convert.py syscalls SRC           SIGKILL at every system call on the output's files, one after the other (needs strace)

SRC is a model folder; the tensors enter the journal one by one here, so that there are many states to be killed in.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import quant.publish
from glmrun.gguf.verify import verify
from quant.checkpoint import Checkpoint
from quant.convert import convert, plan
from quant.publish import journal_path, partial_path


def run(source: Path, output: Path, quantization: str) -> int:
    """One conversion; returns how many tensors an earlier one had finished."""
    quant.publish._SYNC_BYTES = 0
    return sum(
        bool(step.done and step.resumed) for step in convert(plan(Checkpoint.open(source), quantization), output, n_threads=2)
    )


class Trial:
    """Kills and what they showed."""

    def __init__(self, source: Path, quantization: str, folder: Path) -> None:
        self.source, self.quantization, self.output = source, quantization, folder / "x.gguf"
        run(source, self.output, quantization)
        self.wanted = _digest(self.output)
        self.counts: Counter[str] = Counter()
        self.resumed: list[int] = []
        self._clean()

    def start(self, stopped: bool = False) -> int:
        """Convert in a forked process, which has nothing to import; returns its id."""
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                if stopped:
                    os.kill(os.getpid(), signal.SIGSTOP)
                run(self.source, self.output, self.quantization)
                code = 0
            finally:
                os._exit(code)
        return pid

    def check(self, killed: bool) -> None:
        """After a kill: look at what is there, go on, look again."""
        self.counts["kills" if killed else "ended before the kill"] += 1
        if self.output.exists():
            self.counts["final name there after the kill"] += 1
            if not all(step.intact for step in verify(self.output)) or _digest(self.output) != self.wanted:
                raise SystemExit("a damaged file has the final name")
        if not self.output.exists() or journal_path(self.output).exists():
            self.resumed.append(run(self.source, self.output, self.quantization))
        if _digest(self.output) != self.wanted or not all(step.intact for step in verify(self.output)):
            raise SystemExit("the resumed file is another one")
        if sorted(self.output.parent.iterdir()) != [self.output]:
            raise SystemExit(f"left behind: {sorted(self.output.parent.iterdir())}")
        self._clean()

    def _clean(self) -> None:
        for path in (self.output, journal_path(self.output), partial_path(self.output)):
            path.unlink(missing_ok=True)

    def result(self) -> dict[str, Any]:
        """Totals."""
        went_on = sum(n > 0 for n in self.resumed)
        return dict(self.counts) | {"reruns that went on from finished tensors": went_on, "reruns": len(self.resumed), "damaged": 0}


def kill_at_random(trial: Trial, n: int, seed: int) -> dict[str, Any]:
    """n kills at times spread evenly over the length of a run."""
    rng, length = random.Random(seed), 0.0
    while trial.counts["kills"] < n:
        began = time.monotonic()
        pid = trial.start()
        if length:
            time.sleep(rng.uniform(0, length))
            os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        length = length or time.monotonic() - began
        trial.check(os.WIFSIGNALED(status))
    return trial.result()


class _AtOnce:
    """Stands in for the thread that syncs: does the work before submit() returns, so that one thread makes every call."""

    def __init__(self, _: int) -> None:
        pass

    def submit(self, function: Callable[..., None], *arguments: Any) -> "Future[None]":
        function(*arguments)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def shutdown(self, cancel_futures: bool) -> None:
        pass


def kill_at_every_system_call(trial: Trial) -> dict[str, Any]:
    """A kill at the 1st, 2nd, 3rd ... system call that touches the output's folder or files, of each kind that there is.

    strace counts every kind of call in every thread by itself, so all calls are made by one thread here.
    """
    paths = [trial.output.parent, trial.output, journal_path(trial.output), partial_path(trial.output)]
    strace = ["strace", "-qq", *(word for path in paths for word in ("-P", str(path)))]
    threads, quant.publish.ThreadPoolExecutor = quant.publish.ThreadPoolExecutor, _AtOnce  # type: ignore[misc, assignment]
    with tempfile.NamedTemporaryFile("r") as log:
        if _traced(trial, [*strace, "-o", log.name]):
            raise SystemExit("the conversion failed under strace")
        trial.check(False)
        calls = Counter(re.findall(r"^(\w+)\(", log.read(), re.MULTILINE))
    for kind, n_calls in calls.items():
        for n in range(1, n_calls + 1):
            status = _traced(trial, [*strace, "-o", os.devnull, "-e", f"inject={kind}:signal=KILL:when={n}"])
            if not os.WIFSIGNALED(status):
                raise SystemExit(f"no kill at {kind} number {n}: status {status}")
            trial.check(True)
        print(f"{kind}: {n_calls} kills", file=sys.stderr, flush=True)
    quant.publish.ThreadPoolExecutor = threads  # type: ignore[misc]
    return trial.result() | {"system calls": dict(calls)}


def _traced(trial: Trial, strace: list[str]) -> int:
    """The status of a conversion whose main thread strace watches."""
    pid = trial.start(stopped=True)
    os.waitpid(pid, os.WUNTRACED)
    tracer = subprocess.Popen([*strace, "-p", str(pid)])
    while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
        time.sleep(0.001)
    os.kill(pid, signal.SIGCONT)
    status = os.waitpid(pid, 0)[1]
    tracer.wait()
    return status


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Parse, kill, print totals as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("random", "syscalls"))
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("-q", "--quant", default="Q4_K_M")
    parser.add_argument("-n", type=int, default=200, help="random kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the totals of both modes")
    args = parser.parse_args()
    if args.mode == "syscalls" and not shutil.which("strace"):
        parser.error("strace is not installed")
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(args.source, args.quant, Path(folder))
        totals = kill_at_random(trial, args.n, args.seed) if args.mode == "random" else kill_at_every_system_call(trial)
    totals = {"mode": args.mode, "source": args.source.name, "quantization": args.quant} | totals
    print(json.dumps(totals, indent=1))
    if args.output:
        known = json.loads(args.output.read_text()) if args.output.exists() else {}
        args.output.write_text(json.dumps(known | {args.mode: totals}, indent=1) + "\n")


if __name__ == "__main__":
    main()
