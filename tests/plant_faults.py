"""Plant faults in the package, one at a time, and see whether the default test run notices.

Tests can be made lighter without becoming weaker only if what they catch is known. Each fault below
is a mistake that somebody could make and that nothing but a test would show. The faults are planted
in a temporary copy of the repository; compare the tables before and after a change of the tests:

    python tests/plant_faults.py --json before.json

Most faults are caught by the few tests that are tried first. Only where those pass does the rest
run as well, and so the hints change how long it takes, and nothing else.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

#: What the copy holds, where the repository has it.
PARTS = (
    "robustsk", "tests", "examples", "docs", "benchmarks", ".ci", "pyproject.toml", "conftest.py",
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE",
)  # fmt: skip
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", ".hypothesis", ".pytest_cache", ".venv", "_build", "auto_examples"
)


class Fault(NamedTuple):
    """A mistake, as a replacement of text.

    Attributes
    ----------
    name : str
    old : str
        Occurs once in the source of the package, in whichever file.
    new : str
    hint : tuple of str
        Patterns for the test files to try first, at any depth below the folder of the tests; one
        that begins with ``-k`` chooses among the tests in them.
    """

    name: str
    old: str
    new: str
    hint: tuple[str, ...]


FAULTS = (
    # --- attacks -------------------------------------------------------------------------
    Fault(
        "targeted: an objective of the user is ascended, not descended",
        "return value if target is None else -value",
        "return value",
        ("test_*objectives.py", "test_*gradient.py"),
    ),
    Fault(
        "lower end of the box ignored in the inf norm",
        "lower = low if lower is None else torch.maximum(low, lower)",
        "lower = low",
        ("test_*threat.py",),
    ),
    Fault(
        "mask ignored",
        "np.where(check_mask(self.mask, sample_shape), eps, 0.0)",
        "np.where(check_mask(self.mask, sample_shape).any(), eps, 0.0)",
        ("test_*promises*.py", "-k mask"),
    ),
    Fault(
        "labels leak into what is resampled",
        'X_adv = self.generate(X, y if labels == "true" else None)',
        "X_adv = self.generate(X, y)",
        ("test_*augmentation.py",),
    ),
    Fault(
        "attacks ignore random_state",
        "check_random_state(self.random_state).randint(np.iinfo(np.int32).max)",
        "check_random_state(None).randint(np.iinfo(np.int32).max)",
        ("test_*promises*.py", "-k seed"),
    ),
    Fault(
        "noise belongs to the place in the batch, not to the sample",
        "(bits * weights).sum(1)",
        "torch.arange(len(x), device=x.device)",
        ("test_*noise.py",),
    ),
    Fault(
        "an iterate that fooled is given up for a later one",
        'take = ~hit[alive] if batch.keep == "first" else now | ~hit[alive]',
        'take = ~hit[alive] if batch.keep == "first" else torch.ones_like(now)',
        ("test_*gradient.py",),
    ),
    Fault(
        "several questions about a sample count as one",
        "self.count += torch.bincount(rows, minlength=len(self.count))",
        "self.count[rows] += 1",
        ("test_*local_search.py", "test_*estimated_gradients.py"),
    ),
    Fault(
        "rounding into the ball left out",
        "return settle(exact, clean, self.norm, self.eps, self.lower, self.upper)",
        "return exact.to(clean.dtype)",
        ("test_*promises*.py", "-k bit or magnitudes"),
    ),
    Fault(
        "the latest adversarial example is kept, not the closest",
        "closer = (distance < self.distance[rows]).nonzero()[:, 0]",
        "closer = (distance < torch.inf).nonzero()[:, 0]",
        ("test_*fab.py", "test_*decision.py"),
    ),
    Fault(
        "nearest boundary: the norm in the place of its dual",
        "{np.inf: 1.0, 2.0: 2.0, 1.0: np.inf}[norm]",
        "{np.inf: np.inf, 2.0: 2.0, 1.0: 1.0}[norm]",
        ("test_*deepfool.py", "test_*fab.py"),
    ),
    Fault(
        "APGD: step halved where it should be kept",
        "self.size / 2, self.size)",
        "self.size, self.size / 2)",
        ("test_*apgd.py",),
    ),
    Fault(
        "APGD: second condition for halving asked of the wrong samples",
        "stalled |= ~self.halved",
        "stalled |= self.halved",
        ("test_*apgd.py",),
    ),
    Fault(
        "Square: windows grow where they should shrink",
        "sum(when > halving for halving in HALVINGS)",
        "sum(when < halving for halving in HALVINGS)",
        ("test_*square.py",),
    ),
    Fault(
        "AutoAttack: what the first stage has fooled is attacked again",
        "left = np.flatnonzero(state.stage < 0)",
        "left = np.flatnonzero(state.stage <= 0)",
        ("test_*autoattack.py",),
    ),
    Fault(
        "AutoAttack: a later success takes the place of the first",
        "new = hit & (self.stage[rows] < 0)",
        "new = hit",
        ("test_*autoattack.py",),
    ),
    Fault(
        "wrapper drops the settings of the attack inside",
        "getattr(resolved, n) for n in",
        "getattr(self, n) for n in",
        ("test_*wrappers.py", "test_*multi_targeted.py"),
    ),
    Fault(
        "EOT: mean of logarithms, not of probabilities",
        "return draws.logsumexp(0) - math.log(len(draws))",
        "return draws.mean(0)",
        ("test_*wrappers.py",),
    ),
    # --- victims -------------------------------------------------------------------------
    Fault(
        "victim not put into evaluation mode",
        'own = {"training": batch_statistics}',
        "own = {}",
        ("test_*promises*.py", "-k dropout"),
    ),
    Fault(
        "statistics of batch normalisation shared with the replica that collects its own",
        "own[kind][name] = value.detach().clone()",
        "own[kind][name] = value.detach()",
        ("test_*replica.py", "-k statistics"),
    ),
    Fault(
        "the replica's modules are those of the model",
        'own["_modules"] = {n: None if c is None else self._twin(c) for n, c in children.items()}',
        'own["_modules"] = dict(children)',
        ("test_*replica.py",),
    ),
    Fault(
        "the replica does not follow tensors that were replaced",
        "alias.data = now.data",
        "pass",
        ("test_*replica.py", "-k structure"),
    ),
    Fault(
        "an object that knows its network runs the original",
        "            raise Foreign\n        return func(*args, **kwargs)",
        "            self.is_touched = False\n        return func(*args, **kwargs)",
        ("test_*replica.py", "-k neither"),
    ),
    Fault(
        "two threads share one replica",
        "views = self._spare.pop()",
        "views = self._spare[-1]",
        ("test_*threads.py", "-k share"),
    ),
    Fault(
        "what is fast has the last word",
        "answers = seen.itself(settled[rows])",
        "answers = seen(settled[rows])",
        ("test_*threads.py", "-k fooled", "test_*engine.py"),
    ),
    Fault(
        "a network that cannot be folded after all stays folded",
        "            seen.distrust()\n            open_[:] = True",
        "            pass",
        ("attacks/test_*threads.py", "-k folded"),
    ),
    Fault(
        "several victims: the classes of each in its own order",
        "logits if self.order is None else logits[:, self.order]",
        "logits",
        ("test_*targets.py", "ensembles/test_*base.py"),
    ),
    Fault(
        "converted scaler: mean not divided by the scale",
        "-step.mean_ * (1.0 if scale is None else scale)",
        "-step.mean_",
        ("test_*targets.py",),
    ),
    Fault(
        "folding: eps of batch normalisation left out",
        "torch.rsqrt(norm.running_var + norm.eps)",
        "torch.rsqrt(norm.running_var)",
        ("test_*engine.py",),
    ),
    # --- defences and training -----------------------------------------------------------
    Fault(
        "weights of samples forgotten in the loss",
        "loss = (X.weight * y_pred).sum() / X.weight.sum()",
        "loss = y_pred.mean()",
        ("defenses/test_*training.py", "-k weight"),
    ),
    Fault(
        "TRADES attacks the cross-entropy",
        'if self.form == "multiclass":\n            return "kl"',
        'if self.form == "multiclass":\n            return "ce"',
        ("defenses/test_*by_loss.py", "defenses/test_*losses.py"),
    ),
    Fault(
        "a module given as an instance is trained in place",
        "copied = copy.deepcopy(module, kept_results(module))",
        "copied = module",
        ("defenses/test_*training.py", "-k instance"),
    ),
    Fault(
        "prediction moves the global generator",
        "        return self._side_generator().draw(iterator)",
        "        return iterator",
        ("defenses/test_*threads.py", "-k dataset"),
    ),
    Fault(
        "trainings in two threads draw from one another",
        "with _lock, uninterrupted() as interruptible:",
        "with uninterrupted() as interruptible:",
        ("defenses/test_*threads.py",),
    ),
    Fault(
        "an interrupt ends a step halfway",
        "with uninterrupted(), self._blamed_on_own_infer(crafted):",
        "with self._blamed_on_own_infer(crafted):",
        ("defenses/test_*interrupts.py",),
    ),
    Fault(
        "nested parameters dropped, adversary__eps and others",
        "return clone(own).set_params(**params)",
        "return clone(own)",
        ("defenses/test_*parameters.py", "-k adversary"),
    ),
    Fault(
        "partial_fit starts anew",
        "fresh = not self.initialized_",
        "fresh = True",
        ("defenses/test_*training.py", "-k partial_fit"),
    ),
    Fault(
        "weights of a diverged training stay in place",
        "for name, weights in (good or {}).items():",
        "for name, weights in {}.items():",
        ("defenses/test_*training.py", "-k nan or divergence or absurd"),
    ),
    Fault(
        "perturbation of the weights not taken away",
        "p.copy_(w + (p - q))",
        "p.copy_(p)",
        ("training/test_weight_perturbation.py",),
    ),
    Fault(
        "moving average: decay inverted",
        "get_ema_multi_avg_fn(min(self.decay, (1 + d) / (10 + d)))",
        "get_ema_multi_avg_fn(1 - min(self.decay, (1 + d) / (10 + d)))",
        ("training/test_averaging.py",),
    ),
    # --- losses --------------------------------------------------------------------------
    Fault(
        "MART: probability in the place of one minus it",
        "kl_divergence(*pair) * -torch.expm1(log_p)",
        "kl_divergence(*pair) * log_p.exp()",
        ("losses/test_mart_loss.py",),
    ),
    Fault(
        "CCE: indicator not detached",
        "return secure.detach() if detach else secure",
        "return secure",
        ("losses/test_cce_loss.py",),
    ),
    Fault(
        "targeted DLR: second and third logit instead of third and fourth",
        "scale = top[:, 0] - (top[:, 2] + top[:, 3]) / 2",
        "scale = top[:, 0] - (top[:, 1] + top[:, 2]) / 2",
        ("losses/test_classification_losses.py",),
    ),
    Fault(
        "ADP: predictions of unit sum, not of unit length",
        "0.5 * (2 * z).logsumexp(dim=-1, keepdim=True)",
        "z.logsumexp(dim=-1, keepdim=True)",
        ("losses/test_adp_loss.py",),
    ),
    # --- metrics -------------------------------------------------------------------------
    Fault(
        "ends of the interval swapped",
        "low, high = clopper_pearson_interval(int(robust.sum()), len(robust), confidence)",
        "high, low = clopper_pearson_interval(int(robust.sum()), len(robust), confidence)",
        ("metrics/test_metrics_intervals.py",),
    ),
    Fault(
        "clean errors that stay as they are count as robust",
        "return self.correct & (self.y_pred_adv == self.y_true)",
        "return self.y_pred_adv == self.y_pred",
        ("metrics/test_metrics_scores.py",),
    ),
    Fault(
        "sample_weight of a score ignored",
        "return float(np.average(hits, weights=weight))",
        "return float(hits.mean())",
        ("metrics/test_metrics_scores.py", "-k weight"),
    ),
    # --- ensembles -----------------------------------------------------------------------
    Fault(
        "ensemble: mean of logarithms, not of probabilities",
        "return log_probabilities.logsumexp(dim=0) - math.log(len(member_logits))",
        "return log_probabilities.mean(dim=0)",
        ("losses/test_cce_loss.py", "ensembles/test_*base.py"),
    ),
    Fault(
        "ensemble attacked as one where each member should be",
        "[self.perturb(member, x, y) for member in self.module_.members]",
        "[self.perturb(self.module_, x, y) for member in self.module_.members]",
        ("ensembles/test_*at.py",),
    ),
)


class Run(NamedTuple):
    """What a run of pytest has come to: its exit status, the test that failed, seconds."""

    status: int | None
    test: str | None
    output: str
    seconds: float


class Copy:
    """A copy of the repository in which tests are run.

    Parameters
    ----------
    root : Path
        The repository, which is only read.
    place : Path
        An empty folder.
    n_workers : int
        0 means that pytest runs the tests itself.
    limit : float
        Seconds that a run may take.
    """

    def __init__(self, root, place, n_workers, limit):
        self.place, self.n_workers, self.limit = place, n_workers, limit
        for part in PARTS:
            source = root / part
            if source.is_dir():
                shutil.copytree(source, place / part, ignore=LEFT_OUT)
            elif source.exists():
                shutil.copy2(source, place / part)
        self.sources = {p: p.read_text() for p in sorted((place / "robustsk").rglob("*.py"))}
        self.env = {**os.environ, "PYTHONPATH": str(place)}
        self.env.pop("PYTEST_ADDOPTS", None)

    def find(self, fault):
        """Return the file that holds what is to be replaced."""
        found = [p for p, text in self.sources.items() for _ in range(text.count(fault.old))]
        if len(found) != 1:
            where = ", ".join(str(p.relative_to(self.place)) for p in dict.fromkeys(found))
            where = f" ({where})" if where else ""
            raise LookupError(f"found {len(found)} times in the package{where}: {fault.old!r}")
        return found[0]

    def write(self, path, text):
        """Give a file of the package another text, of which no compiled form is left."""
        path.write_text(text)
        Path(importlib.util.cache_from_source(path)).unlink(missing_ok=True)
        # examples that have failed once would be tried first from then on
        shutil.rmtree(self.place / ".hypothesis", ignore_errors=True)

    def is_imported(self):
        """Return whether it is the copy that tests import."""
        code = "import robustsk; print(robustsk.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self.place,
            env=self.env,
            capture_output=True,
            text=True,
            check=True,
        )
        return Path(found.stdout.strip()).is_relative_to(self.place)

    def hinted(self, fault):
        """Return the arguments of pytest for the tests to try first; empty if there are none."""
        patterns = [hint for hint in fault.hint if not hint.startswith("-k ")]
        chosen = [hint.partition(" ")[2] for hint in fault.hint if hint.startswith("-k ")]
        tests = self.place / "tests"
        files = dict.fromkeys(p for pattern in patterns for p in sorted(tests.rglob(pattern)))
        if not files:
            return []
        paths = [str(p.relative_to(self.place)) for p in files]
        return [*paths, *(["-k", chosen[0]] if chosen else [])]

    def run(self, arguments=(), stop=True):
        """Run the default tests, or those that are named."""
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
        # what hypothesis draws must not decide what is caught
        command += ["--hypothesis-seed=0", *(["-x"] if stop else []), *arguments]
        if self.n_workers:
            command += ["-n", str(self.n_workers)]
        start = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.place,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=self.limit)
            status = process.returncode
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:  # the workers as well
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
        failed = failures(output)
        return Run(status, failed[0] if failed else None, output, time.monotonic() - start)


def failures(output):
    """Return the tests that failed, by the summary that pytest prints."""
    found = re.findall(r"^(?:FAILED|ERROR) (\S+?::.*?)(?: - .*)?$", output, re.MULTILINE)
    return list(dict.fromkeys(found))


def judge(copy, fault, rest):
    """Plant a fault and run tests until one fails.

    Parameters
    ----------
    copy : Copy
    fault : Fault
    rest : bool
        Whether to go on where the tests that are hinted at pass.

    Returns
    -------
    dict
        With `verdict` "caught", "missed" or "error", the `test` that caught it or what went wrong,
        and `seconds`.
    """
    try:
        path = copy.find(fault)
    except LookupError as error:
        return {"verdict": "error", "test": str(error), "seconds": 0.0}
    text, seconds = copy.sources[path], 0.0
    copy.write(path, text.replace(fault.old, fault.new))
    try:
        for arguments in [copy.hinted(fault), *([[]] if rest else [])]:
            if not arguments and not rest:
                return {"verdict": "error", "test": "no such tests to try", "seconds": seconds}
            run = copy.run(arguments)
            seconds += run.seconds
            if run.status is None:
                error = f"no end after {copy.limit:g} seconds"
                return {"verdict": "error", "test": error, "seconds": seconds}
            if run.status in (1, 2) and run.test:  # 2 where workers were told to stop
                return {"verdict": "caught", "test": run.test, "seconds": seconds}
            # 5: no test among those hinted at, which are not what decides
            if run.status not in (0, 5) or (run.status == 5 and not arguments):
                last = (run.output.strip().splitlines() or [""])[-1]
                error = f"pytest ended with status {run.status}: {last}"
                return {"verdict": "error", "test": error, "seconds": seconds}
            if not arguments:
                break
    finally:
        copy.write(path, text)
    return {"verdict": "missed", "test": "", "seconds": seconds}


def main(argv=None):
    """Judge the faults and print a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--root", type=Path, default=Path(__file__).parents[1], help="the repository")
    add("--only", type=int, nargs="+", metavar="N", help="numbers of the faults to plant")
    add("--workers", type=int, default=0, metavar="N", help="processes of pytest-xdist")
    add("--limit", type=float, default=3600, metavar="S", help="seconds that a run may take")
    add("--no-rest", action="store_true", help="run no tests but those that are hinted at")
    add("--check", action="store_true", help="run nothing: see whether the faults can be planted")
    add("--json", type=Path, metavar="FILE", help="where to write the table")
    options = parser.parse_args(argv)
    numbers = range(1, len(FAULTS) + 1) if options.only is None else options.only
    if not set(numbers) <= set(range(1, len(FAULTS) + 1)):
        parser.error(f"--only takes numbers from 1 to {len(FAULTS)}")

    with tempfile.TemporaryDirectory(prefix="faults-") as place:
        root, place = options.root.resolve(), Path(place).resolve()
        copy = Copy(root, place, options.workers, options.limit)
        if options.check:
            return check(copy, numbers)
        if not copy.is_imported():
            parser.error("another installation of the package comes before the copy")
        table = []
        for number in numbers:
            fault = FAULTS[number - 1]
            row = {"number": number, "name": fault.name}
            row.update(judge(copy, fault, not options.no_rest))
            table.append(row)
            show(row)
            save(table, options.json)
        # what fails anyway has caught nothing
        caught = list(dict.fromkeys(row["test"] for row in table if row["verdict"] == "caught"))
        failing = failures(copy.run(caught, stop=False).output) if caught else []
    for row in table:
        if row["test"] in failing:
            row.update(verdict="error", test=f"fails without the fault as well: {row['test']}")
            show(row)
    save(table, options.json)
    print(f"{sum(row['verdict'] == 'caught' for row in table)} of {len(table)} caught")
    return int(any(row["verdict"] == "error" for row in table))


def check(copy, numbers):
    """See whether the faults can be planted."""
    n_lost = 0
    for number in numbers:
        try:
            copy.find(FAULTS[number - 1])
        except LookupError as error:
            n_lost += 1
            print(f"{number:2}  {FAULTS[number - 1].name}: {error}")
    print(f"{len(numbers) - n_lost} of {len(numbers)} can be planted")
    return int(n_lost > 0)


def show(row):
    """Print a line of the table."""
    print(
        f"{row['number']:2}  {row['name']:<66}  {row['verdict']:<6}  {row['seconds']:6.0f} s"
        f"  {row['test']}".rstrip(),
        flush=True,
    )


def save(table, path):
    """Write the table, if it is wanted."""
    if path is not None:
        path.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
