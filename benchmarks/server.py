"""`glmrun serve` beside llama-cpp-python's server on the same file, both up at once, asked in turns.

    python benchmarks/server.py MODEL.gguf [--llama-python PYTHON] [--threads 2] [--tokens 64] [--system 2000] [--rounds 3]

PYTHON has llama-cpp-python[server]; this one by default. Both complete texts (/v1/completions, streamed, temperature 0, no token
that ends the text), so no template differs. Seconds until the first text: of a short prompt; of a new prompt of --system tokens; of
another question behind the same --system tokens; of one more, after somebody else has asked in between. Tokens a second, from the
first text on: of one stream, and of four at once in all, which llama-cpp-python answers one after another. Medians of the rounds.
Nothing else should run: llama.cpp's threads wait for each other without sleeping, so on a busy machine it is far slower.
"""

import argparse
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2

from glmrun.chat.tokenizer import Tokenizer
from glmrun.gguf.open import open_gguf

N_STREAMS = 4
WORDS = "the of and to in is was for on that by this with you it not or be are from at as your all have new more an we will home"


class Server:
    """One that is up."""

    def __init__(self, url: str, tokenizer: Tokenizer) -> None:
        self._url, self._client = url, httpx2.Client(timeout=3600)
        self._tokenizer = tokenizer

    def ask(self, prompt: str, n_tokens: int) -> tuple[float, float]:
        """(seconds until the first text, until the end) of a completion. Raises RuntimeError if it is shorter than asked for."""
        body = {
            "prompt": prompt, "max_tokens": n_tokens, "temperature": 0.0, "stream": True, "model": "m",
            "logit_bias": {str(i): -100.0 for i in self._tokenizer.eog_ids},
        }  # fmt: skip
        start, first, finish = time.perf_counter(), 0.0, None
        with self._client.stream("POST", f"{self._url}/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    [choice] = event.get("choices") or [{}]
                    first = first or (time.perf_counter() - start if choice.get("text") else 0.0)
                    finish = choice.get("finish_reason") or finish
        if finish != "length":
            raise RuntimeError(f"{self._url}: status {answer.status_code}, finish_reason {finish}, expected length")
        return first, time.perf_counter() - start


def commands(options: argparse.Namespace, n_ctx: int) -> dict[str, list[str]]:
    """The servers' command lines, without their ports. llama-cpp-python must not end a stream because another client asks."""
    threads = str(options.threads)
    return {
        "glmrun": [sys.executable, "-m", "glmrun", "serve", options.model, "-c", str(n_ctx), "-t", threads, "--log-format", "none"],
        "llama-cpp-python": [
            options.llama_python, "-m", "llama_cpp.server", "--model", options.model, "--n_ctx", str(n_ctx), "--n_threads", threads,
            "--n_threads_batch", threads, "--interrupt_requests", "False", "--verbose", "False",
        ],
    }  # fmt: skip


@contextmanager
def up(command: list[str], tokenizer: Tokenizer) -> Iterator[Server]:
    """A server, from when it names its models until the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command[:3])} ended with {process.returncode}")
            try:
                if httpx2.get(f"{url}/v1/models").status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            time.sleep(0.5)
        yield Server(url, tokenizer)
    finally:
        process.terminate()
        process.wait(60)


def text_of(n_tokens: int, seed: int, tokenizer: Tokenizer) -> str:
    """Common words of about so many tokens."""
    chance, words = random.Random(seed), list[str]()
    while len(tokenizer.encode(" ".join(words))) < n_tokens:
        words += chance.choices(WORDS.split(), k=max(1, (n_tokens - len(words)) // 2))
    return " ".join(words)


def measure(server: Server, tokenizer: Tokenizer, n_system: int, n_tokens: int, seed: int) -> dict[str, float]:
    """One round; no prompt has the beginning of an earlier round's."""
    short = [f"{number} " + text_of(12, seed + i, tokenizer) for i, number in enumerate(("One", "Two", "Three", "Four"))]
    system = text_of(n_system, seed, tokenizer)
    found = {"first text, short prompt, s": server.ask(short[0], 1)[0]}
    first, whole = server.ask(short[1], n_tokens)
    found["one stream, tokens/s"] = (n_tokens - 1) / (whole - first)
    with ThreadPoolExecutor(N_STREAMS) as pool:
        times = list(pool.map(lambda prompt: server.ask(f"Again {seed} {prompt}", n_tokens), short))
    alternating = max(first for first, _ in times) > min(whole for _, whole in times)  # one answer after another
    span = max(whole for _, whole in times) - min(first for first, _ in times)
    in_all = N_STREAMS * (n_tokens - 1) / span if alternating else sum((n_tokens - 1) / (whole - first) for first, whole in times)
    found["four streams, tokens/s in all"] = in_all
    found["first text, new long prompt, s"] = server.ask(f"{system}\nWhat is this?", 1)[0]
    found["the same with another question, s"] = server.ask(f"{system}\nWho wrote it?", 1)[0]
    server.ask(short[2], 1)
    found["and after another client, s"] = server.ask(f"{system}\nWhen was that?", 1)[0]
    return found


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--llama-python", default=sys.executable)
    for name, number in (("threads", 2), ("tokens", 64), ("system", 2000), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers end, too
    tokenizer = Tokenizer.from_metadata(open_gguf(options.model).metadata)
    samples: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(up(command, tokenizer))
            for name, command in commands(options, options.system + options.tokens + 256).items()
        }
        for server in servers.values():
            server.ask("Warm up.", 8)
        for turn in range(options.rounds):
            for name, server in servers.items():
                for row, value in measure(server, tokenizer, options.system, options.tokens, 100 * turn).items():
                    samples.setdefault(row, {}).setdefault(name, []).append(value)
                print(f"round {turn + 1}: {name} done", file=sys.stderr, flush=True)
    medians = {row: {name: statistics.median(values) for name, values in turns.items()} for row, turns in samples.items()}
    print("| | " + " | ".join(servers) + " |\n|---|" + "---|" * len(servers))
    for row, values in medians.items():
        print(f"| {row} | " + " | ".join(f"{values[name]:.3g}" for name in servers) + " |")
    if options.out:
        result = {
            "model": Path(options.model).stem,
            **{key: value for key, value in vars(options).items() if isinstance(value, int)},
        }
        options.out.write_text(json.dumps({**result, "medians": medians, "samples": samples}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
