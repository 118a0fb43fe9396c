"""What all tests share."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Take Ctrl-C again where whoever started the tests had it ignored, as shells do for what runs behind `&`: the
    programs under test inherit that, and the tests interrupt them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
