"""The forms of recorded requests, without the texts of those who wrote the clients: tests/golden/client_forms.json.

    python scripts/make_client_forms.py FOLDER

FOLDER holds a JSON file for each client: {"client": name, "requests": [{note, method, path, query, headers, body}, ...]}, in the
order in which they were sent. Keys, numbers and words stay (a word has no white space and at most 64 characters); every other text
becomes `text N.`, each its own; JSON inside a text stays JSON. Of a body's tools four stay, and the first of each other kind.
"""

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

FORMS = Path(__file__).parents[1] / "tests" / "golden" / "client_forms.json"
_WORD = re.compile(r"[^\s<>]{0,64}")
_BILLING = "x-anthropic-billing-header:"  # its value changes with each conversation
_HEADERS = ("content-type", "user-agent", "anthropic-", "x-app")
_N_TOOLS = 4


def reduced(value: Any, numbers: "itertools.count[int]") -> Any:
    """A body with its texts replaced."""
    if isinstance(value, dict):
        return {key: reduced(_fewer(inner) if key == "tools" else inner, numbers) for key, inner in value.items()}
    if isinstance(value, list):
        return [reduced(inner, numbers) for inner in value]
    if not isinstance(value, str) or _WORD.fullmatch(value):
        return value
    if value.startswith("{"):
        try:
            return json.dumps(reduced(json.loads(value), numbers))
        except ValueError:
            return f'{{"text {next(numbers)}.'
    return (_BILLING + " " if value.startswith(_BILLING) else "") + f"text {next(numbers)}."


def _fewer(tools: Any) -> Any:
    if not isinstance(tools, list):
        return tools
    kinds = [tool.get("type") if isinstance(tool, dict) else None for tool in tools]
    return [tool for i, tool in enumerate(tools) if i < _N_TOOLS or kinds.index(kinds[i]) == i]


def main(folder: Path) -> None:
    """Write the file."""
    sessions = {}
    for path in sorted(folder.glob("*.json")):
        recorded = json.loads(path.read_text(encoding="utf-8"))
        sessions[path.stem] = {
            "client": recorded["client"],
            "requests": [
                {
                    "path": request["path"] + ("?" + request["query"] if request["query"] else ""), "method": request["method"],
                    "headers": {k.lower(): v for k, v in request["headers"].items() if k.lower().startswith(_HEADERS)},
                    "body": reduced(request["body"], itertools.count(1)),
                }
                for request in recorded["requests"]
            ],
        }  # fmt: skip
    made = {"made by": "scripts/make_client_forms.py", "sessions": sessions}
    FORMS.write_text(json.dumps(made, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
