"""A hub on loopback: as much of a hub's interface as huggingface_hub uses to look at a model and to fetch its files.

Small files are answered directly, large ones by a redirect to /cdn with the digest in headers, ranges are served, and
faults can be asked for.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file counts as large here


@dataclass
class Hub:
    """Repositories and what happens to requests; url is what HF_ENDPOINT has to be."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    break_after: dict[str, list[int]] = field(default_factory=dict)  # file: bytes after which its next answers break off
    damaged: set[str] = field(default_factory=set)  # files whose content is not what their digest says
    status: int | None = None  # for every request
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # (method, path, range)
    url: str = ""

    def __enter__(self) -> "Hub":
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def ranges(self, name: str) -> list[str | None]:
        """The ranges of all GETs for a file's content."""
        return [wanted for method, path, wanted in self.requests if method == "GET" and path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if self.hub.status:
            self._refuse(self.hub.status)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/(cdn/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[2], found[3], found[4], bool(found[1]))
        else:
            self._refuse(404)

    def _refuse(self, status: int, code: str = "") -> None:
        self._send(status, {"X-Error-Code": code, "X-Error-Message": "no"} if code else {}, b"")

    def _allowed(self, repo: str, revision: str) -> bool:
        if repo not in self.hub.repos:
            self._refuse(401, "RepoNotFound")
        elif repo in self.hub.gated and "Authorization" not in self.headers:
            self._refuse(401, "GatedRepo")
        elif revision not in ("main", COMMIT):
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _info(self, repo: str, revision: str) -> None:
        if not self._allowed(repo, revision):
            return
        siblings = []
        for name, data in self.hub.repos[repo].items():
            sibling: dict[str, object] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if len(data) >= LARGE:
                sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        info = {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "private": False, "gated": False, "disabled": False,
                "downloads": 1, "likes": 1, "tags": [], "siblings": siblings}  # fmt: skip
        self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())

    def _file(self, repo: str, revision: str, name: str, content: bool) -> None:
        if not self._allowed(repo, revision):
            return
        if name not in self.hub.repos[repo]:
            self._refuse(404, "EntryNotFound")
            return
        data = self.hub.repos[repo][name]
        digest = hashlib.sha256(data).hexdigest() if len(data) >= LARGE else hashlib.sha1(data).hexdigest()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if len(data) >= LARGE and not content:
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.hub.url}/cdn{self.path}",
            }
            self._send(302, headers, b"")
            return
        if name in self.hub.damaged:
            data = bytes(len(data))
        status = 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            first = int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            data, status = data[first:], 206
        cuts = self.hub.break_after.get(name, [])
        cut = cuts.pop(0) if cuts and self.command == "GET" else None
        self._send(status, headers, data, cut)

    def _send(self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
