"""Write nano's held-out questions, on which make_nano.py measured it, as a suite for `glmrun eval`.

python scripts/make_skills.py [--per-skill 60] [--seed 47] [--out glmrun/nano/skills.jsonl]
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from nano.corpus import test_documents
from nano.document import Document

ROOT = Path(__file__).resolve().parent.parent


def question(document: Document, number: int) -> dict[str, Any]:
    """One line: everything before the last answer, and that answer."""
    answer = document.messages[-1]
    calls = answer.get("tool_calls")
    checked = {"check": "tool_call", "answer": _call(calls[0])} if calls else {"check": "exact", "answer": answer["content"]}
    line: dict[str, Any] = {"id": f"{document.skill} {number}", "skill": document.skill, "messages": document.messages[:-1]}
    if document.tools:
        line["tools"] = document.tools
    if document.keep_reasoning:
        line["clear_thinking"] = False
    return line | {"thinking": document.thinking, "max_tokens": 200, **checked}


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    return {"name": function["name"], "arguments": function["arguments"]}


def suite(documents: list[Document]) -> str:
    """The lines of all documents that end with an answer."""
    lines, counts = [], dict[str, int]()
    for document in documents:
        if document.text is None:
            counts[document.skill] = counts.get(document.skill, 0) + 1
            lines.append(json.dumps(question(document, counts[document.skill]), ensure_ascii=False))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-skill", type=int, default=60)
    parser.add_argument("--seed", type=int, default=47)
    parser.add_argument("--out", type=Path, default=ROOT / "glmrun" / "nano" / "skills.jsonl")
    args = parser.parse_args()
    args.out.write_text(suite(test_documents(random.Random(f"test {args.seed}"), args.per_skill)), encoding="utf-8")
