"""The command line in this process, for tests that replace parts of it."""

from glmrun.cli import main


def exit_code(*arguments: str) -> object:
    """Run a command to its end."""
    try:
        main([*arguments])
    except SystemExit as ended:
        return ended.code
    raise AssertionError("main() does not return")
