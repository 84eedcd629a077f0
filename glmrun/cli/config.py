"""`glmrun config`: which settings hold, and where each comes from."""

import contextlib
import json
import os
import sys
from typing import Annotated

import typer

from glmrun.settings import PLACES, SETTINGS, config_path, misspelt, origins
from glmrun.terminal.console import note
from glmrun.terminal.sanitize import one_line
from glmrun.terminal.tables import columns
from glmrun.terminal.tail import window

app = typer.Typer(
    help="""Settings: a flag beats a GLMRUN_* variable, which beats the config file, which beats the default.

    \b
    Examples:
      glmrun config show
      glmrun config path
    """,
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def _first_guess(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        show(as_json=False)


@app.command("show")
def show(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """Show every setting, its value and where that comes from.

    The config file is TOML: one `key = value` a line, with the keys that are listed here. Each key has a variable, GLMRUN_ and
    the key in capitals, and an option of the commands that use it.

    \b
    Examples:
      glmrun config show
      echo 'temperature = 0.7' >> "$(glmrun config path)"
      GLMRUN_CONTEXT=64K glmrun chat
    """
    for line in misspelt():
        note(line)
    rows = origins()
    if as_json:
        print(json.dumps([{"key": k, "value": v, "origin": o, "variable": SETTINGS[k].variable} for k, v, o in rows], indent=2))
        return
    path = config_path()
    table = [["setting", "value", "from", "variable"], *([k, v, o, SETTINGS[k].variable] for k, v, o in rows)]
    if sys.stdout.isatty() and max(map(len, columns(table).split("\n"))) > window(sys.stdout)[0]:
        table = [[*row[:2], row[2].replace(f"{path},", "config file,")] for row in table]  # variables are keys in capitals
    print(columns(table))
    print(f"\nconfig file: {one_line(str(path))}{'' if path.exists() else ' (not there)'}")
    places = [[name, os.environ.get(name) or "-", what] for name, what in PLACES.items()]
    print("\n" + columns([["variable", "value", "place of"], *places]))


@app.command("path")
def path() -> None:
    """Print the place of the config file, whether it is there or not.

    \b
    Examples:
      glmrun config path
      $EDITOR "$(glmrun config path)"
    """
    found = config_path()
    with contextlib.suppress(OSError):  # whoever writes there is told why he can't
        found.parent.mkdir(parents=True, exist_ok=True)
    print(found)
