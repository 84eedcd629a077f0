"""Full-shape GLM-4.7-Flash files with random weights, in seconds: for speed, memory and compatibility, not for talk.

make_synthetic.py --layers 4 -q Q4_K_M -o F       a GGUF file, cut to 4 of 47 layers
make_synthetic.py --layers 47 --mtp -q Q8_0 -o F  all layers and the MTP layer
make_synthetic.py --checkpoint DIR                a Hugging Face folder of 48 shards, all zeros, sparse on disk
make_synthetic.py --checkpoint DIR --layers 10    the same with 10 layers
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from synthetic_checkpoint import write_checkpoint
from synthetic_vocabulary import make_vocabulary

from quant.config import FLASH
from quant.errors import UserError
from quant.formats import FORMATS, Format
from quant.gguf_header import TensorEntry, pack_header, padding
from quant.mapping import Card, metadata
from quant.publish import publish
from quant.recipes import recipe, tensor_formats

CHAT_TEMPLATE = Path(__file__).parent.parent / "glmrun" / "chat" / "chat_template.jinja"
_POOL_WEIGHTS = 1 << 20  # encoded once per format and row width; every unit of a row is drawn from them
_CHUNK_BYTES = 4 << 20


def write_gguf(
    output: Path, layers: int, quantization: str, mtp: bool = False, seed: int = 0, force: bool = False, skew: float = 0.02
) -> int:
    """Write a GGUF file with `layers` of the 47 layers; returns its size in bytes.

    skew   standard deviation of the routers' biases: the larger, the more often the same experts are chosen

    Each matrix has a standard deviation of 1/sqrt(columns) and norms are near 1, so activations stay as tame as a trained
    model's. Blocks are encoded normal values, drawn at random from a pool: rows differ, and no search has to run over billions.
    """
    chosen = recipe(quantization)
    config = replace(FLASH, num_hidden_layers=layers, num_nextn_predict_layers=int(mtp))
    planned = tensor_formats(chosen, config)
    entries = [TensorEntry(name, shape, FORMATS[kind].ggml_type, n_bytes) for name, (shape, kind, n_bytes) in planned.items()]
    card = Card(
        name=f"GLM-4.7-Flash-synthetic-{layers}L",
        vocabulary=make_vocabulary(),
        chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
        eos_token_ids=[154820, 154827, 154829],
        pad_token_id=154820,
        license="mit",
    )
    header = pack_header(metadata(config, card, chosen.file_type, sum(math.prod(entry.shape) for entry in entries)), entries)
    size = len(header) + sum(entry.n_bytes + padding(entry.n_bytes) for entry in entries)
    rng = np.random.Generator(np.random.SFC64(seed))
    pools: dict[tuple[str, int], np.ndarray] = {}
    with publish(output, {output: size}, force) as file:
        file.write(output, 0, header)
        at = len(header)
        for entry in entries:
            for chunk in _random_tensor((rng, skew), pools, entry.name, entry.shape, FORMATS[planned[entry.name][1]]):
                file.write(output, at, chunk)
                at += len(memoryview(chunk).cast("B"))
            at += padding(entry.n_bytes)
    return size


def _random_tensor(
    chance: tuple[np.random.Generator, float],
    pools: dict[tuple[str, int], np.ndarray],
    name: str,
    shape: tuple[int, ...],
    kind: Format,
) -> Iterator[bytes | memoryview]:
    """The bytes of one tensor, in chunks; chance: where numbers come from, and the deviation of the routers' biases."""
    (rng, skew), columns = chance, shape[-1]
    if kind.name == "F32" and (len(shape) == 1 or "ffn_gate_inp" in name):
        spread, middle = (skew, 0.0) if name.endswith("bias") else (0.05, 1.0) if len(shape) == 1 else (columns**-0.5, 0.0)
        yield (rng.standard_normal(shape, np.float32) * np.float32(spread) + np.float32(middle)).tobytes()
        return
    unit = math.gcd(columns, 256)
    if (kind.name, columns) not in pools:
        values = rng.standard_normal((_POOL_WEIGHTS // unit, unit), np.float32) * np.float32(columns**-0.5)  # (units, unit)
        pools[kind.name, columns] = kind.encode(values)  # (units, bytes)
    pool = pools[kind.name, columns]
    left, chunk = math.prod(shape) // unit, np.empty((_CHUNK_BYTES // pool.shape[1], pool.shape[1]), np.uint8)  # (n, bytes)
    while left:
        n = min(left, len(chunk))
        draw = rng.integers(len(pool), size=n, dtype=np.uint16)  # (n,)
        yield pool.take(draw, axis=0, out=chunk[:n], mode="clip").data  # "clip" only because "raise" would copy once more
        left -= n


def main() -> None:
    """Parse, write, say what was written."""
    parser = argparse.ArgumentParser(description="Full-shape GLM-4.7-Flash files with random weights.")
    parser.add_argument("--layers", type=int, default=47, choices=range(1, 48), metavar="N", help="1 to 47 (default 47)")
    parser.add_argument("-q", "--quant", default="Q4_K_M", help="quantization (default Q4_K_M)")
    parser.add_argument("-o", "--output", type=Path, help="GGUF file to write")
    parser.add_argument("--mtp", action="store_true", help="keep the next-token-prediction layer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skew", type=float, default=0.02, help="standard deviation of the routers' biases (default 0.02)")
    parser.add_argument("--force", action="store_true", help="replace the output if it exists")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="write a sparse Hugging Face checkpoint instead")
    args = parser.parse_args()
    if (args.output is None) == (args.checkpoint is None):
        parser.error("give either -o FILE or --checkpoint DIR")
    try:
        if args.checkpoint:
            config = replace(FLASH, num_hidden_layers=args.layers, num_nextn_predict_layers=int(args.mtp or args.layers == 47))
            write_checkpoint(args.checkpoint, config)
            print(f"{args.checkpoint}: config.json, tokenizer.json and {config.n_blocks} sparse shards")
        else:
            size = write_gguf(args.output, args.layers, args.quant, args.mtp, args.seed, args.force, args.skew)
            print(f"{args.output}: {size:,} bytes")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
