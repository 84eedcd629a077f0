"""Writes docs/commands.md from the command line's own declarations.

python scripts/make_docs.py [--check]     # --check: exit 1 if the page is not current
"""

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "commands.md"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _command(path: str, command: Any) -> list[str]:
    """A command's section: what it does, its arguments and options."""
    lines = [f"## {path}", "", inspect.cleandoc(command.help or "").replace("\b\n", ""), ""]
    rows = []
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name == "help":
            continue
        names = [*parameter.opts, *parameter.secondary_opts] if parameter.param_type_name == "option" else [parameter.metavar]
        label = parameter.human_readable_name.upper() if names == [None] else ", ".join(str(name) for name in names)
        if parameter.param_type_name == "option" and parameter.metavar:
            label += f" {parameter.metavar}"
        rows.append(f"| `{_cell(label)}` | {_cell(getattr(parameter, 'help', None) or '')} |")
    if rows:
        lines += ["| | |", "|---|---|", *rows, ""]
    return lines


def page() -> str:
    """The whole page."""
    import typer

    from glmrun.cli import app

    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "Made by `python scripts/make_docs.py` from the declarations that `--help` prints.", ""]
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        for sub, inner in sorted(getattr(command, "commands", {"": command}).items()):
            lines += _command(f"glmrun {name} {sub}".strip(), inner)
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page, or say that it is not current."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    if parser.parse_args().check:
        return PAGE.read_text(encoding="utf-8") != page()
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
