"""The browser's page as it is served: one file, sealed. What it does in a browser: tests/live/test_page.py."""

import base64
import hashlib
import re

from glmrun.server.page import page


def test_only_its_own_script_and_style_run() -> None:
    content, headers = page()
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    for element in ("script", "style"):
        assert content.count(f"<{element}>".encode()) == content.count(f"<{element}".encode()) == 1
        text = content.split(f"<{element}>".encode())[1].split(f"</{element}>".encode())[0]
        assert policy[f"{element}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert (policy["connect-src"], policy["trusted-types"]) == ("'self'", "'none'")


def test_it_loads_nothing_and_reads_no_markup() -> None:
    text = page()[0].decode()
    assert not re.search(
        r"""<(?:script|img|iframe|object|embed)\s|(?:src|srcset|action)\s*=\s*["']|@import|url\(|\son\w+\s*=\s*["']""", text
    )
    assert re.findall(r'<link[^>]* href="(\w+:)', text) == ["data:"]
    assert not re.search(
        r"\b(?:innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|eval|Function)\b", text
    )
