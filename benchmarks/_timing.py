"""What the benchmarks share: fair clocks, ratios with their spread, tables.

Candidates take turns (A B C A B C ...), so that all of them see the same moods of the machine. A
ratio is the median of the ratios within a turn; its spread goes from the smallest to the largest.
"""

from __future__ import annotations

import argparse
import csv
import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

_clock = time.perf_counter


def use_cpu_time():
    """Measure the time for which this process computes, in place of that on the wall.

    For one thread on a machine that others use as well: with more threads it counts all of them,
    also where they only wait for each other.
    """
    global _clock
    _clock = time.process_time


@dataclass
class Clocked:
    """Times of one candidate, one per turn, and what it returned in the last one."""

    seconds: list[float] = field(default_factory=list)
    result: object = None

    @property
    def median(self):
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Ratio:
    """How long something takes relative to a yardstick."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def in_turns(
    candidates: dict[str, Callable],
    repeats: int,
    device: str = "cpu",
    warm_up: bool = True,
) -> dict[str, Clocked]:
    """Run all candidates in turns.

    Parameters
    ----------
    candidates : dict of str to callable
        Called without arguments.
    repeats : int
        Number of turns that count.
    device : str, default="cpu"
        With CUDA the clock is read when the device has finished.
    warm_up : bool, default=True
        Whether there is one more turn in advance that does not count.
    """
    clocks = {name: Clocked() for name in candidates}
    gc.freeze()  # or each collection would look at everything that has been imported
    for turn in range(-int(warm_up), repeats):
        for name, candidate in candidates.items():
            gc.collect()
            wait(device)
            start = _clock()
            clocks[name].result = candidate()
            wait(device)
            if turn >= 0:
                clocks[name].seconds.append(_clock() - start)
    gc.unfreeze()
    return clocks


def wait(device):
    """Return when everything that was given to a device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def ratio(clocked: Clocked, yardstick: Clocked) -> Ratio:
    """Return the median of the ratios within a turn, and their spread."""
    values = [a / b for a, b in zip(clocked.seconds, yardstick.seconds, strict=True)]
    return Ratio(statistics.median(values), min(values), max(values))


class Table:
    """A markdown table that grows line by line, and a CSV file with the same content.

    Parameters
    ----------
    columns : list of str
    path : str, optional
        Where to write the CSV file.
    """

    def __init__(self, columns, path=None):
        self.columns, self.path = columns, path
        print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
        if path:
            self._write(columns, "w")

    def add(self, *cells):
        """Add a line; floats are shown with four digits, None is an empty cell."""
        cells = [_shown(cell) for cell in cells] + [""] * (len(self.columns) - len(cells))
        print("| " + " | ".join(cells) + " |", flush=True)
        if self.path:
            self._write(cells, "a")

    def _write(self, cells, mode):
        with open(self.path, mode, newline="") as file:
            csv.writer(file).writerow(cells)


def _shown(cell):
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


class Comparison(Table):
    """A table whose lines each compare one candidate with one yardstick."""

    COLUMNS = [
        "what", "candidate", "yardstick", "ratio (spread)", "target", "reached", "yardstick s",
        "robust accuracy", "of yardstick", "remarks",
    ]  # fmt: skip

    def __init__(self, path=None):
        super().__init__(self.COLUMNS, path)

    def compare(
        self, what, clocks, candidate, yardstick, *, target=None, accuracy=None, remarks=None
    ):
        """Add a line for two candidates that took turns.

        `accuracy` maps the names of candidates to robust accuracies.
        """
        found = ratio(clocks[candidate], clocks[yardstick])
        accuracy = accuracy or {}
        self.line(
            what,
            candidate,
            yardstick,
            found.median,
            spread=found,
            target=target,
            unit=clocks[yardstick].median,
            accuracies=(accuracy.get(candidate), accuracy.get(yardstick)),
            remarks=remarks,
        )

    def line(
        self,
        what,
        candidate,
        yardstick,
        value,
        *,
        spread=None,
        target=None,
        unit=None,
        accuracies=(None, None),
        remarks=None,
    ):
        """Add a line for a ratio that has been computed already."""
        self.add(
            what,
            candidate,
            yardstick,
            value if spread is None else str(spread),
            None if target is None else f"<= {target:g}",
            None if target is None else ("yes" if value <= target else "no"),
            unit,
            *(None if a is None else f"{a:.4f}" for a in accuracies),
            remarks,
        )


def machine(device: str = "cpu") -> str:
    """Describe where the numbers come from."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            name = next(line.split(":")[1].strip() for line in file if "model name" in line)
    except (OSError, StopIteration):
        pass
    where = f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if _clock is time.process_time:
        where += ", CPU time"
    if torch.device(device).type == "cuda":
        where = f"{torch.cuda.get_device_name()}; {where}"
    return f"{where}; torch {torch.__version__}, Python {platform.python_version()}"


def arguments(description: str, rows: list[str]) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks understand."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, help="what to measure")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, help="turns that count")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--csv", help="file for the table")
    parser.add_argument("--cpu-time", action="store_true", help="in place of the clock on the wall")
    parser.add_argument("--device", default="auto", help="auto: CUDA if there is one")
    parser.add_argument("--data-home", nargs="*", default=[], help="MNIST; class folders or a tar")
    parser.add_argument("--weights", help="folder to keep trained networks in")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and settle threads and device."""
    args = parser.parse_args()
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(args.threads)
    if args.cpu_time:
        use_cpu_time()
    return args
