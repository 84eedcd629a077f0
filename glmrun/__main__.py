"""`python -m glmrun`, and where the console script finds main(): an interrupt while the program is read ends it without a word."""

import signal

_handler = signal.getsignal(signal.SIGINT)
if _handler is signal.default_int_handler:  # else whoever started us wants interrupts ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from glmrun.cli import main  # noqa: E402

if _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, _handler)

if __name__ == "__main__":
    main()
