"""The process in which a user's tools run: started by tools.py as `python -u -P tool_process.py FILE`.

Requests come as lines of JSON on standard input, each is answered by a line of JSON on standard output. What the tools print goes
to standard error, whatever way they print it.
"""

import asyncio
import faulthandler
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

NAME = "glmrun_tools"  # of the module: one that nothing else has, whatever the file is called
MAX_RESULT = 50_000  # characters of one result
GRACE = 10.0  # seconds after the time limit until this process ends itself, should the one that started it be gone


def main(path: str) -> None:
    """Say what the file offers, then carry out calls until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # a tool that asks reads nothing instead of our requests
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    try:
        functions, left_out = offered(load(Path(path)))
        reply({"tools": [declaration(function) for function in functions.values()], "left_out": left_out})
    except BaseException as why:  # SystemExit too: the file is the user's
        reply({"error": told(why, path)})
        return
    for line in requests:
        request = json.loads(line)
        faulthandler.dump_traceback_later(request["time_limit"] + GRACE, exit=True)
        try:
            reply({"result": call(functions[request["name"]], request["arguments"])})
        except BaseException as why:
            reply({"error": told(why, path)})
        faulthandler.cancel_dump_traceback_later()


def load(path: Path) -> ModuleType:
    """The file as a module; it can import its neighbours."""
    spec = importlib.util.spec_from_file_location(NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file; its name should end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    sys.path.append(str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def offered(module: ModuleType) -> tuple[dict[str, Callable[..., Any]], list[str]]:
    """({name: function} of what the module defines for the model, why each other public function is left out).

    A tool is a function that the file itself defines, has a docstring, and an annotation for each parameter; __all__ may choose.
    """
    functions: dict[str, Callable[..., Any]] = {}
    left_out = []
    for name in getattr(module, "__all__", [name for name in vars(module) if not name.startswith("_")]):
        function = getattr(module, name)
        if not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        parameters = inspect.signature(function).parameters.values()
        if not inspect.getdoc(function):
            left_out.append(f"{name} has no docstring")
        elif bare := [p.name for p in parameters if p.annotation is p.empty]:
            left_out.append(f"{name} does not say what type {', '.join(bare)} is of")
        elif any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters):
            left_out.append(f"{name} has parameters without a name")
        else:
            functions[name] = function
    return functions, left_out


def declaration(function: Callable[..., Any]) -> dict[str, Any]:
    """OpenAI's shape of a function: what it is for from the docstring, its parameters as a JSON schema from the annotations."""
    import docstring_parser
    from pydantic import TypeAdapter

    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    adapter: TypeAdapter[Any] = TypeAdapter(function)  # type: ignore[arg-type]
    schema = _without_titles(adapter.json_schema())
    schema.pop("additionalProperties", None)
    for parameter in doc.params:
        if parameter.arg_name in schema["properties"] and parameter.description:
            schema["properties"][parameter.arg_name].setdefault("description", " ".join(parameter.description.split()))
    parts = [part for part in (doc.short_description, doc.long_description) if part]
    parameters = {"type": "object", **schema}
    return {"type": "function", "function": {"name": function.__name__, "description": "\n".join(parts), "parameters": parameters}}


def _without_titles(schema: Any) -> Any:
    """A schema without the titles that pydantic derives from names; a property that is called title stays."""
    if isinstance(schema, list):
        return [_without_titles(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _without_titles(each) for name, each in value.items()}
        if key in ("properties", "$defs")
        else _without_titles(value)
        for key, value in schema.items()
        if key != "title" or not isinstance(value, str)
    }


def call(function: Callable[..., Any], arguments: dict[str, Any]) -> str | None:
    """What the function returns, as text: JSON unless it is text already; None for None.

    Arguments become what the annotations say, as far as pydantic converts them, which raises ValidationError otherwise.
    """
    from pydantic import validate_call

    result = validate_call(function)(**arguments)
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    if result is None:
        return None
    text = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_RESULT else f"{text[:MAX_RESULT]}\n[cut off: {len(text):,} characters in all]"


def told(why: BaseException, path: str) -> str:
    """An exception in a line for the model and the user, with the line of the user's file it came from."""
    from pydantic import ValidationError

    if isinstance(why, ValidationError):
        wrong = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in why.errors(include_url=False)]
        return "wrong arguments: " + "; ".join(wrong)
    text = " ".join(str(why).split())[:1000]
    at, where = why.__traceback__, ""
    while at is not None:
        if at.tb_frame.f_code.co_filename == path:
            where = f" ({Path(path).name}, line {at.tb_lineno})"
        at = at.tb_next
    return f"{type(why).__name__}{': ' + text if text else ''}{where}"


if __name__ == "__main__":
    main(sys.argv[1])
