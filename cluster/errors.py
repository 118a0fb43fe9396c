"""Shoal's one exception tree.

Every class pickles, because exceptions cross Ray. What a person reads is `str(error)`: one message that names the key
or field, the value and the remedy. No traceback is shown for any of these.
"""

from __future__ import annotations


class ShoalError(Exception):
    """Base of everything Shoal raises on purpose. `exit_code` is the command line's, `status` is HTTP's."""

    exit_code = 1
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[type[ShoalError], tuple[str]]:
        return type(self), (self.message,)


class InputError(ShoalError, ValueError):
    """The input was wrong: a file, a key, a column, a request. The message says what to write instead."""

    exit_code = 2
    status = 400


class NotFound(InputError):
    """What was named does not exist: a model, a version, a run, an endpoint."""

    status = 404


class TooLarge(InputError):
    """A request or file is over a limit; the message names the limit and the key that raises it."""

    status = 413


class TooSlow(InputError):
    """A request did not come in time."""

    status = 408


class Overloaded(ShoalError):
    """A queue or an allowance is full. `retry_after_s` is when to try again."""

    status = 429

    def __init__(self, message: str, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[ShoalError], tuple[str, int]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self), (self.message, self.retry_after_s)


class RunFailed(ShoalError):
    """The input was fine and the run failed all the same."""


class GateNotMet(RunFailed):
    """Evaluation finished, but a gated metric misses its threshold: nothing was promoted."""


class ClusterGone(RunFailed):
    """The Ray cluster cannot be reached, or went away in the middle."""

    status = 503


class Detached(ShoalError):
    """A person left a job that goes on; the message says how to come back."""

    exit_code = 130
