"""A Slurm cluster for a person: `python -m tests.cluster`, until Ctrl-C.

In another shell, `export` the line that it prints; sbatch, squeue and the launcher then use it.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys

from tests.cluster.cluster import Cluster
from tests.cluster.install import obstacle


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--no-accounting", action="store_true", help="no slurmdbd, so no sacct")
    accounting = not parser.parse_args().no_accounting
    if reason := obstacle():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell lets background jobs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        with Cluster(accounting) as cluster:
            for name, value in cluster.env.items():
                print(f"export {name}={shlex.quote(value)}", flush=True)
            print("# two nodes are up; Ctrl-C stops and removes them", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
