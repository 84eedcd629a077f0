"""Many and bad clients against nano behind a server: answers, places and memory; ends with 1 if anything is not as it was before.

python scripts/load_server.py [--disconnects 1000] [--clients 200] [--bodies 10000]
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "tests")]

from support import server_load  # type: ignore[import-not-found]  # noqa: E402
from support.served import served  # type: ignore[import-not-found]  # noqa: E402

import glmrun  # noqa: E402
from glmrun.server.service import Options  # noqa: E402


def resident() -> float:
    """Memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def main() -> int:
    """Run everything; print a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, number in (("disconnects", 1000), ("clients", 200), ("bodies", 10_000)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    wrong = 0
    with glmrun.load(n_ctx=1024) as model, served(model, Options(n_waiting=options.clients + 100)) as server:
        alone = [server_load.answer(server, i) for i in range(8)]
        server_load.crowd(server, options.clients)  # warm: every place and thread has been used
        server_load.malformed(server, 200)
        print(f"warm: {resident():.0f} MB, {threading.active_count()} threads", flush=True)
        rounds: list[tuple[str, Callable[[], Any]]] = [
            (f"{options.clients} clients at once", lambda: server_load.crowd(server, options.clients)),
            (f"{options.disconnects} disconnects", lambda: server_load.disconnects(server, options.disconnects)),
            ("20 slow readers", lambda: server_load.slow_readers(server, 20)),
            ("100 half-open connections", lambda: server_load.half_open(server, 100)),
            (f"{options.bodies} malformed bodies", lambda: server_load.malformed(server, options.bodies)),
        ]
        for name, run in rounds:
            start = time.perf_counter()
            found = run()
            seconds = time.perf_counter() - start
            is_idle = server_load.idle(server)
            same = [server_load.answer(server, i) for i in range(8)] == alone
            if isinstance(found, list):
                same = same and all(text == alone[i % 8] for i, text in enumerate(found))
            elif isinstance(found, dict):
                same = same and max(found) < 500
            wrong += not (is_idle and same)
            told = f" {dict(sorted(found.items()))}" if isinstance(found, dict) else ""
            verdict = "answers as alone" if same else "WRONG ANSWERS"
            places = "places free" if is_idle else "A PLACE IS LOST"
            print(
                f"{name}: {seconds:.1f} s, {verdict}, {places}, {resident():.0f} MB, {threading.active_count()} threads{told}",
                flush=True,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
