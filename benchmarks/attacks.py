"""How fast are attacks? robustsk, a plain loop and other libraries, side by side.

    python benchmarks/attacks.py                             # all rows, generated data
    python benchmarks/attacks.py --data-home FOLDER IMAGES   # MNIST; class folders or a tar file
    python benchmarks/attacks.py --rows pgd bf16 --repeats 7
    python benchmarks/attacks.py --ablation                  # what each optimisation buys

Every line compares a candidate with a yardstick that ran in turns with it: same weights, images,
steps, step size, kind of start, batch size and threads. Robust accuracy is judged by one forward
pass of the unchanged network on what a candidate returned.

pgd      PGD-10 without early stop, CIFAR ResNet-18. eps is such that half of the images fall.
         `perturb` takes the same passes as the plain loop, `generate` two forward passes more
         (no iterate that fooled the network is lost).
bf16     The same in lower precision; and the robust accuracy that it finds of a small network
         that is robust on half of the images.
score    `score_adversarial` with PGD-100 and 5 restarts on that network; the plain loop runs all
         steps and restarts on all samples.
digits   PGD-20 on a small table, where overhead rules. The plain loop takes the table as one
         batch; `generate` is left at its defaults.
memory   Peak of one attacked batch against one training step on the same batch.
ceiling  Arithmetic of PGD-10 (forward passes and input gradients, nothing else) per second against
         the best matrix product on this machine.

The packages torchattacks, adversarial-robustness-toolbox and foolbox take part if they are there.
"""

from __future__ import annotations

import copy
import gc
import pathlib
import re
import resource
import subprocess
import sys
from functools import partial

import numpy as np
import torch
from _problems import (
    COLOUR,
    GRAY,
    BatchNormNet,
    accuracy,
    half_robust,
    half_robust_eps,
    images,
    plain_pgd,
    with_statistics,
)
from _timing import Comparison, arguments, in_turns, machine, parse
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from robustsk import PGD, StandardClassifier
from robustsk.metrics import score_adversarial
from robustsk.models import resnet18

ROWS = ["pgd", "bf16", "score", "digits", "memory", "ceiling"]
#: robustsk relative to each yardstick, PGD in fp32.
TARGETS = {"plain loop": 0.78, "torchattacks": 0.70, "ART": 0.40, "Foolbox": 0.45}


# --- candidates ----------------------------------------------------------------------


class Setting:
    """A network, a batch and an attack that all candidates share."""

    def __init__(self, net, x, y, eps, n_steps):
        self.net, self.x, self.y = net, x, y
        self.eps, self.n_steps = eps, n_steps
        self.name = type(net).__name__.replace("ResNet", "ResNet-18")
        self.step = 2.5 * eps / n_steps

    def own_net(self):
        """Return a copy of the network, so that no candidate meets the traces of another."""
        return copy.deepcopy(self.net).eval()

    def pgd(self, *estimator, **options):
        return PGD(
            *estimator,
            eps=self.eps,
            step_size=self.step,
            n_steps=self.n_steps,
            clip=(0, 1),
            random_state=0,
            batch_size=len(self.x),
            **options,
        )

    def plain(self):
        run = partial(plain_pgd, self.own_net(), self.x, self.y)
        return lambda: run(self.eps, self.step, self.n_steps)

    def perturb(self, **options):
        net, attack = self.own_net(), self.pgd(**options)
        return lambda: attack.perturb(net, self.x, self.y)

    def generate(self, **options):
        attack = self.pgd(self.own_net(), **options)
        X, y = self.x.cpu().numpy(), self.y.cpu().numpy()
        return lambda: attack.generate(X, y)

    def judge(self, clocks):
        """Return robust accuracy and mean loss of what candidates returned, by name."""
        accuracies, losses = {}, {}
        for name, clock in clocks.items():
            z = torch.as_tensor(clock.result).to(self.x)
            far = float((z - self.x).abs().max())
            if far > self.eps + 1e-6 or z.min() < 0 or z.max() > 1:
                raise RuntimeError(f"{name} has left the threat model: {far:.4g} > {self.eps:.4g}")
            accuracies[name] = accuracy(self.net, z, self.y)
            with torch.no_grad():
                losses[name] = float(F.cross_entropy(self.net(z), self.y))
        return accuracies, losses


def peers(setting, wanted):
    """Return the attacks of other libraries by name; what is missing is said."""
    found = {}
    for name, prepare in (("torchattacks", _torchattacks), ("ART", _art), ("Foolbox", _foolbox)):
        if name not in wanted:
            continue
        try:
            found[name] = prepare(setting)
        except ImportError as error:
            print(f"{name} is left out: {error}")
    return found


def _torchattacks(s):
    import torchattacks

    attack = torchattacks.PGD(
        s.own_net(), eps=s.eps, alpha=s.step, steps=s.n_steps, random_start=True
    )
    return lambda: attack(s.x, s.y)


def _art(s):
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        s.own_net(),
        nn.CrossEntropyLoss(),
        input_shape=tuple(s.x.shape[1:]),
        nb_classes=10,
        clip_values=(0, 1),
        device_type="gpu" if s.x.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        norm=np.inf,
        eps=s.eps,
        eps_step=s.step,
        max_iter=s.n_steps,
        num_random_init=1,
        batch_size=len(s.x),
        verbose=False,
    )
    X, y = s.x.cpu().numpy(), s.y.cpu().numpy()
    return lambda: attack.generate(X, y)


def _foolbox(s):
    import foolbox

    net = foolbox.PyTorchModel(s.own_net(), bounds=(0, 1), device=s.x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=s.step, steps=s.n_steps, random_start=True)
    return lambda: attack(net, s.x, s.y, epsilons=s.eps)[1]


def large(args):
    """Return the setting of the speed rows: ResNet-18, trained-looking, and a batch."""
    torch.manual_seed(0)
    shape = GRAY if args.quick else COLOUR
    X, _, source = images(shape, 64 if args.quick else 256, args.data_home)
    net = BatchNormNet(4) if args.quick else resnet18(COLOUR, 10)
    net = with_statistics(net, X).to(args.device)
    x = torch.from_numpy(X[: args.batch_size]).to(args.device)
    with torch.no_grad():
        y = net(x).argmax(1)  # what it says without an attack counts as right
    # the search would raise the peak that a child measures
    judged = args.ablation or {"pgd", "bf16"} & set(args.rows)
    eps = half_robust_eps(net, x, y, n_steps=5) if judged and not args.child else 0.01
    print(f"speed rows: {source}, batch of {len(x)}, eps {eps:.3g}")
    return Setting(net, x, y, eps, 2 if args.quick else 10)


def small(args):
    """Return the half-robust network and its test images, made once."""
    if args.half_robust is None:
        args.half_robust = half_robust(args, 40 if args.quick else 5000)
    return args.half_robust


# --- rows ----------------------------------------------------------------------------


def pgd(args, table):
    setting = args.large
    clocks = in_turns(
        {
            "plain loop": setting.plain(),
            "robustsk perturb": setting.perturb(),
            "robustsk generate": setting.generate(),
            **args.peers,
        },
        args.repeats,
        args.device,
    )
    args.clocks["fp32"] = clocks
    accuracies, losses = setting.judge(clocks)

    def compare(candidate, yardstick, target=None):
        table.compare(
            f"PGD-{setting.n_steps}, {setting.name}",
            clocks,
            candidate,
            yardstick,
            target=target,
            accuracy=accuracies,
            remarks=f"loss {losses[candidate]:.3f} and {losses[yardstick]:.3f}",
        )

    for candidate in ("robustsk perturb", "robustsk generate"):
        for yardstick, target in TARGETS.items():
            if yardstick in clocks:
                compare(candidate, yardstick, target)
    for peer in args.peers:
        compare(peer, "plain loop")


def bf16(args, table):
    setting = args.large
    name = "robustsk perturb, bf16"
    clocks = in_turns(
        {"plain loop": setting.plain(), name: setting.perturb(precision="bf16")},
        args.repeats,
        args.device,
    )
    args.clocks["bf16"] = clocks
    accuracies, losses = setting.judge(clocks)
    table.compare(
        f"PGD-{setting.n_steps}, {setting.name}",
        clocks,
        name,
        "plain loop",
        target=0.45,
        accuracy=accuracies,
        remarks=f"loss {losses[name]:.3f} and {losses['plain loop']:.3f}",
    )
    net, x, y, eps, source = small(args)
    setting = Setting(net, x, y, eps, setting.n_steps)
    found = {}
    for kind, options in {"plain loop": None, "fp32": {}, name: {"precision": "bf16"}}.items():
        run = setting.plain() if options is None else setting.perturb(**options)
        found[kind] = accuracy(net, run(), y)
    for yardstick, label in (("fp32", "robustsk perturb"), ("plain loop", "plain loop")):
        table.line(
            f"PGD-{setting.n_steps}, half-robust network, difference in points",
            name,
            label,
            100 * abs(found[name] - found[yardstick]),
            target=0.5,
            accuracies=(found[name], found[yardstick]),
            remarks=f"clean {accuracy(net, x, y):.3f}, {len(x)} of {source}",
        )


def plain_score(net, x, y, eps, step, n_steps, n_restarts, batch_size=256):
    """Return the robust accuracy by all steps and restarts on all samples."""
    robust = []
    for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True):
        with torch.no_grad():
            right = net(a).argmax(1) == b
        for _ in range(n_restarts):
            z = plain_pgd(net, a, b, eps, step, n_steps)
            with torch.no_grad():
                right &= net(z).argmax(1) == b
        robust.append(right)
    return float(torch.cat(robust).double().mean())


def score(args, table):
    net, x, y, eps, source = small(args)
    x, y = x[:512], y[:512]
    n_steps, n_restarts = (5, 2) if args.quick else (100, 5)
    step = 2.5 * eps / n_steps
    attack = PGD(
        eps=eps, step_size=step, n_steps=n_steps, n_restarts=n_restarts, clip=(0, 1), random_state=0
    )
    X, labels = x.cpu().numpy(), y.cpu().numpy()
    own = copy.deepcopy(net)
    clocks = in_turns(
        {
            "plain loop": lambda: plain_score(net, x, y, eps, step, n_steps, n_restarts),
            "robustsk": lambda: score_adversarial(own, X, labels, attack),
        },
        min(args.repeats, 3),
        args.device,
        warm_up=False,
    )
    table.compare(
        f"score_adversarial, PGD-{n_steps} x {n_restarts}",
        clocks,
        "robustsk",
        "plain loop",
        target=0.35,
        accuracy={name: clock.result for name, clock in clocks.items()},
        remarks=f"clean {accuracy(net, x, y):.3f}, {len(x)} of {source}",
    )


def digits(args, table):
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    clf = StandardClassifier(max_epochs=1 if args.quick else 10, device=args.device, random_state=0)
    clf.fit(X, y)
    net = clf.module_
    x, labels = torch.from_numpy(X).to(args.device), torch.from_numpy(y).to(args.device)
    setting = Setting(net, x, labels, 0.1, 20)
    by_default = PGD(clf, eps=0.1, n_steps=20, clip=(0, 1), random_state=0)
    candidates = {
        "plain loop": setting.plain(),
        "robustsk perturb": setting.perturb(),
        "robustsk generate": lambda: by_default.generate(X, y),
    }
    clocks = in_turns(candidates, 2 if args.quick else max(15, args.repeats), args.device)
    accuracies, losses = setting.judge(clocks)
    for name in list(candidates)[1:]:
        table.compare(
            f"PGD-20, digits ({len(X)} x {X.shape[1]}), MLP",
            clocks,
            name,
            "plain loop",
            target=1.5,
            accuracy=accuracies,
            remarks=f"clean {accuracy(net, x, labels):.3f}; "
            f"loss {losses[name]:.3f} and {losses['plain loop']:.3f}",
        )


def memory(args, table):
    """Every measurement in a process of its own, for the peak of a process never falls."""
    kinds = {
        "training step": "step",
        "plain loop": "plain",
        "robustsk perturb": "perturb",
        "robustsk perturb, bf16": "bf16",
    }
    command = [sys.executable, *sys.argv, "--child"]
    peak = {}
    for name, kind in kinds.items():
        run = subprocess.run([*command, kind], check=True, capture_output=True, text=True)
        peak[name] = int(run.stdout.split()[-1]) / 2**20
    for name in list(kinds)[1:]:
        table.line(
            f"peak memory, batch of {args.batch_size}",
            name,
            "training step",
            peak[name] / max(peak["training step"], 1e-9),
            target=1.0 if "robustsk" in name else None,
            remarks=f"{peak[name]:.0f} and {peak['training step']:.0f} MiB",
        )


def child(args):
    """Print by how many bytes one attack or training step raises the peak."""
    setting = args.large
    setting.n_steps = min(setting.n_steps, 3)  # all steps need the same
    net = setting.net
    if args.child == "step":
        # gradients and momentum are part of what a training step needs
        optimizer = torch.optim.SGD(net.train().parameters(), lr=0.01, momentum=0.9)

        def run():
            optimizer.zero_grad()
            F.cross_entropy(net(setting.x), setting.y).backward()
            optimizer.step()
    elif args.child == "plain":
        run = partial(plain_pgd, net, setting.x, setting.y, setting.eps, setting.step, 3)
    else:
        attack = setting.pgd(**({"precision": "bf16"} if args.child == "bf16" else {}))
        run = partial(attack.perturb, net, setting.x, setting.y)
    before = _peak(args.device, reset=True)
    run()
    print(_peak(args.device) - before)


def _peak(device, reset=False):
    """Return the largest memory ever held, in bytes; with `reset`, held at present."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        gc.collect()
    status = pathlib.Path("/proc/self/status")
    if not status.exists():
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    # not getrusage on Linux: a process begins with the peak of the one that started it
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024


def ceiling(args, table):
    """How much of the arithmetic that this machine can do is done."""
    setting = args.large
    if "fp32" not in args.clocks:
        args.clocks["fp32"] = in_turns(
            {"plain loop": setting.plain(), "robustsk perturb": setting.perturb()},
            args.repeats,
            args.device,
        )
    net = setting.own_net().requires_grad_(False)
    x = setting.x.clone().requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        net(x).sum().backward()
    work = counter.get_total_flops() * setting.n_steps / 1e9
    for kind, clocks in args.clocks.items():
        dtype = torch.bfloat16 if kind == "bf16" else torch.float32
        best = matrix_product(dtype, args)
        for name, clock in clocks.items():
            if kind == "bf16" and name == "plain loop":
                continue
            rate = work / clock.median
            table.line(
                f"share of the ceiling, {kind}",
                name,
                "matrix product",
                rate / best,
                remarks=f"{rate:.0f} of {best:.0f} GFLOP/s",
            )


def matrix_product(dtype, args):
    """Return the best GFLOP/s of a matrix product."""
    sizes = [256] if args.quick else [1024, 2048, 4096] if args.device == "cpu" else [4096, 8192]
    best = 0.0
    for size in sizes:
        a = torch.randn(size, size, device=args.device).to(dtype)
        clock = in_turns({"product": lambda a=a: a @ a}, 5, args.device)["product"]
        best = max(best, 2 * size**3 / min(clock.seconds) / 1e9)
    return best


# --- ablation ------------------------------------------------------------------------


def ablation(args, table):
    """Switch on one optimisation of the frozen view after the other."""
    from robustsk.victims.engine import Engine

    setting = args.large
    off = {"fold": False, "channels_last": False, "input_gradient": False}
    stages = {"parameters frozen": Engine(**off)}
    for name, switched in (
        ("+ batch norms folded", {"fold": True}),
        ("+ channels last", {"channels_last": True}),
        ("+ input gradient of the first layer", {"input_gradient": True}),
        ("+ bf16", {"precision": "bf16"}),
        *([("+ compiled", {"compile": True})] if args.compile else []),
    ):
        off.update(switched)
        stages[name] = Engine(**off)
    candidates = {"plain loop": setting.plain()}
    for name, engine in stages.items():
        attack = setting.pgd()
        attack._engine = lambda engine=engine: engine
        candidates[name] = partial(attack.perturb, setting.own_net(), setting.x, setting.y)
    clocks = in_turns(candidates, args.repeats, args.device)
    accuracies, losses = setting.judge(clocks)
    for name in stages:
        table.compare(
            f"PGD-{setting.n_steps}, {setting.name}, ablation",
            clocks,
            name,
            "plain loop",
            accuracy=accuracies,
            remarks=f"loss {losses[name]:.3f} and {losses['plain loop']:.3f}",
        )


def main():
    parser = arguments(__doc__.splitlines()[0], ROWS)
    parser.add_argument("--batch-size", type=int, default=32, help="of the speed rows")
    parser.add_argument("--peers", nargs="*", default=[*TARGETS][1:], help="libraries to include")
    parser.add_argument("--ablation", action="store_true", help="this row only")
    parser.add_argument("--compile", action="store_true", help="in the ablation too")
    parser.add_argument("--child", help="used by the row `memory`")
    args = parse(parser)
    args.repeats = args.repeats or (1 if args.quick else 5)
    args.clocks, args.half_robust = {}, None
    if not args.child:
        print(machine(args.device))
    if args.child:
        args.data_home = []  # reading data would leave its own mark
        args.large = large(args)
        child(args)
        return
    if {"pgd", "bf16", "memory", "ceiling"} & set(args.rows) or args.ablation:
        args.large = large(args)
    args.peers = peers(args.large, args.peers) if "pgd" in args.rows and not args.ablation else {}
    print()
    table = Comparison(args.csv)
    for row in [ablation] if args.ablation else [globals()[name] for name in args.rows]:
        row(args, table)


if __name__ == "__main__":
    main()
