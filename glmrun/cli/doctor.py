"""`glmrun doctor`: what glmrun finds on this machine, and what to do about what is wrong."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glmrun import settings
from glmrun.terminal.sanitize import json_text, one_line
from glmrun.terminal.tables import bytes_text, columns
from quant.errors import UserError

if TYPE_CHECKING:
    from glmrun.measure.doctor import Report


def doctor(
    context: typer.Context,
    measure: Annotated[bool, typer.Option("--measure", help="Measure the memory's speed again, about a second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Examine this machine: processor, kernels, threads, memory and its speed, folders, settings, versions.

    Each problem comes with what to do about it. Exit code 0: no problem, 1: at least one. Add the output to a bug report.

    \b
    Examples:
      glmrun doctor
      glmrun doctor --json > doctor.json
    """
    from dataclasses import asdict

    from glmrun.measure.doctor import examine

    report = examine(measure)
    try:
        settings.defaults()
        _prove_settings(context, report)
    except UserError as why:
        report.problem(str(why), "correct it; most commands end with this line until then")
    for line in settings.misspelt():
        report.hint(line, "correct or unset it")
    if as_json:
        found = asdict(report)
        for kind in ("problems", "hints"):
            found[kind] = [{"found": what, "advice": advice} for what, advice in found[kind]]
        print(json_text(found))
    else:
        print(_text(report))
    if report.problems:
        raise typer.Exit(1)


def _prove_settings(context: typer.Context, report: "Report") -> None:
    """Add a problem for each setting whose option would refuse its value."""
    root: Any = context.find_root().command
    options = {option.envvar: option for command in reversed(root.commands.values()) for option in command.params}
    for key, value, origin in settings.origins():
        try:
            if origin != "default" and (option := options.get(settings.variable(key))):
                option.process_value(context, value)
        except typer.BadParameter as why:
            text = why.message.removeprefix("Value error, ")
            report.problem(f"{origin}: {key}: {text}", "correct it; commands that use it end with this line until then")


def _text(report: "Report") -> str:
    lines = []
    for section, facts in report.facts.items():
        rows = [[key.replace("_", " "), _value(key, value)] for key, value in facts.items()] or [["-", ""]]
        lines += [section, *(f"  {line}" for line in columns(rows).splitlines()), ""]
    for kind, found in (("problem", report.problems), ("hint", report.hints)):
        lines += [f"{kind}: {one_line(what)}\n  -> {one_line(advice)}" for what, advice in found]
    return "\n".join([*lines, *([] if report.problems else ["No problem found."])])


def _value(key: str, value: Any) -> str:
    if isinstance(value, dict):  # a folder
        size = bytes_text(value["bytes"]) if value["exists"] else "not there yet"
        return f"{value['path']} ({size}, {bytes_text(value['free'])} free)"
    if key in ("total", "available", "bytes"):
        return bytes_text(value)
    if key == "bytes_per_second":
        return f"{value / 1e9:.1f} GB/s"
    if isinstance(value, list):
        return " ".join(value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)
