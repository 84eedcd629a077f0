"""`glmrun inspect`: what is in a model file."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmrun.cli import loading
from glmrun.terminal.sanitize import json_text, one_line, visible
from glmrun.terminal.tables import bytes_text, columns, params_text
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.gguf.file import GGUFFile

_LONGEST_LIST = 5  # elements of a metadata list that are shown


def inspect(
    model: Annotated[str | None, loading.MODEL] = None,
    named: loading.Named = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List the tensors: name, shape, format, bytes.")] = False,
    match: Annotated[str | None, typer.Option("--match", metavar="REGEX", help="Only tensors or keys whose name matches.")] = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="List the metadata; of long lists the first elements.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object; lists of metadata and tensors only if asked for.")
    ] = False,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="OTHER", help="Show only what another file has otherwise; --hash: data too.")
    ] = None,
    hash_data: Annotated[
        bool, typer.Option("--hash", help="SHA-256 of every tensor's data and of them all, whatever the metadata say.")
    ] = False,
) -> None:
    """Show what a GGUF file holds: architecture, size, quantization, context, tokenizer, and what is known to be wrong with it.

    With --diff the exit code is 1 if there is a difference.

    \b
    Examples:
      glmrun inspect GLM-4.7-Flash-Q4_K_M.gguf
      glmrun inspect nano --tensors --match 'blk\\.1\\.'
      glmrun show model.gguf --metadata --json
      glmrun inspect mine.gguf --diff theirs.gguf --hash
    """
    try:
        pattern = re.compile(match or "")
    except re.error as why:
        raise typer.BadParameter(f"--match: {match!r} is not a regular expression: {why}") from None
    if match is not None and not (tensors or metadata or hash_data or diff is not None):
        raise typer.BadParameter("--match chooses among what --tensors, --metadata, --hash or --diff show: add one of them")

    from glmrun.gguf.open import open_gguf
    from glmrun.measure.model_file import plain_metadata, tensor_rows

    opened = open_gguf(loading.resolve_model(loading.one_model(model, named)))
    if diff is not None:
        kinds = [kind for kind, wanted in (("metadata", metadata), ("tensors", tensors)) if wanted or metadata == tensors]
        _diff(opened, open_gguf(loading.resolve_model(diff)), pattern, kinds, hash_data, as_json)
        return
    digests = {name: digest for name, digest in _hashes(opened).items() if not name or pattern.search(name)} if hash_data else {}
    facts = _facts(opened)
    rows = [row for row in tensor_rows(opened) if pattern.search(row["name"])]
    pairs = {key: value for key, value in plain_metadata(opened, _LONGEST_LIST).items() if pattern.search(key)}

    if as_json:
        lists: dict[str, Any] = ({"metadata": pairs} if metadata else {}) | ({"tensor_list": rows} if tensors else {})
        lists |= {"sha256": digests.pop(""), "tensor_sha256": digests} if hash_data else {}
        print(json_text(facts | lists))
        return

    for name, digest in digests.items():
        print(f"{digest}  {one_line(name or str(opened.path))}")
    if not tensors and not metadata and not hash_data:
        print(visible(_summary(facts)))
        for line in facts["warnings"]:
            print(f"warning: {one_line(line)}")
    for key, value in pairs.items() if metadata else ():
        print(f"{one_line(key)} = {one_line(_value_text(value))}")
    if tensors:
        print(_tensor_table(rows))


def _facts(file: "GGUFFile") -> dict[str, Any]:
    """What is known of the file; of another model's what any file says, and why it can't be run."""
    from glmrun.gguf.architecture import config_from_gguf
    from glmrun.measure.model_file import file_facts, model_facts

    try:
        return model_facts(file, config_from_gguf(file))
    except UserError as why:
        return file_facts(file) | {"warnings": [f"can't be run: {why}"]}


def _tensor_table(rows: list[dict[str, Any]]) -> str:
    lines = [[row["name"], " x ".join(map(str, row["shape"])), row["format"], f"{row['bytes']:,}"] for row in rows]
    return columns([["tensor", "shape", "format", "bytes"], *lines], right=[3])


def _summary(facts: dict[str, Any]) -> str:
    total = facts["parameters"]
    mix = ", ".join(f"{name} {count / total:.1%}" for name, count in facts["formats"].items())
    template, own = facts["chat_template_sha256"], ", glmrun's own" if facts["chat_template_is_glmruns"] else ""
    runs = "config" in facts
    active = f", {params_text(facts['parameters_active'])} active per token" if runs else ""
    pairs = [
        ("file", one_line(facts["file"])),
        ("name", one_line(str(facts["name"] or "-"))),
        ("architecture", f"{one_line(str(facts['architecture']))} (GGUF version {facts['gguf_version']})"),
        ("parameters", params_text(total) + active),
        (
            "size",
            f"{bytes_text(facts['file_bytes'])} ({facts['file_bytes']:,} bytes), {facts['bits_per_weight']:.2f} bits per weight",
        ),
        ("weights", mix or "none"),
        *(_shape_rows(facts) if runs else []),
        ("tokenizer", f"{one_line(facts['tokenizer'])}, {facts['vocabulary']:,} tokens"),
        ("chat template", f"sha256 {template[:16]}{own}" if template else f"none in the file{'; glmrun uses its own' * runs}"),
        *([("capabilities", ", ".join(facts["capabilities"]))] if runs else []),
    ]
    return columns(pairs)


def _shape_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of a model that can be run."""
    context, per_position = facts["context_length"], facts["kv_bytes_per_position"]
    return [
        ("layers", f"{facts['layers']}" + (f" and {facts['mtp_layers']} for next-token prediction" if facts["mtp_layers"] else "")),
        ("experts", f"{facts['experts_used']} of {facts['experts']}, and {facts['experts_shared']} shared"),
        ("context", f"{context:,} tokens"),
        ("cache", f"{per_position:,} bytes per position, {bytes_text(per_position * context)} for the whole context"),
    ]


def _hashes(file: "GGUFFile") -> dict[str, str]:
    """{tensor: SHA-256}, and the model's under ""; behind a bar."""
    from glmrun.measure.model_file import hashes
    from glmrun.terminal.progress import BytesProgress

    found, done, total = {}, 0, sum(tensor.n_bytes for tensor in file.tensors.values())
    with BytesProgress() as bar:
        for name, digest, n_bytes in hashes(file):
            found[name], done = digest, done + n_bytes
            bar.update(name, done, total)
    return found


def _diff(a: "GGUFFile", b: "GGUFFile", pattern: re.Pattern[str], kinds: list[str], data: bool, as_json: bool) -> None:
    """Print what differs of these kinds, as `- a's` and `+ b's`; exit code 1 if anything does."""
    from glmrun.measure.model_file import brief, difference

    differing = difference(a, b, data)
    found = {kind: {name: pair for name, pair in differing[kind].items() if pattern.search(name)} for kind in kinds}
    if as_json:
        print(json_text(found))
    else:
        for kind, pairs in found.items():
            for name, pair in pairs.items():
                for sign, value in zip("-+", pair, strict=True):
                    if value is not None and value != "same":
                        text = _value_text(brief(value, _LONGEST_LIST)) if kind == "metadata" else _tensor_text(value)
                        print(f"{sign} {one_line(name)} = {one_line(text)}")
    if any(found.values()):
        raise typer.Exit(1)


def _tensor_text(value: Any) -> str:
    return value if isinstance(value, str) else f"{' x '.join(map(str, value[0]))} {value[1]}"


def _value_text(value: Any) -> str:
    if isinstance(value, dict):
        return f"[{', '.join(json.dumps(v, ensure_ascii=False) for v in value['first'])}, ...] ({value['length']:,} elements)"
    return json.dumps(value, ensure_ascii=False)
