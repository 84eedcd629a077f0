"""`glmrun list` and `glmrun rm`: the models that are on this machine."""

import sys
from datetime import datetime
from typing import Annotated

import typer

from glmrun.cli import loading
from glmrun.cli.loading import only_one
from glmrun.terminal.console import note
from glmrun.terminal.sanitize import json_text, one_line
from glmrun.terminal.tables import bytes_text, columns
from quant.errors import UserError


def list_models(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the models that were pulled into the hub's cache or converted into the models folder.

    Any part of a name that means only one of them can stand for MODEL in every command.

    \b
    Examples:
      glmrun list
      glmrun list --json
    """
    from glmrun.store.local import local_models, models_folder

    models = local_models()
    if as_json:
        nano = {"name": "nano", "kind": "built in", "quantization": "Q8_0", "bytes": None, "path": None, "modified": None}
        rows = [nano] + [
            {
                "name": m.name, "kind": m.kind, "quantization": m.quantization, "bytes": m.n_bytes, "path": str(m.path),
                "modified": datetime.fromtimestamp(m.modified).astimezone().isoformat(timespec="seconds"),
            }
            for m in models
        ]  # fmt: skip
        print(json_text(rows))
    else:
        if not models:
            note(
                "no other model yet: glmrun pull ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M fetches the real one (18 GB); "
                f"converted ones are looked for in {models_folder()}"
            )
        lines = [["nano", "Q8_0", "-", "built in", "-"]]
        lines += [
            [m.name, m.quantization or "-", bytes_text(m.n_bytes), m.kind, f"{datetime.fromtimestamp(m.modified):%Y-%m-%d %H:%M}"]
            for m in models
        ]
        print(columns([["name", "quant", "size", "kind", "when"], *lines], right=[2]))


def remove_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=loading.complete_model,
            help="A name that glmrun list shows, or a part that means only one.",
        ),
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a pulled or converted model from the disk.

    Files in the hub's cache are shared: other programs that use them have to fetch them again.

    \b
    Examples:
      glmrun rm ggml-org/GLM-4.7-Flash-GGUF:Q4_K_M
      glmrun rm q8_0 --yes
    """
    from glmrun.store.local import local_models, matching, remove

    found = matching(name, local_models())
    if not found and name == "nano":
        raise UserError(
            "nano comes with glmrun and can't be deleted; its quantizations are in the cache folder (glmrun doctor)", "usage"
        )
    if not found:
        raise UserError(f"no model is called {name}; glmrun list shows what there is", "missing")
    model = only_one(name, found)
    what = f"{model.name} ({bytes_text(model.n_bytes)} in {model.path.parent})"
    if not yes:
        if sys.stdin is None or not sys.stdin.isatty():
            raise UserError(f"delete {what}? Nobody can be asked here: add --yes", "refused")
        if not typer.confirm(f"delete {one_line(what)}?", err=True):
            raise typer.Abort
    remove(model)
    note(f"deleted {what}")
