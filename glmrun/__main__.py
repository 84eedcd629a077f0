"""`python -m glmrun`, and the console script: an interrupt while the program is still being read ends it without a word."""

import signal


def start() -> None:
    """Read the command line's modules, then run it; exits with its code."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # else whoever started us wants interrupts ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from glmrun.cli import main

    signal.signal(signal.SIGINT, handler)
    main()


if __name__ == "__main__":
    start()
