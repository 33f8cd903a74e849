import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from robustsk.attacks import PGD, MultiTargeted, as_victim
from robustsk.attacks.base import BaseAttack
from robustsk.attacks.black_box.base import BaseBlackBoxAttack
from robustsk.attacks.minimal.base import BaseMinimalAttack
from robustsk.attacks.queries import Queries
from robustsk.attacks.targeting import wrong_classes
from robustsk.metrics import adversarial_outcome


class Toward(BaseAttack):
    """Goes straight to a point for each target; remembers who asked."""

    calls = []

    def _attack_batch(self, batch):
        Toward.calls.append((len(batch.x), batch.target.tolist()))
        return batch.ball.project(batch.x + torch.eye(4).to(batch.x)[batch.target])


class Ask(BaseBlackBoxAttack):
    """Asks as many questions as the target has a number."""

    def _attack_batch(self, batch):
        queries = Queries(batch, self.max_queries)
        rows = torch.repeat_interleave(torch.arange(len(batch.x)), batch.target)
        queries(batch.x[rows], rows)
        batch.info["reached"] = batch.target.double()
        return batch.x + 1e-9


class Jump(BaseMinimalAttack):
    """Finds something at a distance that depends on the target."""

    def _search(self, batch, closest):
        step = torch.tensor([0.0, 3.0, 1.0, 2.0]).to(batch.x)[batch.target]
        z = batch.x + step[:, None] * torch.tensor([1.0, 0, 0, 0]).to(batch.x)
        closest.update(z, torch.ones(len(z), dtype=torch.bool))


class Bowl(nn.Module):
    """Class 0 unless feature `j` is beyond its threshold, which makes it class `j`."""

    def __init__(self, thresholds):
        super().__init__()
        self.thresholds = nn.Parameter(torch.tensor(thresholds).double())

    def forward(self, x):
        return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:] - self.thresholds], 1)


BOWL = [1.2, 0.9, 5.0]  # of classes 1, 2, 3; the clean logits rank them 2, 1, 3
START, ZERO = torch.zeros(3, 4).double(), torch.zeros(3, dtype=torch.int64)


def test_order_of_the_wrong_classes():
    logits = torch.tensor([[1.0, 5.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    y = torch.tensor([1, 2])
    assert_array_equal(wrong_classes(logits, y), [[2, 3, 0], [0, 1, 3]])
    assert_array_equal(wrong_classes(logits, y, "all"), [[2, 3, 0], [0, 1, 3]])
    assert_array_equal(wrong_classes(logits, y, 1), [[2], [0]])
    with pytest.raises(ValueError, match=r"n_targets=4.*4 classes has 3 wrong ones"):
        wrong_classes(logits, y, 4)


@pytest.mark.parametrize("keep", ["first", "worst", "last"])
def test_classes_are_tried_in_order_and_the_first_that_fools_wins(keep):
    Toward.calls = []
    attack = MultiTargeted(attack=Toward(), eps=1.0, clip=None)
    z = attack.perturb(Bowl(BOWL), START, ZERO, keep=keep)
    assert_array_equal(z, np.tile([0, 0, 1, 0], (3, 1)))
    tried = [2] if keep == "first" else [2, 1, 3]
    assert [target for _, (target, *_) in Toward.calls] == tried


def test_without_success_the_highest_margin_is_kept():
    attack = MultiTargeted(attack=Toward(), eps=0.5, clip=None)
    assert_array_equal(attack.perturb(Bowl(BOWL), START, ZERO)[0], [0, 0, 0.5, 0])
    # the most likely class is not always the closest in reach
    attack.set_params(mask=[True, True, False, True])
    assert_array_equal(attack.perturb(Bowl(BOWL), START, ZERO)[0], [0, 0.5, 0, 0])


def test_solved_samples_are_dropped_in_evaluation():
    Toward.calls = []
    x = START.clone()
    x[1, 1] = 1.0  # is class 0 still, and its most likely other class is 1
    attack = MultiTargeted(attack=Toward(), eps=0.7, clip=None)
    z = attack.perturb(Bowl(BOWL), x, ZERO, keep="first")
    assert [n for n, _ in Toward.calls] == [3, 2, 2]
    assert_array_equal(z[1], [0, 1.7, 0, 0])


def test_number_of_targets():
    Toward.calls = []
    attack = MultiTargeted(attack=Toward(), n_targets=2, eps=0.1, clip=None)
    attack.perturb(Bowl(BOWL), START, ZERO)
    assert [targets[0] for _, targets in Toward.calls] == [2, 1]
    with pytest.raises(ValueError, match="give at most 3"):
        attack.set_params(n_targets=4).perturb(Bowl(BOWL), START, ZERO)


def test_minimal_attack_keeps_the_closest():
    attack = MultiTargeted(attack=Jump(norm=2), clip=None)
    assert attack.minimal
    y = torch.tensor([0, 0, 1])  # the last one is wrong as it is
    z, info = attack.perturb(Bowl(BOWL), START, y, return_info=True)
    assert_array_equal(z[:, 0], [1.0, 1.0, 0.0])
    assert_array_equal(info["distance"], [1.0, 1.0, 0.0])
    z, info = attack.set_params(eps=0.5).perturb(Bowl(BOWL), START, y, return_info=True)
    assert_array_equal(z, START)
    assert_array_equal(info["distance"], [np.inf, np.inf, 0.0])


def test_queries_are_those_of_all_runs():
    # class 0: 1 + 2 + 3 questions inside; one about the clean sample, one after each run
    attack = MultiTargeted(attack=Ask(), eps=1.0, clip=None)
    assert attack.access == "scores"
    _, info = attack.perturb(Bowl(BOWL), START, ZERO, return_info=True)
    assert_array_equal(info["n_queries"], [10, 10, 10])
    assert_array_equal(info["reached"], [2, 2, 2])  # of the run that is kept


def test_forest_is_attacked_by_scores_and_by_labels(table):
    class Shift(BaseBlackBoxAttack):
        access = "labels"

        def _attack_batch(self, batch):
            queries = Queries(batch, self.max_queries)
            z = batch.ball.project(batch.x + 2 * batch.noise.uniform(0) - 1)
            hit = queries.fooled(z)
            return torch.where(hit[:, None], z, batch.x)

    forest = RandomForestClassifier(5, random_state=0).fit(table.X, table.y)
    attack = MultiTargeted(forest, attack=Shift(eps=1.0), random_state=0).fit(table.X)
    X_adv, info = attack.generate(table.X[:50], table.y[:50], return_info=True)
    assert forest.score(X_adv, table.y[:50]) < forest.score(table.X[:50], table.y[:50])
    assert_array_equal(info["n_queries"], 5)  # the clean sample, and two for each of two classes


def test_target_of_the_user_is_refused(table):
    for attack in (MultiTargeted(target=1), MultiTargeted(attack=PGD(target=1))):
        attack.set_params(clip=None)
        with pytest.raises(ValueError, match=r"chooses the target itself.*PGD\(target=...\)"):
            attack.perturb(table.net, torch.tensor(table.X[:3]))


@pytest.mark.dealt
@pytest.mark.parametrize("norm", [np.inf, 2, 1])
def test_at_least_as_strong_as_the_attack_inside(norm, images):
    eps = {np.inf: 0.08, 2: 0.5, 1: 2.0}[norm]
    X, y = images.X[:100], images.y[:100]
    common = {"norm": norm, "eps": eps, "clip": (0, 1), "random_state": 0}
    inside = PGD(objective="cw", **common)
    plain = adversarial_outcome(images.net, X, y, inside).robust.sum()
    found = adversarial_outcome(images.net, X, y, MultiTargeted(attack=inside)).robust.sum()
    assert found <= plain + 1
    y_adv = as_victim(images.net).logits(MultiTargeted(images.net, attack=inside).generate(X, y))
    assert abs(int((y_adv.argmax(1).numpy() == y).sum()) - found) <= 2
