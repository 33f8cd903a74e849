"""How fast is adversarial training? robustsk, a plain loop and the bare passes, side by side.

    python benchmarks/training.py                             # generated data
    python benchmarks/training.py --data-home FOLDER IMAGES   # MNIST; class folders or a tar file
    python benchmarks/training.py --rows trades-small_cnn --batches 20 --precision bf16

One epoch (a few batches) with a PGD-10 adversary. The candidates take turns, each with its own
copy of the same weights, the same batches and the same SGD:

plain loop     Written by hand for the same arithmetic: crafting in eval mode, the outer pass in
               train mode, clean predictions for the attack computed once per batch.
as authors do  Where a published loop computes more: TRADES repeats the clean forward pass in every
               inner step and once more in the loss.
robustsk       A call of `fit`, `max_epochs=1` and `warm_start`, so that building the network does
               not count but everything that happens in every epoch does.
passes         The forward and backward passes that the method needs, on the same tensors, and
               nothing else; those of the attack on the plain module or on the frozen view that the
               attacks of robustsk use. The second is the floor from which overhead is counted.
"""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import torch
from _problems import COLOUR, GRAY, accuracy, images, plain_ascent, plain_pgd
from _timing import Comparison, arguments, in_turns, machine, parse
from torch.nn import functional as F

from robustsk import PGD, EnsembleCCE, PGDATClassifier, SPATClassifier, TRADESClassifier
from robustsk.ensembles import MeanEnsemble
from robustsk.models import CosineLinear, SmallCNN, replace_classifier, resnet18
from robustsk.victims.victim import Victim

N_MEMBERS, BETA, LAM, ALPHA, SCALE, GATE = 3, 6.0, 6.0, 0.2, 5.0, 0.2
METHODS = ["pgd_at", "trades", "spat", "cce"]
#: Shape, eps and learning rate by model.
MODELS = {"resnet18": (COLOUR, 8 / 255, 0.01), "small_cnn": (GRAY, 0.1, 0.05)}
ROWS = [f"{method}-{model}" for model in MODELS for method in METHODS]
#: Three ResNets at a time take longer than all other rows.
SLOW = ["cce-resnet18"]


# --- the loops that everybody writes ---------------------------------------------------


def ascend(net, x, z, objective, args):
    return plain_ascent(net, x, z, objective, args.eps, args.step_size, args.steps)


def pgd_at(net, x, y, args):
    net.eval()
    z = plain_pgd(net, x, y, args.eps, args.step_size, args.steps)
    net.train()
    return F.cross_entropy(net(z), y)


def divergence(logits, clean):
    return F.kl_div(F.log_softmax(logits, 1), clean, reduction="sum")


def trades(net, x, y, args):
    net.eval()
    with torch.no_grad():
        clean = F.softmax(net(x), 1)
    start = x + 0.001 * torch.randn_like(x)
    z = ascend(net, x, start, lambda logits: divergence(logits, clean), args)
    net.train()
    logits = net(x)
    penalty = divergence(net(z), F.softmax(logits, 1)) / len(x)
    return F.cross_entropy(logits, y) + BETA * penalty


def trades_of_authors(net, x, y, args):
    net.eval()
    start = x + 0.001 * torch.randn_like(x)
    z = ascend(net, x, start, lambda logits: divergence(logits, F.softmax(net(x), 1)), args)
    net.train()
    logits = net(x)
    penalty = divergence(net(z), F.softmax(net(x), 1)) / len(x)
    return F.cross_entropy(logits, y) + BETA * penalty


def consistency(logits, other):
    log_p = F.log_softmax(logits, 1)
    terms = log_p.exp() * (log_p - F.log_softmax(other, 1))
    return (terms.square() + ALPHA * terms).sum(1)


def spat(net, x, y, args):
    net.eval()
    with torch.no_grad():
        clean = net(x)
    start = x + 0.001 * torch.randn_like(x)
    z = ascend(net, x, start, lambda logits: consistency(clean, logits).sum(), args)
    net.train()
    logits = net(x)
    cos = logits / SCALE
    own = F.one_hot(y, logits.shape[1]).bool()
    gates = torch.where(own, 1 - cos, cos) + GATE
    return F.cross_entropy(gates * logits, y) + LAM * consistency(logits, net(z)).mean()


def cce(ensemble, x, y, args):
    members = ensemble.members
    ensemble.eval()
    attacked = [plain_pgd(m, x, y, args.eps, args.step_size, args.steps) for m in members]
    ensemble.train()
    total = 0
    for n, member in enumerate(members):
        total += F.cross_entropy(member(x), y)
        for i, z in enumerate(attacked):
            logits = member(z)
            ce = F.cross_entropy(logits, y, reduction="none")
            if i == n:
                total += ce.mean()
                continue
            p = F.softmax(logits, 1)
            right = torch.exp(-ce).detach()
            entropy = -(p * F.log_softmax(logits, 1)).sum(1)
            total += (right * ce - (1 - right) * entropy).mean() / (len(members) - 1)
    return total


def plain_epoch(loss_of, net, optimizer, x, y, args):
    """Return the mean loss."""
    losses = []
    for a, b in zip(x.split(args.batch_size), y.split(args.batch_size), strict=True):
        loss = loss_of(net, a, b, args)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses))


# --- the floor -----------------------------------------------------------------------


def passes(method, net, engine, x, args):
    """Take the passes of one epoch; `engine` is None for those of the plain module."""
    members = list(net.members) if method == "cce" else [net]
    victims = [Victim(member) for member in members]
    clean, outer = {"pgd_at": (0, 1), "cce": (0, 1 + N_MEMBERS)}.get(method, (1, 2))

    def epoch():
        for a in x.split(args.batch_size):
            for victim in victims:
                with victim.frozen("eval", engine):
                    run = victim.module if engine is None else victim
                    with torch.no_grad():
                        for _ in range(clean):
                            run(a)
                    z = a.clone().requires_grad_(True)
                    for _ in range(args.steps):
                        torch.autograd.grad(run(z).sum(), z)
            net.train().zero_grad()
            low = args.precision is not None
            with torch.autocast(a.device.type, torch.bfloat16, enabled=low):
                total = sum(member(a).sum() for member in members for _ in range(outer))
            total.backward()

    return epoch


# --- rows ----------------------------------------------------------------------------


def network(method, model):
    """Return a network with random weights, as the method needs it."""

    def one():
        net = resnet18(COLOUR, 10) if model == "resnet18" else SmallCNN(GRAY, 10)
        if method == "spat":
            net = replace_classifier(net, partial(CosineLinear, scale=SCALE))
        return net

    torch.manual_seed(0)
    return MeanEnsemble([one() for _ in range(N_MEMBERS)]) if method == "cce" else one()


def estimator(method, net, X, y, args, lr):
    """Return an estimator that has been set up and has the weights of `net`."""
    kind, options = {
        "pgd_at": (PGDATClassifier, {}),
        "trades": (TRADESClassifier, {"beta": BETA}),
        "spat": (SPATClassifier, {"lam": LAM, "alpha": ALPHA, "s": SCALE, "beta": GATE}),
        "cce": (EnsembleCCE, {"n_members": N_MEMBERS}),
    }[method]
    clf = kind(
        net.members[0] if method == "cce" else net,
        adversary=adversary(method, args),
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.9,
        lr=lr,
        max_epochs=1,
        batch_size=args.batch_size,
        precision=args.precision,
        iterator_train__shuffle=False,
        classes=np.arange(10),
        warm_start=True,
        device=args.device,
        random_state=0,
        **options,
    ).set_params(adversary__n_steps=1)
    clf.fit(X[: args.batch_size], y[: args.batch_size])
    clf.set_params(adversary__n_steps=args.steps)
    clf.module_.load_state_dict(net.state_dict())
    clf.optimizer_.state.clear()
    return clf


def adversary(method, args):
    start = "uniform" if method in ("pgd_at", "cce") else "gaussian"
    return PGD(
        eps=args.eps,
        step_size=args.step_size,
        n_steps=args.steps,
        random_start=start,
        clip=(0, 1),
        precision=args.precision,
        compile=args.compile,
    )


def row(name, args, table):
    method, model = name.split("-")
    shape, args.eps, lr = MODELS[model]
    args.step_size = 2.5 * args.eps / args.steps
    args.batch_size = args.batch or (8 if args.quick else 32 if model == "resnet18" else 64)
    batches = args.batches or (2 if args.quick else 1 if model == "resnet18" else 6)
    X, y, source = read(shape, "train", args.batch_size * batches, args)
    X_test, y_test, _ = read(shape, "test", 50 if args.quick else 500, args)
    x, labels = torch.from_numpy(X).to(args.device), torch.from_numpy(y).long().to(args.device)
    net = network(method, model).to(args.device)
    clf = estimator(method, net, X, y, args, lr)
    nets, candidates = {}, {}

    def plain(name, loss_of):
        own = nets[name] = copy.deepcopy(net)
        optimizer = torch.optim.SGD(own.parameters(), lr=lr, momentum=0.9)
        candidates[name] = partial(plain_epoch, loss_of, own, optimizer, x, labels, args)

    plain("plain loop", globals()[method])
    if method == "trades":
        plain("as authors do", trades_of_authors)
    nets["robustsk"] = clf.module_
    candidates["robustsk"] = lambda: clf.fit(X, y).history_[-1, "train_loss"]
    candidates["passes, plain module"] = passes(method, copy.deepcopy(net), None, x, args)
    view = adversary(method, args)._engine()
    candidates["passes, frozen view"] = passes(method, copy.deepcopy(net), view, x, args)
    clocks = in_turns(candidates, args.repeats, args.device)

    found = {}
    if model != "resnet18":  # after so few batches there is nothing to see of a larger one
        z = torch.from_numpy(X_test).to(args.device)
        t = torch.from_numpy(y_test).long().to(args.device)
        for trained in nets:
            judged = nets[trained].eval()
            attacked = plain_pgd(judged, z, t, args.eps, args.step_size, args.steps)
            found[trained] = accuracy(judged, attacked, t)
    what = f"{method}, {model}, {batches} x {args.batch_size} of {source}"
    for yardstick in candidates:
        if yardstick == "robustsk":
            continue
        if yardstick.startswith("passes"):
            target = 1.05 if "frozen" in yardstick else None
        else:
            target = None if method == "cce" else 0.85
        remarks = None
        if yardstick in nets:
            losses = [clocks[n].result for n in ("robustsk", yardstick)]
            remarks = "loss {:.4f} and {:.4f}".format(*losses)
        table.compare(
            what,
            clocks,
            "robustsk",
            yardstick,
            target=target,
            accuracy=found,
            remarks=remarks,
        )


def read(shape, subset, n, args):
    """Return images, read once."""
    key = shape, subset
    if key not in args.read:
        args.read[key] = images(shape, max(n, 2000), args.data_home, subset)
    X, y, source = args.read[key]
    return X[:n], y[:n], source


def main():
    parser = arguments(__doc__.splitlines()[0], ROWS)
    parser.set_defaults(rows=[name for name in ROWS if name not in SLOW])
    parser.add_argument("--batch", type=int, help="samples per batch")
    parser.add_argument("--batches", type=int, help="batches per epoch")
    parser.add_argument("--steps", type=int, default=10, help="of the adversary")
    parser.add_argument("--precision", choices=["bf16"], help="of robustsk")
    parser.add_argument("--compile", action="store_true", help="the attack of robustsk")
    args = parse(parser)
    args.repeats = args.repeats or (1 if args.quick else 3)
    args.read = {}
    if args.quick:
        args.steps = 2
        args.rows = [name for name in args.rows if "resnet18" not in name]
    print(machine(args.device), end="\n\n")
    table = Comparison(args.csv)
    for name in args.rows:
        row(name, args, table)


if __name__ == "__main__":
    main()
