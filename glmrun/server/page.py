"""The page at `/`: a chat in the browser. One file, which asks this server and nobody else."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page() -> tuple[bytes, dict[str, str]]:
    """The page, and the headers that keep it apart from whatever a model writes.

    Its own script and style run because their digests are in the policy; no other does, and nothing is loaded from elsewhere.
    """
    content = (files("glmrun.server") / "page.html").read_bytes()
    policy = [
        "default-src 'none'", f"script-src {_digest(content, b'script')}", f"style-src {_digest(content, b'style')}",
        "connect-src 'self'", "img-src data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'",
        "require-trusted-types-for 'script'", "trusted-types 'none'",
    ]  # fmt: skip
    return content, {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": "; ".join(policy),
        "Cache-Control": "no-cache",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _digest(content: bytes, element: bytes) -> str:
    """The digest of the one script or style of the page, as a policy names it."""
    (text,) = re.findall(rb"<%s>(.*?)</%s>" % (element, element), content, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
