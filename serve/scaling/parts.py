"""When the parts of this replica's start were done: a record of the process, for it is the start of one replica.

Times are in seconds since 1970. `process`: the worker process began, which may have waited for its replica; `begun`:
the replica's own code; then, as far as a task has them, `imports`, `weights`, `warm`; and `ready`: it listens.
"""

from __future__ import annotations

import os
import time

PARTS = ("decided", "process", "begun", "imports", "weights", "warm", "ready")
_MARKS: dict[str, float] = {}


def begin() -> None:
    """The replica's code runs."""
    _MARKS.clear()
    _MARKS.update(process=_process_began(), begun=time.time())


def mark(part: str) -> None:
    """A part is done."""
    _MARKS[part] = time.time()


def marks() -> dict[str, float]:
    return dict(_MARKS)


def spans(parts: dict[str, float], decided: float | None) -> dict[str, float]:
    """Seconds of each part: `scheduling` up to the replica's code where it was placed in a process that had waited,
    else that and the start of the process (`process`); then the parts by name; `total` from the decision, if known."""
    begun, process = parts["begun"], parts["process"]
    found: dict[str, float] = {}
    if decided is not None and process > decided:
        found |= {"scheduling": process - decided, "process": begun - process}
    elif decided is not None:
        found["scheduling"] = begun - decided
    else:
        found["process"] = begun - process
    last = begun
    for part in PARTS[PARTS.index("begun") + 1 :]:
        if part in parts:
            found[part], last = max(0.0, parts[part] - last), parts[part]
    found["total"] = last - (decided if decided is not None else process)
    return found


def _process_began() -> float:
    """From the kernel: clock ticks from boot to this process's start, of 10 ms mostly."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
