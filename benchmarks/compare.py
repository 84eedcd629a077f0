"""glmrun beside llama.cpp on the same file, in one run, in turns.

    python benchmarks/compare.py MODEL.gguf [--depths 0,4096] [--prompt 512] [--generate 32] [--rounds 3] [--out F.json]

Each engine runs in a process of its own and waits, idle, while the other one measures. llama.cpp is measured at each of its
settings (weights repacked or not, flash attention on or off), one setting at a time, and stands in the table with the better
figure of each row; medians of the rounds. Beside them the machine's own limits. Needs llama-cpp-python (pip install -e '.[dev]').
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {"repacked, flash": (1, 1), "repacked": (1, 0), "mapped, flash": (0, 1), "mapped": (0, 0)}


# ---- a measuring process: reads {"depth", "prompt", "generate"} lines, answers {"pp", "tg"} in tokens a second --------------


class Glmrun:
    """Our engine, with the hooks that `glmrun bench` uses."""

    def __init__(self, path: str, threads: int, n_ctx: int) -> None:
        from glmrun.engine import Model

        self.model = Model(path, n_ctx, threads)

    def fill(self, depth: int) -> None:
        """Have `depth` tokens in the cache."""
        self.model.truncate(min(depth, self.model.n_cached))
        if depth > self.model.n_cached:
            self.model.prefill_tokens([i % 1000 + 100 for i in range(self.model.n_cached, depth)])

    def read(self, n: int) -> float:
        """Seconds to append n tokens at once."""
        return self.model.prefill_tokens([i % 1000 + 50 for i in range(n)])

    def write(self, n: int) -> float:
        """Seconds to append n tokens one by one."""
        return self.model.decode_tokens(n, 77)


class LlamaCpp:
    """llama.cpp through its C interface."""

    def __init__(self, path: str, threads: int, n_ctx: int, repack: int, flash: int) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = bool(repack)
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, 512, 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn_type = flash
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit("llama.cpp could not open the file")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.at = 0

    def _decode(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            array = (self.api.llama_token * len(part))(*part)
            if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(part))):
                raise SystemExit("llama_decode failed")
        self.at += len(tokens)

    def fill(self, depth: int) -> None:
        """Have `depth` tokens in the cache."""
        if depth < self.at:
            self.api.llama_memory_seq_rm(self.memory, 0, depth, -1)
            self.at = depth
        if depth > self.at:
            self._decode([i % 1000 + 100 for i in range(self.at, depth)])

    def read(self, n: int) -> float:
        """Seconds to append n tokens at once."""
        start = time.perf_counter()
        self._decode([i % 1000 + 50 for i in range(n)])
        return time.perf_counter() - start

    def write(self, n: int) -> float:
        """Seconds to append n tokens one by one."""
        start = time.perf_counter()
        for _ in range(n):
            self._decode([77])
        return time.perf_counter() - start


def serve(engine: Glmrun | LlamaCpp) -> None:
    """Answer measuring orders from standard input until it ends."""
    engine.fill(0)
    engine.read(64)
    engine.write(4)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        engine.fill(order["depth"])
        read = order["prompt"] / engine.read(order["prompt"])
        engine.fill(order["depth"])
        print(json.dumps({"pp": read, "tg": order["generate"] / engine.write(order["generate"])}), flush=True)


class Process:
    """An engine in its own process."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, __file__, "--serve", *arguments]
        start = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        if self.output.readline().strip() != "ready":
            raise SystemExit(f"this engine did not start: {' '.join(arguments)}")
        self.seconds_to_start = time.perf_counter() - start

    def measure(self, order: dict) -> dict[str, float]:
        """Tokens a second, once."""
        self.input.write(json.dumps(order) + "\n")
        self.input.flush()
        return json.loads(self.output.readline())

    def close(self) -> None:
        """End the process and wait for it."""
        self.input.close()
        self.process.wait()


def main() -> None:
    """Measure, print a Markdown table, write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--depths", default="0,4096")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", default=";".join(SETTINGS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    depths = [int(depth) for depth in options.depths.split(",")]
    n_ctx = str(max(depths) + options.prompt + options.generate + 256)
    ours = Process("glmrun", options.model, str(options.threads), n_ctx)
    samples: dict[str, dict[str, list[float]]] = {}
    for setting in options.settings.split(";"):
        theirs = Process("llama.cpp", options.model, str(options.threads), n_ctx, *map(str, SETTINGS[setting]))
        for depth in depths:
            order = {"depth": depth, "prompt": options.prompt, "generate": options.generate}
            for _ in range(options.rounds):
                for name, process in (("glmrun", ours), (setting, theirs)):
                    for test, value in process.measure(order).items():
                        n = options.prompt if test == "pp" else options.generate
                        row = f"{test}{n}" + (f" @ d{depth}" if depth else "")
                        samples.setdefault(row, {}).setdefault(name, []).append(value)
        theirs.close()
    ours.close()
    report(options, samples)


def report(options: argparse.Namespace, samples: dict[str, dict[str, list[float]]]) -> None:
    """The table, and the same as JSON."""
    from machine import int8_peak, read_bandwidth

    from glmrun.engine import Model
    from glmrun.team import Team

    team = Team(options.threads)
    bandwidth, peak = read_bandwidth(team), int8_peak(team)
    weight_bytes = Model(options.model, 64, 1).weights.bytes_per_token
    print(f"\n{Path(options.model).name}, {options.threads} threads, tokens a second, medians")
    limits = f"{bandwidth / 1e9:.1f} GB/s read, {peak / 1e9:.0f} GMAC/s int8"
    print(f"machine: {limits}; {weight_bytes / 1e9:.3f} GB of weights for each decoded token\n")
    print("| test | glmrun | llama.cpp | its setting | ratio | of the bandwidth |\n|---|---|---|---|---|---|")
    rows = {}
    for row, engines in samples.items():
        medians = {name: statistics.median(values) for name, values in engines.items()}
        mine = medians.pop("glmrun")
        best = max(medians, key=lambda name: medians[name])
        share = mine * weight_bytes / bandwidth if row.startswith("tg") else None
        rows[row] = {"glmrun": mine, "llama.cpp": medians, "ratio": mine / medians[best], "share_of_bandwidth": share}
        told = f"{share:.0%}" if share else ""
        print(f"| {row} | {mine:.1f} | {medians[best]:.1f} | {best} | {mine / medians[best]:.2f} | {told} |")
    if options.out:
        result = {
            "model": Path(options.model).name,
            "threads": options.threads,
            "cpu": platform.processor() or platform.machine(),
            "read_bandwidth": bandwidth,
            "int8_multiply_adds": peak,
            "weight_bytes_per_token": weight_bytes,
            "rows": rows,
            "samples": samples,
        }
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        name, path, threads, n_ctx, *setting = sys.argv[2:]
        engine = Glmrun if name == "glmrun" else LlamaCpp
        serve(engine(path, int(threads), int(n_ctx), *map(int, setting)))
    else:
        main()
