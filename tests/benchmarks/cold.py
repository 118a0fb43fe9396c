"""CPU and wall seconds of a copy's start by part, of this checkout and of another one in turn.

    python tests/benchmarks/cold.py MODEL_FOLDER [--against OTHER_CHECKOUT] [--rounds 5]

A text-classification model in a process of its own, without Ray's daemons: `ray` and `serve` are what Ray's worker
imports for a copy, `code` is ours, then torch, transformers, the model with its trial passes, and the first answer.
Both take turns, round after round, on one thread as a copy with one core has. The last line is JSON: medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

PARTS = ("ray", "serve", "code", "torch", "transformers", "model", "answer", "total")
START = """
import json, sys, time
marks = [(time.time(), time.process_time())]
def mark():
    marks.append((time.time(), time.process_time()))
import ray
mark()
import ray.serve
import ray.serve._private.replica
mark()
import serve.app
import serve.tasks.text
mark()
import torch
mark()
handler = serve.tasks.text.TextClassification()
from serve.scaling import parts
parts.begin()
noted = parts.mark
def note(part):
    noted(part)
    if part == "imports":
        mark()
parts.mark = note
from pathlib import Path
handler.setup(Path(sys.argv[1]), "cpu")
mark()
inputs, parameters = handler.decode_request(b'{"inputs": "hello"}', "application/json", {})
handler.encode_response(handler.predict(inputs), parameters)
mark()
spans = [[after[at] - before[at] for before, after in zip(marks, marks[1:])] for at in (0, 1)]
print(json.dumps([[*each, sum(each)] for each in spans]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    here = Path(__file__).parent.parent.parent
    sides = {"here": here} if arguments.against is None else {"other": arguments.against.resolve(), "here": here}

    runs: dict[str, list[list[list[float]]]] = {side: [] for side in sides}
    for turn in range(arguments.rounds + 1):  # the first, which finds nothing in the page cache, is not counted
        for side, checkout in sorted(sides.items(), reverse=turn % 2 == 0):  # neither always goes first
            environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-c", START, str(arguments.folder.resolve())]
            done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=True)
            if turn:
                runs[side].append(json.loads(done.stdout.splitlines()[-1]))
        print(f"round {turn}: load {os.getloadavg()[0]:.1f}", flush=True)

    result: dict[str, dict[str, dict[str, float]]] = {}
    print(f"\n{'median seconds':22}" + "".join(f"{name:>13}" for name in PARTS))
    for side, found in runs.items():
        for at, what in enumerate(("wall", "cpu")):
            medians = [statistics.median(run[at][part] for run in found) for part in range(len(PARTS))]
            result.setdefault(side, {})[what] = {name: round(value, 2) for name, value in zip(PARTS, medians)}
            print(f"{side + ', ' + what:22}" + "".join(f"{value:13.2f}" for value in medians))
    print(json.dumps({"rounds": arguments.rounds, "seconds": result}))


if __name__ == "__main__":
    main()
