"""The first code block of an answer, as it comes: for `run -x`."""

import re

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`\n]*)")


class FirstCodeBlock:
    """Takes an answer piece by piece and gives the lines between its first two fences; `closed` when the second has come."""

    def __init__(self) -> None:
        self.found = self.closed = False
        self._line = ""
        self._indent, self._fence = "", ""

    def feed(self, text: str) -> str:
        """The whole lines of the block that this text completes."""
        *lines, self._line = (self._line + text).split("\n")
        return "".join(self._take(line, "\n") for line in lines)

    def finish(self) -> str:
        """What is left when the answer ends: the last line, if it belongs to the block."""
        line, self._line = self._line, ""
        return self._take(line, "\n" if line else "")

    def _take(self, line: str, end: str) -> str:
        if self.closed:
            return ""
        fence = _FENCE.fullmatch(line.rstrip("\r "))
        if not self.found:
            if fence is not None:
                self.found, self._indent, self._fence = True, fence[1], fence[2]
            return ""
        if fence is not None and fence[2].startswith(self._fence) and not fence[3].strip():
            self.closed = True
            return ""
        return line.removeprefix(self._indent) + end
