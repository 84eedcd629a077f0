"""glmrun beside llama.cpp and ik_llama.cpp on the same file, in one run, in turns.

    python benchmarks/compare.py MODEL.gguf [--depths 0,4096] [--prompt 512] [--generate 32] [--rounds 3] [--out F.json]
    python benchmarks/compare.py --table        rewrite docs/measurements.md's table from results/compare-*.json

Each engine runs in a process of its own and waits, idle, while the other one measures; with --apart it ends before the other one
starts, for files of which the memory holds only one engine's. llama.cpp is measured at each of its settings (weights repacked or
not, flash attention on or off), one setting at a time, in turns with glmrun: a ratio is the median over pairs of neighbouring
measurements, since a shared machine changes its speed from one second to the next, and in the table each row has the setting
at which glmrun is ahead the least. ik_llama.cpp is one more setting; its wheel is built for AVX2, and it does not load files that
hold a next-token-prediction layer. Beside them the machine's own limits. Needs both engines (pip install -e '.[dev]').
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil

RESULTS, PAGE = Path(__file__).parent / "results", Path(__file__).parent.parent / "docs" / "measurements.md"
BEGIN, END = "<!-- speed: made by benchmarks/compare.py --table -->\n", "<!-- end of speed -->\n"
IK = "ik_llama.cpp"
SETTINGS = {"repacked, flash": (1, 1), "repacked": (1, 0), "mapped, flash": (0, 1), "mapped": (0, 0), IK: ()}


# ---- a measuring process: reads {"depth", "pp": n, "tg": n} lines, answers {"pp", "tg"} in tokens a second, for n > 0 -------


class Glmrun:
    """Our engine, with the hooks that `glmrun bench` uses."""

    def __init__(self, path: str, threads: int, n_ctx: int) -> None:
        from glmrun.engine.model import Model
        from glmrun.measure.steps import Steps

        self.model = Model(path, n_ctx, threads)
        self.steps = Steps(self.model)

    def fill(self, depth: int) -> None:
        """Have `depth` tokens in the cache."""
        self.steps.truncate(min(depth, self.steps.n_cached))
        if depth > self.steps.n_cached:
            self.steps.prefill([i % 1000 + 100 for i in range(self.steps.n_cached, depth)])

    def read(self, n: int) -> float:
        """Seconds to append n tokens at once."""
        return self.steps.prefill([i % 1000 + 50 for i in range(n)])

    def write(self, n: int) -> float:
        """Seconds to append n tokens one by one."""
        return self.steps.decode(n, 77)


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


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp through its wheel's C interface, with latent attention's fastest way, flash attention and fused experts."""

    def __init__(self, path: str, threads: int, n_ctx: int) -> None:
        from ik_llama_cpp import _ctypes_api as api  # type: ignore[import-not-found]

        self.api = api
        api.llama_backend_init()
        self.model = api.llama_model_load_from_file(path.encode(), api.llama_model_default_params())
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, 512, 512
        context.n_threads = context.n_threads_batch = threads
        context.flash_attn, context.mla_attn, context.fused_moe_up_gate = True, 3, True
        self.context = api.llama_init_from_model(self.model, context)
        if not self.context:
            raise SystemExit("ik_llama.cpp could not open the file")
        self.batch, self.at = api.llama_batch_init(512, 0, 1), 0

    def _decode(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), 512):
            part, batch = tokens[start : start + 512], self.batch
            batch.n_tokens = len(part)
            for i, token in enumerate(part):
                batch.token[i], batch.pos[i], batch.logits[i] = token, self.at + i, i == len(part) - 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            if self.api.llama_decode(self.context, batch):
                raise SystemExit("llama_decode failed")
            self.at += len(part)

    def fill(self, depth: int) -> None:
        """Have `depth` tokens in the cache."""
        if depth < self.at:
            remove = self.api._lib.llama_kv_cache_seq_rm  # not among the wheel's declarations
            remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
            remove(self.context, 0, depth, -1)
            self.at = depth
        if depth > self.at:
            self._decode([i % 1000 + 100 for i in range(self.at, depth)])


def serve(kind: type, path: str, numbers: list[int]) -> None:
    """Answer measuring orders from standard input until it ends; before them, say when the first token could be chosen."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # ik_llama.cpp tells on standard output how it loads
    engine = kind(path, *numbers)
    engine.read(16)
    print("first token", file=answers, flush=True)
    if isinstance(engine, Glmrun):
        engine.model.prefault.wait(600)  # pages come beside the first tokens; the other engine has waited for its own
    engine.fill(0)
    engine.read(64)
    engine.write(4)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        order, speeds = json.loads(line), {}
        for test, append in (("pp", engine.read), ("tg", engine.write)):
            if order[test]:
                engine.fill(order["depth"])
                speeds[test] = order[test] / append(order[test])
        print(json.dumps(speeds), file=answers, flush=True)


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
        first = self.output.readline()
        self.seconds_to_first_token = time.perf_counter() - start
        if not first or not self.output.readline():
            raise SystemExit(f"this engine did not start: {' '.join(arguments)}")

    def measure(self, order: dict) -> dict[str, float]:
        """Tokens a second, once."""
        self.input.write(json.dumps(order) + "\n")
        self.input.flush()
        return json.loads(self.output.readline())

    def close(self) -> dict[str, float]:
        """End the process and wait for it; returns its first token's seconds and the bytes it held beside mapped files."""
        held = psutil.Process(self.process.pid).memory_info()
        self.input.close()
        self.process.wait()
        return {"seconds_to_first_token": self.seconds_to_first_token, "bytes_beside_the_file": held.rss - held.shared}


def main() -> None:
    """Measure, print a Markdown table, write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?")
    parser.add_argument("--depths", default="0,4096")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", default=";".join(SETTINGS))
    parser.add_argument("--apart", action="store_true", help="never two engines in memory at once")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="only rewrite docs/measurements.md's table")
    options = parser.parse_args()
    if options.table:
        write_table()
        return
    samples, starts = measure(options)
    result = summary(options, samples, starts)
    print("\n".join(table([result])))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace) -> tuple[dict[str, dict[str, dict[str, list[float]]]], dict[str, dict[str, float]]]:
    """({test: {setting: {engine: tokens a second of each round}}}, {engine: what its process told when it ended})."""
    with open(options.model, "rb", buffering=0) as file:  # into the page cache: both engines find it there
        part = bytearray(16 << 20)
        while file.readinto(part):
            pass
    depths = [int(depth) for depth in options.depths.split(",")]
    n_ctx = str(max(depths) + options.prompt + options.generate + 256)
    samples: dict[str, dict[str, dict[str, list[float]]]] = {}
    starts: dict[str, dict[str, float]] = {}
    processes: dict[str, Process] = {}

    def close(name: str) -> None:
        """End a process; of several starts of an engine the fastest counts, the others read the file from the disk."""
        told = processes.pop(name).close()
        if name not in starts or told["seconds_to_first_token"] < starts[name]["seconds_to_first_token"]:
            starts[name] = told

    def process(name: str) -> Process:
        if options.apart:
            for other in [other for other in processes if other != name]:
                close(other)
        if name not in processes:
            setting = map(str, SETTINGS.get(name, ()))
            engine = name if name in ("glmrun", IK) else "llama.cpp"
            processes[name] = Process(engine, options.model, str(options.threads), n_ctx, *setting)
        return processes[name]

    lengths = {"pp": options.prompt, "tg": options.generate}
    orders = (
        [lengths] if options.apart else [{**lengths, "tg": 0}, {**lengths, "pp": 0}]
    )  # neighbours in time where it costs nothing
    for setting in options.settings.split(";"):
        try:
            process(setting)
        except SystemExit as why:
            if setting != IK:
                raise
            print(f"{why}; it is left out", file=sys.stderr)  # it knows no prediction layer, and is not installed everywhere
            continue
        for depth, _, order in itertools.product(depths, range(options.rounds), orders):
            for name in ("glmrun", setting):
                for test, value in process(name).measure({"depth": depth, **order}).items():
                    row = f"{test}{lengths[test]}" + (f" @ d{depth}" if depth else "")
                    turns = samples.setdefault(row, {}).setdefault(setting, {"glmrun": [], "other": []})
                    turns["glmrun" if name == "glmrun" else "other"].append(value)
        if setting in processes:
            close(setting)
    for name in list(processes):
        close(name)
    return samples, starts


def summary(options: argparse.Namespace, samples: dict, starts: dict) -> dict:
    """Medians, ratios and the machine's limits, as they go into the JSON file."""
    from machine import int8_peak

    from glmrun.engine.model import Model
    from glmrun.kernels.team import Team
    from glmrun.measure.bandwidth import read_bandwidth

    team, model = Team(options.threads), Model(options.model, 64, 1)
    bandwidth, peak, weight_bytes = read_bandwidth(team), int8_peak(team), model.weights.bytes_per_token
    rows = {}
    for row, settings in samples.items():
        found = {
            name: {
                **{engine: statistics.median(values) for engine, values in turns.items()},
                "setting": name,
                "ratio": statistics.median(a / b for a, b in zip(turns["glmrun"], turns["other"], strict=True)),
            }
            for name, turns in settings.items()
        }
        best = min(found.values(), key=lambda at: (at["setting"] == IK, at["ratio"]))  # of llama.cpp's, where there is one
        rows[row] = {**best, "ratios": {name: at["ratio"] for name, at in found.items()}, "share_of_bandwidth": None}
        if row.startswith("tg") and "@" not in row:
            rows[row]["share_of_bandwidth"] = best["glmrun"] * weight_bytes / bandwidth
        if IK in found:
            rows[row][IK] = found[IK]
    return {
        "model": Path(options.model).stem,
        "layers": model.config.num_hidden_layers,
        "threads": options.threads,
        "cpu": platform.processor() or platform.machine(),
        "read_bandwidth": bandwidth,
        "int8_multiply_adds": peak,
        "weight_bytes_per_token": weight_bytes,
        "rows": rows,
        "starts": starts,
        "samples": samples,
    }


def table(results: list[dict]) -> list[str]:
    """Lines of Markdown, one for each test of each result."""
    lines = ["| file | test | glmrun | the other | which, at its setting | ratio |", "|---|---|---|---|---|---|"]
    for result in results:
        name = f"{result['model']}, {result['layers']} layers"
        for test, row in result["rows"].items():
            share = f" ({row['share_of_bandwidth']:.0%} of the bandwidth)" if row["share_of_bandwidth"] else ""
            for at in [row, row[IK]] if IK in row and row["setting"] != IK else [row]:
                setting = at["setting"] if at["setting"] == IK else f"llama.cpp, {at['setting']}"
                lines.append(f"| {name} | {test} | {at['glmrun']:.1f}{share} | {at['other']:.1f} | {setting} | {at['ratio']:.2f} |")
                share = ""
        fastest = min(
            (name for name in result["starts"] if name != "glmrun"), key=lambda n: result["starts"][n]["seconds_to_first_token"]
        )
        mine, theirs = result["starts"]["glmrun"], result["starts"][fastest]
        lines.append(
            f"| {name} | seconds to the first token | {mine['seconds_to_first_token']:.1f} | "
            f"{theirs['seconds_to_first_token']:.1f} | {fastest} | |"
        )
        limits = f"{result['read_bandwidth'] / 1e9:.1f} GB/s, {result['int8_multiply_adds'] / 1e9:.0f} GMAC/s"
        lines.append(f"| {name} | machine, in the same run: read, int8 | {limits} | | | |")
    return lines


def write_table() -> None:
    """Put the table of all results between docs/measurements.md's marks."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("compare-*.json"), key=lambda path: path.stem)]
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + "\n".join(table(results)) + "\n\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        name, path, *numbers = sys.argv[2:]
        serve({"glmrun": Glmrun, IK: IkLlamaCpp}.get(name, LlamaCpp), path, [int(number) for number in numbers])
    else:
        main()
