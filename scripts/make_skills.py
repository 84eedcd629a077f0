"""Write nano's held-out questions, on which make_nano.py measured it, as a suite for `glmrun eval`.

python scripts/make_skills.py [--per-skill 100] [--seed 47] [--out glmrun/nano/skills.jsonl] [--check 20000]

--check N draws N training documents and N of practice, and ends with 1 if one of them holds a question of the suite, whatever its
case and marks.
"""

import argparse
import json
import random
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from nano.corpus import test_documents, training_documents, words
from nano.document import Document

ROOT = Path(__file__).resolve().parent.parent


def question(document: Document, number: int) -> dict[str, Any]:
    """One line: everything before the last answer, and that answer."""
    answer = document.messages[-1]
    calls = answer.get("tool_calls")
    checked = {"check": "tool_call", "answer": _expected(calls)} if calls else {"check": "exact", "answer": answer["content"]}
    line: dict[str, Any] = {"id": f"{document.skill} {number}", "skill": document.skill, "messages": document.messages[:-1]}
    if document.tools:
        line["tools"] = document.tools
    if document.keep_reasoning:
        line["clear_thinking"] = False
    return line | {"thinking": document.thinking, "max_tokens": 200, **checked}


def _expected(calls: list[dict[str, Any]]) -> Any:
    """The call, or the calls if there are several."""
    functions = [call.get("function", call) for call in calls]
    found = [{"name": function["name"], "arguments": function["arguments"]} for function in functions]
    return found[0] if len(found) == 1 else found


def suite(documents: list[Document]) -> str:
    """The lines of all documents that end with an answer."""
    lines, counts = [], dict[str, int]()
    for document in documents:
        if document.text is None:
            counts[document.skill] = counts.get(document.skill, 0) + 1
            lines.append(json.dumps(question(document, counts[document.skill]), ensure_ascii=False))
    return "\n".join(lines) + "\n"


def turns(document: Document) -> set[tuple[str, str]]:
    """{(what the assistant had said before, or who it was told to be; the user's question)}, as words."""
    found, before = set(), ""
    for message in document.messages:
        if message["role"] == "user":
            found.add((before, words(message["content"])))
        elif message["role"] in ("assistant", "system"):
            before = words(message["content"])
    return found


def taught(suite_documents: list[Document], n: int, seed: int) -> list[str]:
    """Last questions of the suite that are in n training documents or n of practice; what asks for something said, with that."""
    both = (training_documents(random.Random(seed), share) for share in (0.0, 1.0))
    seen = {turn for documents in both for document in islice(documents, n) for turn in turns(document)}
    questions = {question for _, question in seen}
    found = []
    for document in suite_documents:
        asked = next(i for i in reversed(range(len(document.messages))) if document.messages[i]["role"] == "user")
        question = words(document.messages[asked]["content"])
        alone = words(document.key) == question
        if question in questions if alone else turns(document) <= seen and len(document.messages) < 3:
            found.append(f"{document.skill}: {question}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-skill", type=int, default=100)
    parser.add_argument("--seed", type=int, default=47)
    parser.add_argument("--out", type=Path, default=ROOT / "glmrun" / "nano" / "skills.jsonl")
    parser.add_argument("--check", type=int, metavar="N", default=0)
    args = parser.parse_args()
    documents = test_documents(random.Random(f"test {args.seed}"), args.per_skill)
    args.out.write_text(suite(documents), encoding="utf-8")
    if found := taught([d for d in documents if d.text is None], args.check, args.seed):
        sys.exit("\n".join(["these are taught:", *found]))


if __name__ == "__main__":
    main()
