"""The first thing of a job, on the cluster: check that it has this Shoal, move what was sent to the home, run the verb.

Travels in the package and is run as a script, never imported: it needs nothing but Python, so that a cluster without
Shoal can say so.
"""

import json
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import NoReturn


def main(wanted: str, package: str, words: list[str]) -> None:
    """`wanted` is the version of Shoal that sent the job, `package` names what it sent, `words` are the verb's."""
    try:
        here = metadata.version("shoal")
    except metadata.PackageNotFoundError:
        fail(f"Shoal is not installed on the cluster; install shoal {wanted} for {sys.executable} there", words)
    if here != wanted:
        fail(f"the cluster has Shoal {here}, and {wanted} sent this job; install the same version on both", words)
    # Ray removes a job's working directory; what is served from it, and the store, must outlive the job.
    home = Path(os.environ.setdefault("SHOAL_HOME", "~/.shoal")).expanduser().resolve()
    os.environ["SHOAL_HOME"] = str(home)
    folder = home / "sent" / package
    if not folder.is_dir():
        part = folder.with_name(f"{package}.{os.getpid()}.part")
        try:
            shutil.copytree(Path.cwd(), part)
            part.rename(folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            if not folder.is_dir():  # else another job was faster
                fail(f"SHOAL_HOME: {home} on the cluster cannot be written: {error}", words)
    os.chdir(folder / "files" if (folder / "files").is_dir() else folder)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "cluster", *words])


def fail(message: str, words: list[str]) -> NoReturn:
    """As the command line does."""
    if "--json" in words:
        print(json.dumps({"error": message, "exit_code": 2}), flush=True)  # noqa: T201
    print(f"shoal: {message}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
