"""Compile the tiles of prompts and attention for another processor and count what their inner loops do. Nothing is run.

NUMBA_CPU_NAME=haswell NUMBA_CPU_FEATURES=+avx2,... python tests/support/inner_loops.py              prints JSON
NUMBA_CPU_NAME=cortex-a76 NUMBA_CPU_FEATURES=+neon,+dotprod python tests/support/inner_loops.py TRIPLE     for ARM, rows too
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
TRIPLE = sys.argv[1] if len(sys.argv) > 1 else None
if TRIPLE:
    from support.cross_compile import prepare

    prepare(TRIPLE)

from glmrun.kernels.compiled import self_test  # noqa: E402

self_test.is_right = lambda dots: True  # this processor need not have the instructions

import glmrun.kernels.compiled.cache as kernels  # noqa: E402
from glmrun.kernels.simd import target  # noqa: E402

PRODUCTS = ("vpmaddubsw", "vpmaddwd", "vpdpbusd", "vpdpwssd", "sdot", "usdot", "smmla", "smlal", "smlal2")
ROWS = ("dot_rows",) if TRIPLE else ("dot_rows", "dot_rows_two")
WANTED = ("q2_k", "q4_k", "q5_k", "q6_k", "q8_0", "scores", "gather")


def inner_loop(assembly: str) -> list[str]:
    """The instructions of the basic block with most products."""
    blocks = [re.findall(r"^\t(?:\{vex\}\s+)?([a-z].*)$", block, re.MULTILINE) for block in re.split(r"\n\.?LBB\w+:", assembly)]
    return max(blocks, key=lambda block: sum(line.split()[0].split(".")[0] in PRODUCTS for line in block))


def waiting_loads(assembly: str) -> list[str]:
    """Loads of vectors from the stack that hold more than what one store of the same block left there: such a load waits until
    the store is in the cache, as long as the loop's other instructions take together."""
    found = []
    for block in re.split(r"\n\.?LBB\w+:", assembly):
        stored: list[tuple[str, int, int]] = []  # base register, first byte and the one after the last
        for line in re.findall(r"^\t(?:\{vex\}\s+)?(vp?[a-z].*)$", block, re.MULTILINE):
            place, registers = re.search(r"(-?\d*)\((%r[sb]p)\)", line), re.findall(r"%[xyz]mm", line)
            if not place or not registers or re.match(r"v\w*(broadcast|insert|extract|cvt|pmov|movh|movl|movs[sd])|.*\{1to", line):
                continue
            first, width = int(place[1] or 0), {"%xmm": 16, "%ymm": 32, "%zmm": 64}[registers[0]]
            if line.startswith("vmov") and line.endswith(place[0]):
                stored.append((place[2], first, first + width))
                continue
            spans = [(low, high) for base, low, high in stored if base == place[2] and low < first + width and first < high]
            if spans and not any(low <= first and first + width <= high for low, high in spans):
                found.append(line)
    return found


def main() -> None:
    """One line for each tile's function: instructions, products, accesses of the stack, registers of 512 bits."""
    kernels.defer()
    import glmrun.forward  # noqa: F401

    found = {}
    for place, kernel in enumerate(kernels.registered):
        function = kernel.jitted.py_func
        room = function.__module__.removeprefix("glmrun.kernels.")
        is_row = room.startswith(("formats.q", "formats.iq4")) and function.__name__ in ROWS
        if not is_row and (".tile_" not in room or function.__name__ not in WANTED):
            continue
        for i in [*kernels.needed(place), place]:
            kernels.registered[i].compile()
        for n, assembly in enumerate(kernel.jitted.inspect_asm().values()):
            loop = inner_loop(assembly)
            found[f"{room}.{function.__name__}.{n}"] = {
                "instructions": len(loop),
                "products": sum(line.split()[0].split(".")[0] in PRODUCTS for line in loop),
                "dots": sum(line.split()[0].split(".")[0] in ("sdot", "usdot", "smmla") for line in loop),
                "by lane": sum(re.search(r"dot.*\[\d\]$", line) is not None for line in loop),
                "stack": sum(re.search(r"\(%r[sb]p|\[sp|\[x29", line) is not None for line in loop),
                "astray": sum(re.match(r"vmov(up|dqu).*%[yz]mm.*\(%r[sb]p", line) is not None for line in loop),
                "waits": [] if TRIPLE else waiting_loads(assembly),
                "zmm": any("zmm" in line for line in loop),
                "x86": "x86" in assembly,
            }
    json.dump({"target": target.name(), "loops": found}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
