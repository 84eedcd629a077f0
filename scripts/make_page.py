"""Makes the picture of the browser's page: nano behind a server in this process, headless Chromium in front of it.

python scripts/make_page.py [FILE.png]         docs/page.png if left out; Chromium has to be installed
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.browser import browser  # type: ignore[import-not-found] # noqa: E402
from support.served import served  # type: ignore[import-not-found] # noqa: E402
from test_screens import CODE  # type: ignore[import-not-found] # noqa: E402

import glmrun  # noqa: E402

EARLIER = ("What is the capital of Norway?", "What can you do?")


def main() -> None:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "page.png"
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        glmrun.load(n_ctx=4096) as model,
        served(model) as server,
        browser(Path(folder)) as page,
    ):
        page.open(server.url)
        page.size(960, 600)
        page.wait("server.model")
        page.run("void (settings.temperature = '0')")
        for conversation in ([EARLIER[0]], [EARLIER[1]], [CODE, "What is 17 + 25?"]):
            page.run("show(null)")
            for text in conversation:
                page.type(text)
                page.press("Enter")
                page.wait("running || $('status').textContent")
                page.wait("!running")
        page.run("[...document.querySelectorAll('details')].at(-1).open = true")
        page.run("toEnd()")
        target.write_bytes(page.picture())


if __name__ == "__main__":
    main()
