"""`glmrun sessions`: conversations and calls that are kept on this machine."""

import shutil
import sys
from datetime import datetime
from typing import Annotated

import typer

from glmrun.cli.chat import complete_session
from glmrun.repl import sessions
from glmrun.terminal.console import note
from glmrun.terminal.sanitize import json_text
from glmrun.terminal.tables import columns


def list_sessions(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD...]", help="Only those that hold all of these words.", show_default=False)
    ] = None,
    runs: Annotated[bool, typer.Option("--runs", help="The calls of glmrun run instead of the conversations.")] = False,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, metavar="N", help="At most so many, the last ones used.")] = 20,
    remove: Annotated[
        str | None, typer.Option("--rm", metavar="ID", autocompletion=complete_session, help="Delete this one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the kept conversations, the last one used at the end; glmrun chat --resume ID goes on with one.

    Calls of glmrun run are kept, too, in a folder of their own (--runs); run --continue goes on with the last one. The setting
    log = false, or run --no-log, keeps none.

    \b
    Examples:
      glmrun sessions
      glmrun sessions fibonacci
      glmrun sessions --runs -n 5
      glmrun sessions --rm 20261129-101500
    """
    kind = sessions.RUNS if runs else sessions.CHATS
    if remove is not None:
        path = sessions.find(remove, kind)
        sessions.remove(path)
        note(f"{path.stem} is deleted")
        return
    listed = reversed(sessions.listed(limit, words or (), kind))
    found = [(path, saved, datetime.fromtimestamp(path.stat().st_mtime)) for path, saved in listed]
    if as_json:
        rows = [
            {"id": path.stem, "title": saved.title(), "model": saved.model, "messages": len(saved.messages),
             "used": used.astimezone().isoformat(timespec="seconds"), "path": str(path)}
            for path, saved, used in found
        ]  # fmt: skip
        print(json_text(rows))
    elif not found:
        note("nothing that is kept holds these words" if words else "nothing is kept yet")
    else:
        lines = [[path.stem, f"{used:%d %b %H:%M}", str(len(saved.messages)), saved.title()] for path, saved, used in found]
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(columns([["id", "used", "messages", "title"], *lines], right=[2], width=width))
