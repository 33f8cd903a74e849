"""Cost of ``import robustsk`` relative to ``import skorch``, in fresh interpreters."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

IMPORTS = {
    "skorch": "import skorch",
    "robustsk": "import robustsk",
    "robustsk, one attack and one defence": "from robustsk import PGD, TRADESClassifier",
}


def seconds(code):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main(repeats=5):
    # in turn, so that all see the same state of the machine
    times = {name: [] for name in IMPORTS}
    for _ in range(repeats):
        for name, code in IMPORTS.items():
            times[name].append(seconds(code))
    base = times["skorch"]
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, base, strict=True)]
        print(
            f"{name:<40} {statistics.median(values):6.2f} s   "
            f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
