"""`glmrun inspect`: what is in a model file."""

import json
import re
from typing import Annotated, Any

import typer

from glmrun.cli import loading, options

_LONGEST_LIST = 5  # elements of a metadata list that are shown


def inspect(
    model: Annotated[str | None, options.MODEL] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors: name, shape, format, bytes.")] = False,
    match: Annotated[str | None, typer.Option("--match", metavar="REGEX", help="Only tensors or keys whose name matches.")] = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="List the metadata; of long lists the first elements.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; lists of metadata and tensors only if asked for.")
    ] = False,
) -> None:
    """Show what a GGUF file holds: architecture, size, quantization, context, tokenizer.

    \b
    Examples:
      glmrun inspect GLM-4.7-Flash-Q4_K_M.gguf
      glmrun inspect nano --tensors --match 'blk\\.1\\.'
      glmrun show model.gguf --metadata --json
    """
    try:
        pattern = re.compile(match or "")
    except re.error as why:
        raise typer.BadParameter(f"--match: {match!r} is not a regular expression: {why}") from None

    from glmrun.architecture import config_from_gguf
    from glmrun.gguf_file import open_gguf
    from glmrun.measure.model_file import model_facts, plain_metadata, tensor_rows

    opened = open_gguf(loading.resolve_model(model))
    facts = model_facts(opened, config_from_gguf(opened))
    rows = [row for row in tensor_rows(opened) if pattern.search(row["name"])]
    pairs = {key: value for key, value in plain_metadata(opened, _LONGEST_LIST).items() if pattern.search(key)}
    if as_json:
        lists = ({"metadata": pairs} if metadata else {}) | ({"tensor_list": rows} if tensors else {})
        print(json.dumps(facts | lists, ensure_ascii=False, indent=2))
        return

    from glmrun.terminal.sanitize import one_line, visible
    from glmrun.terminal.tables import columns

    if not tensors and not metadata:
        print(visible(_summary(facts)))
    if metadata:
        for key, value in pairs.items():
            print(f"{one_line(key)} = {one_line(_value_text(value))}")
    if tensors:
        lines = [[row["name"], " x ".join(map(str, row["shape"])), row["format"], f"{row['bytes']:,}"] for row in rows]
        print(columns([["tensor", "shape", "format", "bytes"], *lines], right=[3]))


def _summary(facts: dict[str, Any]) -> str:
    from glmrun.terminal.sanitize import one_line
    from glmrun.terminal.tables import bytes_text, columns, params_text

    total = facts["parameters"]
    mix = ", ".join(f"{name} {count / total:.1%}" for name, count in facts["formats"].items())
    context, per_position = facts["context_length"], facts["kv_bytes_per_position"]
    template = facts["chat_template_sha256"]
    layers = f"{facts['layers']}" + (f" and {facts['mtp_layers']} for next-token prediction" if facts["mtp_layers"] else "")
    pairs = [
        ("file", one_line(facts["file"])),
        ("name", one_line(str(facts["name"] or "-"))),
        ("architecture", f"{facts['architecture']} (GGUF version {facts['gguf_version']})"),
        ("parameters", f"{params_text(total)}, {params_text(facts['parameters_active'])} active per token"),
        (
            "size",
            f"{bytes_text(facts['file_bytes'])} ({facts['file_bytes']:,} bytes), {facts['bits_per_weight']:.2f} bits per weight",
        ),
        ("weights", mix),
        ("layers", layers),
        ("experts", f"{facts['experts_used']} of {facts['experts']}, and {facts['experts_shared']} shared"),
        ("context", f"{context:,} tokens"),
        ("cache", f"{per_position:,} bytes per position, {bytes_text(per_position * context)} for the whole context"),
        ("tokenizer", f"{facts['tokenizer']}, {facts['vocabulary']:,} tokens"),
        ("chat template", f"sha256 {template[:16]}" if template else "none in the file; glmrun uses its own"),
    ]
    return columns(pairs)


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{', '.join(json.dumps(v, ensure_ascii=False) for v in value['first'])}, ...] ({value['length']:,} elements)"
    return json.dumps(value, ensure_ascii=False)
