"""A user's Python functions as the model's tools, in a process of their own that can be given up."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quant.errors import UserError

START_SECONDS = 60.0  # for importing the file and what it needs
MAX_PRINTED = 5_000  # characters of what one call printed


@dataclass(frozen=True)
class Result:
    """What came of one call: text for the model, whether the tool did its work, and what it printed, for the user."""

    text: str
    worked: bool
    printed: str = ""


class Tools:
    """The functions of one Python file. Raises UserError if it is not there, cannot be imported, or offers nothing.

    declarations   what the model is told, in the shape of OpenAI's interface
    left_out       why functions of the file are no tools
    time_limit     seconds for one call; a process that takes longer is ended, the next call starts another
    """

    def __init__(self, path: Path, time_limit: float = 30.0) -> None:
        if not path.is_file():
            raise UserError(f"{path}: no such file with tools" if not path.exists() else f"{path} is no file with tools", "missing")
        self.path, self.time_limit = path, time_limit
        self._worker: _Worker | None = None
        said = self._start()
        self.declarations: list[dict[str, Any]] = said["tools"]
        self.left_out: list[str] = said["left_out"]
        if not self.declarations:
            self.close()
            why = "; ".join(self.left_out) or "it defines no function"
            raise UserError(f"{path} offers no tool: {why}; a tool has a docstring and a type for each parameter", "usage")
        self.names = [each["function"]["name"] for each in self.declarations]

    def run(self, call: dict[str, Any]) -> Result:
        """Carry out one tool call as the model made it. Whatever goes wrong is a Result for the model to read."""
        function = call["function"]
        name = function["name"]
        if name not in self.names:
            return Result(f"error: there is no tool {name}; there are {', '.join(self.names)}", False)
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError:
            return Result("error: the arguments are no JSON", False)
        if not isinstance(arguments, dict):
            return Result("error: the arguments are no JSON object", False)
        if self._worker is None:
            try:
                self._start()
            except UserError as failed:
                return Result(f"error: {failed}", False)
        assert self._worker is not None
        try:
            reply = self._worker.ask({"name": name, "arguments": arguments, "time_limit": self.time_limit}, self.time_limit)
        except KeyboardInterrupt:
            self.close()
            raise
        printed = self._worker.printed()
        if reply is None:
            code = self.close()
            why = f"it took more than {self.time_limit:g} s and was stopped" if code is None else f"its process ended ({code})"
            return Result(f"error: {name}: {why}", False, printed)
        if "error" in reply:
            return Result(f"error: {reply['error']}", False, printed)
        result = reply["result"]
        return Result(result if result is not None else printed.strip() or "done", True, printed if result is not None else "")

    def close(self) -> int | None:
        """End the process; returns its exit code if it had ended before."""
        worker, self._worker = self._worker, None
        return worker.end() if worker else None

    def __enter__(self) -> "Tools":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> dict[str, Any]:
        self._worker = _Worker(self.path)
        said = self._worker.answer(START_SECONDS)
        if said is None or "error" in said:
            printed = self._worker.printed()
            code = self.close()
            why = f"not imported after {START_SECONDS:g} s" if code is None else f"the process that imports it ended ({code})"
            raise UserError(f"{self.path}: {said['error'] if said else ' '.join([why, *printed.splitlines()[-1:]])}")
        return said


class _Worker:
    """One process of tool_process.py, in a session of its own: Ctrl-C does not reach it, and its children end with it."""

    def __init__(self, path: Path) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._read = 0
        command = [sys.executable, "-u", "-P", str(Path(__file__).with_name("tool_process.py")), str(path)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True, encoding="utf-8"
        )
        assert self._process.stdin is not None
        self._stdin = self._process.stdin
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="tool replies", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._replies.put(json.loads(line))
        self._replies.put(None)

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The reply to a request; None if there is none in time or the process has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._stdin, flush=True)
        return self.answer(seconds)

    def answer(self, seconds: float) -> dict[str, Any] | None:
        try:
            reply = self._replies.get(timeout=seconds)
        except queue.Empty:
            return None
        if reply is None:
            self._process.wait()
        return reply

    def printed(self) -> str:
        """What was printed since the last time, its end if that is a lot."""
        end = self._log.seek(0, os.SEEK_END)
        start, self._read = max(self._read, end - MAX_PRINTED), end
        self._log.seek(start)
        return self._log.read(end - start).decode("utf-8", "replace")

    def end(self) -> int | None:
        code = self._process.poll()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # also when it has ended: its children may not have
        self._process.wait()
        self._listener.join()
        self._log.close()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        return code
