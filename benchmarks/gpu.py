"""What only a GPU can show: agreement with the CPU, throughput, and what training gives.

    python benchmarks/gpu.py --data-home cifar10.tar.xz        # class folders of images, or a tar
    python benchmarks/gpu.py --sections throughput same        # some of it
    python benchmarks/gpu.py --small                           # tiny sizes; runs on a CPU as well

Each section prints lines of JSON as soon as it has a number, keeps to a limit of time of its own,
and does not take the others down with it. A ratio is to the plain loop of the same section: eager,
float32 with torch's defaults (TF32 in convolutions), crafting in evaluation mode.

env         The machine: versions, card, matrix products and memory.
attacks     Every attack on the CPU and on the GPU: who withstands it, and whether each device
            confirms what was found on the other.
throughput  Images per second of training, and the launches of a training batch.
perturb     Milliseconds of `perturb`, beside a plain loop and torchattacks.
same        A few epochs of training: is the accuracy that of a plain loop?
recipe      A training of `--train-seconds`.
judge       Clean accuracy, PGD-20 and AutoAttack of its result.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
import traceback
from functools import partial

import numpy as np
import torch
from _problems import COLOUR, images
from _timing import machine, wait
from torch.nn import functional as F

from robustsk import PGD, AutoAttack, PGDATClassifier
from robustsk._discovery import all_attacks
from robustsk._precision import full_precision
from robustsk.datasets import load_digits_images
from robustsk.metrics import clopper_pearson_interval
from robustsk.models import ResNet, SmallCNN
from robustsk.training import LearningRateSchedule, RandomCropFlip, WeightAveraging

EPS, STEP = 8 / 255, 2 / 255
SECTIONS = ("env", "attacks", "throughput", "perturb", "same", "recipe", "judge")
#: Attacks that take longer than all others together.
SLOW = {"AutoAttack", "CarliniWagner", "EAD", "LBFGS"}


def say(section, **found):
    """Print a line of JSON."""
    print(json.dumps({"section": section, **found}, default=float), flush=True)


# --- the plain loop --------------------------------------------------------------------


def plain_pgd(net, x, y, n_steps, amp):
    z = (x + (2 * torch.rand_like(x) - 1) * EPS).clamp(0, 1)
    for _ in range(n_steps):
        z = z.detach().requires_grad_()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            loss = F.cross_entropy(net(z), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, z)
        z = z.detach() + STEP * gradient.sign()
        z = torch.min(torch.max(z, x - EPS), x + EPS).clamp(0, 1)
    return z.detach()


def plain_batches(x, y, args, order):
    """Yield augmented batches on the device, as most loops do."""
    augment = RandomCropFlip()
    for start in range(0, len(order) - args.batch + 1, args.batch):
        rows = order[start : start + args.batch]
        yield augment(x[rows]), y[rows]


def plain_training(net, x, y, args, n_steps, rates, amp=False, channels_last=False):
    """Train for as many batches as there are rates; return images per second and the last loss."""
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    losses, done, times = [], 0, []
    while done < len(rates):
        for a, b in plain_batches(x, y, args, torch.randperm(len(x), device=x.device)):
            if done == len(rates):
                break
            if channels_last:
                a = a.contiguous(memory_format=torch.channels_last)
            optimizer.param_groups[0]["lr"] = rates[done]
            net.eval()
            z = plain_pgd(net, a, b, n_steps, amp)
            net.train()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(a.device.type, torch.bfloat16, enabled=amp):
                loss = F.cross_entropy(net(z), b)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            done += 1
            times.append(time.perf_counter())
    half = len(times) // 2
    wait(args.device)
    speed = (len(times) - 1 - half) * args.batch / (time.perf_counter() - times[half])
    return speed, float(np.mean(losses[-50:]))


# --- ours ------------------------------------------------------------------------------


def classifier(args, net, n_steps, **options):
    adversary = {k[11:]: options.pop(k) for k in list(options) if k.startswith("adversary__")}
    return PGDATClassifier(
        net,
        adversary=PGD(eps=EPS, step_size=STEP, n_steps=n_steps, clip=(0, 1), **adversary),
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        optimizer__weight_decay=5e-4,
        iterator_train__drop_last=True,
        batch_size=args.batch,
        augmentation=RandomCropFlip(),
        classes=np.arange(10),
        device=args.device,
        random_state=args.seed,
        **options,
    )


def network(args, as_torch=False):
    """Return a ResNet-18; with the initial weights that torch gives a convolution if so asked."""
    torch.manual_seed(args.seed)
    small = {"widths": (8, 8), "layers": (1, 1)}
    net = ResNet(COLOUR, 10, **(small if args.small else {}))
    if as_torch:
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.reset_parameters()
    return net.to(args.device)


def speed_of(clf, X, y, args):
    """Return images per second of the faster half of the epochs after the first."""
    clf.fit(X, y)
    durations = sorted(clf.history_[1:, "dur"])
    n = len(X) // args.batch * args.batch
    return n / durations[0], clf.history_[0, "dur"]


# --- sections --------------------------------------------------------------------------


def env(args):
    found = {"machine": machine(args.device), "cudnn": torch.backends.cudnn.version()}
    if args.device == "cuda":
        a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
        found["bf16_tflops"] = 2 * 8192**3 / seconds_of(lambda: a @ a, 10, args) / 1e12
        b = torch.empty(2**28, device="cuda")
        c = torch.empty_like(b)
        found["copy_tb_per_s"] = 2 * 4 * 2**28 / seconds_of(lambda: c.copy_(b), 10, args) / 1e12
        found["memory_gib"] = torch.cuda.mem_get_info()[1] / 2**30
    say("env", seed=args.seed, **found)


def seconds_of(work, repeats, args, warm_up=3):
    for _ in range(warm_up):
        work()
    wait(args.device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    wait(args.device)
    return (time.perf_counter() - start) / repeats


def attacks(args):
    X, y = load_digits_images(return_X_y=True)
    n = 16 if args.small else 64
    clf = PGDATClassifier(
        SmallCNN((1, 8, 8), 10), adversary__eps=0.1, adversary__n_steps=3, random_state=0,
        max_epochs=2 if args.small else 8, device="cpu",
    ).fit(X[:600], y[:600])  # fmt: skip
    on = {device: copy.deepcopy(clf.module_).to(device).eval() for device in {"cpu", args.device}}
    X, y = X[-n:], y[-n:]
    for kind in all_attacks():
        name = kind.__name__
        if name in SLOW or time.perf_counter() > args.until:
            continue
        try:
            compare(name, kind, on, X, y, args)
        except Exception as error:
            say("attacks", attack=name, error=f"{type(error).__name__}: {error}"[:300])


def compare(name, kind, on, X, y, args):
    """Attack the same network on two devices, and have each judge the examples of the other."""
    options = {"clip": (0, 1), "random_state": 0}
    eps = {np.inf: 0.1, 2.0: 0.6, 1.0: 3.0, 0.0: 8}[float(kind.supported_norms[0])]
    options["eps"] = eps
    if "norm" in kind().get_params():
        options["norm"] = kind.supported_norms[0]
    if "max_queries" in kind().get_params():
        options["max_queries"] = 200
    found = {}
    for device, module in on.items():
        start = time.perf_counter()
        X_adv = kind(module, **options).generate(X, y)
        found[f"seconds_{device}"] = time.perf_counter() - start
        for judge, other in on.items():
            with torch.no_grad(), full_precision(torch.device(judge)):
                x = torch.from_numpy(np.asarray(X_adv, np.float32)).to(judge)
                right = (other(x).argmax(1).cpu().numpy() == y).sum()
            found[f"{device}_judged_by_{judge}"] = int(right)
    say("attacks", attack=name, n=len(X), **found)


def throughput(args):
    X, y = args.data
    sizes = [32] if args.small else args.sizes
    for size in sizes:
        args.batch = size
        n_batches = 2 if args.small else 12
        n = size * n_batches
        x = torch.from_numpy(X[:n]).to(args.device)
        labels = torch.from_numpy(y[:n]).to(args.device)
        yardstick, _ = plain_training(
            network(args), x, labels, args, args.steps, [0.01] * 2 * n_batches
        )
        say("throughput", what="training", batch=size, how="plain fp32", images_per_s=yardstick)
        how = {
            "plain bf16 channels_last": None,
            "ours fp32 without graph": {"adversary__graph": False},
            "ours fp32": {},
            "ours bf16 without graph": {"adversary__graph": False, "precision": "bf16"},
            "ours bf16": {"precision": "bf16"},
            "ours bf16 compiled": {"precision": "bf16", "adversary__compile": True},
            "ours fp32 compiled": {"adversary__compile": True},
            "ours fp32, cudnn.benchmark": {},
            "ours bf16, cudnn.benchmark": {"precision": "bf16"},
        }
        for name, options in how.items():
            if time.perf_counter() > args.until:
                return
            torch.backends.cudnn.benchmark = "benchmark" in name
            try:
                first = None
                if options is None:
                    speed, _ = plain_training(
                        network(args),
                        x,
                        labels,
                        args,
                        args.steps,
                        [0.01] * 2 * n_batches,
                        True,
                        True,
                    )
                else:
                    clf = classifier(
                        args, network(args), args.steps, max_epochs=4, lr=0.01, **options
                    )
                    speed, first = speed_of(clf, X[:n], y[:n], args)
            except Exception as error:
                say("throughput", batch=size, how=name, error=f"{error}"[:500])
                continue
            finally:
                torch.backends.cudnn.benchmark = False
            say(
                "throughput", what="training", batch=size, how=name, images_per_s=speed,
                ratio=speed / yardstick, first_epoch_s=first,
            )  # fmt: skip
        if size == sizes[0] and time.perf_counter() < args.until:
            launches(args, X[:n], y[:n])


def perturb(args):
    """Attack batches of one network in evaluation mode, again and again."""
    X, y = args.data
    net = network(args).to(args.device).eval()
    for size in [16] if args.small else [1024, 128]:
        x = torch.from_numpy(X[:size]).to(args.device)
        labels = torch.from_numpy(y[:size]).to(args.device)
        repeats = 2 if args.small else 10
        yardstick = seconds_of(
            lambda x=x, labels=labels: plain_pgd(net, x, labels, args.steps, False), repeats, args
        )
        say("perturb", batch=size, how="plain fp32", ms=1e3 * yardstick)
        candidates = {
            "ours fp32": {},
            "ours bf16": {"precision": "bf16"},
            "ours bf16 graph": {"precision": "bf16", "graph": True},
            "ours bf16 compiled": {"precision": "bf16", "compile": True},
            "ours bf16 compiled graph": {"precision": "bf16", "compile": True, "graph": True},
        }
        try:
            import torchattacks

            theirs = torchattacks.PGD(net, eps=EPS, alpha=STEP, steps=args.steps)
            seconds = seconds_of(partial(theirs, x, labels), repeats, args)
            say("perturb", batch=size, how="torchattacks", ms=1e3 * seconds)
        except ImportError:
            pass
        for name, options in candidates.items():
            if "graph" in options and args.device != "cuda":
                continue
            if time.perf_counter() > args.until:
                return
            attack = PGD(eps=EPS, step_size=STEP, n_steps=args.steps, clip=(0, 1), **options)
            try:
                seconds = seconds_of(
                    lambda x=x, labels=labels, a=attack: a.perturb(net, x, labels, seed=0),
                    repeats, args,
                )  # fmt: skip
            except Exception as error:
                say("perturb", how=name, error=f"{error}"[:300])
                continue
            say(
                "perturb", batch=size, how=name, ms=1e3 * seconds,
                ratio=seconds / yardstick,
            )  # fmt: skip


def launches(args, X, y):
    """Count what the host does for a batch: the difference between a longer and a shorter fit."""
    if args.device != "cuda":
        return
    from torch.profiler import ProfilerActivity, profile

    counts = []
    for epochs in (2, 4):
        clf = classifier(args, network(args), args.steps, max_epochs=epochs, precision="bf16")
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
            clf.fit(X, y)
        count = {}
        busy = 0.0
        for event in prof.events():
            if event.name.startswith("cuda"):
                count[event.name] = count.get(event.name, 0) + 1
            if event.device_type.name == "CUDA" and not event.name.startswith(("Optimizer", "##")):
                busy += event.time_range.elapsed_us() / 1e3
        counts.append((count, busy))
    n = 2 * (len(X) // args.batch)
    names = sorted({*counts[0][0], *counts[1][0]})
    per_batch = {k: (counts[1][0].get(k, 0) - counts[0][0].get(k, 0)) / n for k in names}
    say(
        "throughput", what="host calls per training batch", batch=args.batch,
        calls={k: round(v, 2) for k, v in per_batch.items() if abs(v) > 0.01},
        launches=sum(v for k, v in per_batch.items() if "Launch" in k),
        synchronisations=sum(v for k, v in per_batch.items() if "Synchronize" in k),
        gpu_busy_ms=(counts[1][1] - counts[0][1]) / n,
    )  # fmt: skip


def same(args):
    """Is what is trained as good as by a plain loop of the same batches and rates?"""
    X, y = args.data
    n, epochs, steps = (96, 1, 2) if args.small else (20_000, 4, 7)
    args.batch = 32 if args.small else 128
    X, y = X[:n], y[:n]
    n_batches = epochs * (n // args.batch)
    rates = np.interp(np.arange(n_batches) / n_batches, [0, 0.3, 1], [0, 0.1, 0]).tolist()
    test = args.test
    arms = {
        "ours bf16": {"precision": "bf16"},
        "ours fp32": {},
        "ours bf16, batch statistics": {"precision": "bf16", "adversary__bn_mode": "train"},
        "ours bf16, torch's initial weights": {"precision": "bf16", "as_torch": True},
    }
    start = time.perf_counter()
    net = network(args).to(args.device)
    on = [torch.from_numpy(v).to(args.device) for v in (X, y)]
    _, loss = plain_training(net, *on, args, steps, rates)
    said(args, "same", "plain fp32", net, test, loss, start)
    for name, options in arms.items():
        if time.perf_counter() > args.until:
            return
        start = time.perf_counter()
        clf = classifier(
            args, network(args, options.pop("as_torch", False)), steps, max_epochs=epochs, lr=0.1,
            callbacks=[LearningRateSchedule("cyclic", peak=0.3)], **options,
        )  # fmt: skip
        clf.fit(X, y)
        said(args, "same", name, clf.module_, test, clf.history_[-1, "train_loss"], start)


def said(args, section, how, net, test, loss, start):
    seconds = time.perf_counter() - start
    clean, robust = accuracies(net.eval(), *test)
    say(section, how=how, train_loss=loss, clean=clean, pgd_20=robust, seconds=seconds)


def accuracies(net, X, y):
    """Return the accuracy, and that under PGD-20 with a restart."""
    attack = PGD(net, eps=EPS, step_size=STEP, n_steps=20, clip=(0, 1), random_state=0)
    X_adv = attack.set_params(batch_size=500).generate(X, y)
    right = [predicted(net, Z) == y for Z in (X, X_adv)]
    return float(right[0].mean()), float((right[0] & right[1]).mean())


@torch.no_grad()
def predicted(net, X):
    device = next(net.parameters()).device
    parts = torch.from_numpy(X).split(500)
    return torch.cat([net(part.to(device)).argmax(1).cpu() for part in parts]).numpy()


def recipe(args):
    """Train for a given time: PGD-7, one cycle of the learning rate, averaged weights."""
    X, y = args.data
    args.batch = 32 if args.small else 128
    start = time.perf_counter()
    clf = classifier(
        args, network(args, True), 2 if args.small else 7, max_epochs=3, lr=0.1, precision="bf16",
    )  # fmt: skip
    n = min(len(X), 40 * args.batch)
    speed, _ = speed_of(clf, X[:n], y[:n], args)
    epochs = max(1, int(args.train_seconds * speed / len(X)))
    n_steps = epochs * (len(X) // args.batch)
    clf = classifier(
        args, network(args, True), 2 if args.small else 7, max_epochs=epochs, lr=0.1,
        precision="bf16", criterion__label_smoothing=0.2,
        callbacks=[
            LearningRateSchedule("cyclic", peak=0.3),
            WeightAveraging(decay=max(0.0, 1 - 20 / n_steps), start=0.3),
        ],
    )  # fmt: skip
    clf.fit(X, y)
    args.trained = clf
    say(
        "recipe", epochs=epochs, batch=args.batch, seconds=time.perf_counter() - start,
        images_per_s=speed, train_loss=clf.history_[-1, "train_loss"],
    )  # fmt: skip


def judge(args):
    clf, (X, y) = args.trained, args.test
    clean, robust = accuracies(clf.module_, X, y)
    say("judge", n=len(X), clean=clean, pgd_20=robust)
    for version, n in [("fast", 1000), ("standard", 250)]:
        if time.perf_counter() > args.until:
            return
        n = min(n, 8 if args.small else n)
        attack = AutoAttack(clf, eps=EPS, clip=(0, 1), version=version, random_state=0)
        share = clf.score_adversarial(X[:n], y[:n], attack)
        low, high = clopper_pearson_interval(round(share * n), n)
        say("judge", attack=f"AutoAttack {version}", n=n, robust=share, interval=[low, high])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--data-home", nargs="*", default=[], help="class folders or a tar file")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--train-seconds", type=float, default=300)
    parser.add_argument("--limit", type=float, default=120, help="seconds for each other section")
    parser.add_argument("--sizes", nargs="+", type=int, default=[128, 256, 512])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.steps = 2 if args.small else 10
    start = time.perf_counter()
    n = 200 if args.small else math.inf
    X, y, what = images(COLOUR, min(n, 50_000), args.data_home)
    args.data = X.astype(np.float32), y.astype(np.int64)
    X, y, _ = images(COLOUR, 100 if args.small else 2000, args.data_home, "test")
    args.test = X.astype(np.float32), y.astype(np.int64)
    say("data", what=what, n=len(args.data[0]), seconds=time.perf_counter() - start)
    for name in args.sections:
        start = time.perf_counter()
        args.until = start + args.limit
        try:
            globals()[name](args)
        except Exception:
            say(name, error=traceback.format_exc()[-1500:])
        say(name, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    main()
