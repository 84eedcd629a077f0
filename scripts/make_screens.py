"""Makes the README's pictures: nano in a window of tmux (tests/support/window.py), what stands there as SVG.

python scripts/make_screens.py [FOLDER]        pictures/ if left out
"""

import io
import os
import re
import sys
import tempfile
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402
from support.window import Tmux, Window, wait_for  # type: ignore[import-not-found] # noqa: E402
from test_screens import CLOCK, CODE, GLMRUN, PROMPT, ask  # type: ignore[import-not-found] # noqa: E402

COLUMNS = 80
_FONTS = re.compile(r"@font-face \{.*?\}", re.DOTALL)  # which Rich has a browser fetch


def chat(folder: Path, rows: int, *arguments: str) -> Window:
    """glmrun chat in a window, at its first prompt; saved conversations are in the folder."""
    window = Tmux(
        ["env", "-C", str(folder), f"XDG_STATE_HOME={folder}", *GLMRUN, "chat", "nano", "--temp", "0", *arguments], COLUMNS, rows
    )
    wait_for(window, PROMPT)
    return window


def answers(folder: Path) -> Window:
    """Thinking folded into a line, code, a follow-up that reads only what is new."""
    window = chat(folder, 25)
    ask(window, CODE, r"37 tokens( in \d+ steps)?, ")
    ask(window, "What can you do?", "cached")
    return window


def tool_call(folder: Path) -> Window:
    """A tool is asked for and carried out; all of the thinking is shown."""
    (folder / "clock.py").write_text(CLOCK)
    window = chat(folder, 16, "--tools", "clock.py")
    ask(window, "/think show", "shown")
    window.type("What time is it in Rome?\r")
    wait_for(window, "^  run it")
    window.type("y")
    wait_for(window, rf"^It is(.|\n)*{PROMPT}")
    return window


def prompt(folder: Path) -> Window:
    """A long prompt: how far it is, how fast, for how long."""
    (folder / "book.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 350)
    window = chat(folder, 8, "-t", "1")
    window.type("@book.txt Sum it up\r")
    wait_for(window, r"^reading the prompt \S+ 3,\d\d\d / 7,\d\d\d · ")
    return window


def svg(title: str, screen: str) -> str:
    """A screen with tmux's codes as a picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen))
    return _FONTS.sub("", console.export_svg(title=title))


def main() -> None:
    pictures = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "pictures")
    pictures.mkdir(exist_ok=True)
    os.environ["PYTHONPATH"] = str(ROOT)
    for make, title in ((answers, "glmrun chat"), (tool_call, "glmrun chat --tools clock.py"), (prompt, "glmrun chat -t 1")):
        with tempfile.TemporaryDirectory() as folder, closing(make(Path(folder))) as window:
            (pictures / f"{make.__name__}.svg").write_text(svg(title, window.screen(codes=True)), encoding="utf-8")


if __name__ == "__main__":
    main()
