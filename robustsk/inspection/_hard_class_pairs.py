"""Which classes are taken for which under attack, and whether the network told before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import chisquare
from torch.nn import functional as F

from .._containers import chunks
from .._validation import encode_labels
from ..metrics import class_pair_shares
from ..metrics._craft import check_samples, craft
from ..models import forward_with_features, get_classifier
from ..victims.resolve import as_victim
from ._plotting import pyplot
from ._robustness_curve import default_attack
from ._transferability import TransferabilityDisplay


class HardClassPairAnalysis:
    """Where an attack pushes the samples of each class, and what cosines say about it.

    The hard class pair of a sample is the false class whose prototype (row of the
    last layer's weight) has the largest cosine with its representation; it has
    the largest share in the gradient that an attack follows. Use
    :meth:`from_estimator` to create an analysis.

    Attributes
    ----------
    classes : ndarray of shape (n_classes,)
        Labels, the order of all rows and columns.
    confusion : ndarray of int of shape (n_classes, n_classes)
        Predictions under attack (columns) per true class (rows).
    mean_cosines : ndarray of shape (n_classes, n_classes)
        Mean cosine of the clean samples of a class (row) with each prototype.
    shares : ndarray of shape (n_samples, n_classes)
        Share of each false class in the gradient at each clean sample, see
        :func:`robustsk.metrics.class_pair_shares`.
    n_fooled : int
        Samples that are classified correctly, and wrongly under attack.
    agreement : dict of str to float
        Of these, the share whose new class has the largest cosine ("cosine")
        or logit ("logit") of all false classes at the clean sample, and what
        chance would give ("chance").
    chi2, p_value : ndarray of shape (n_classes,)
        Test of the wrong predictions of each class against a uniform
        distribution over the false classes; NaN without a wrong prediction.
    entropy : ndarray of shape (n_classes,)
        Entropy of the wrong predictions of each class over that of a uniform
        distribution, in [0, 1]; NaN without one, or with two classes.
    prototype_norms : ndarray of shape (n_classes,)
        Lengths of the prototypes.
    prototype_cv : float
        Their standard deviation over their mean.
    cosine_change : float
        Mean of ``|cos_j(x) - cos_j(x')|`` over samples and classes.
    same_hardest : float
        Share of samples whose hardest false class is the same at `x` and `x'`.

    See Also
    --------
    robustsk.metrics.class_pair_gradients : The gradient, split by false class.

    References
    ----------
    Hou (2022), "Adversarial training for improving the robustness of deep
    neural networks", MSc thesis, University of Alberta, Sec. 3.3, Fig. 3.1 and
    Table 3.1.

    Examples
    --------
    >>> from robustsk import PGD, StandardClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> from robustsk.inspection import HardClassPairAnalysis
    >>> X, y = load_digits_images(return_X_y=True)
    >>> clf = StandardClassifier(max_epochs=5, random_state=0).fit(X[:1000], y[:1000])
    >>> analysis = HardClassPairAnalysis.from_estimator(
    ...     clf, X[1000:1300], y[1000:1300], PGD(eps=0.1, random_state=0)
    ... )
    >>> analysis.agreement["logit"] > 2 * analysis.agreement["chance"]
    True
    """

    def __init__(self, **results):
        vars(self).update(results)

    if TYPE_CHECKING:  # what `results` are

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def from_estimator(cls, estimator, X, y, attack=None):
        """Attack a model and look at its representation before and after.

        Parameters
        ----------
        estimator : fitted estimator or torch.nn.Module
            A network whose logits come out of one linear or cosine layer.
        X : array-like of shape (n_samples, ...) or torch Dataset
            Test data.
        y : array-like of shape (n_samples,)
            True labels. May be None where `X` is a Dataset that yields them.
        attack : attack, default=None
            An untargeted attack. None means the default attack of the
            estimator, PGD with 20 steps.

        Returns
        -------
        HardClassPairAnalysis

        Raises
        ------
        ValueError
            If the logits are not those of one last layer, as in an ensemble.
        """
        attack = (default_attack(estimator) if attack is None else attack)._resolved()
        if attack.target is not None:
            raise ValueError("The attack is targeted: where it goes says nothing about the model.")
        values, y_true = check_samples(X, y)
        victim = as_victim(estimator, attack=cls.__name__, access="gradients")
        classes = np.asarray(victim.learn_classes(values))
        index = encode_labels(y_true, classes, "y")
        X_adv, _ = craft(attack, victim, values, y_true, X)
        logits, cosines, norms = _look(victim, values)
        logits_adv, cosines_adv, _ = _look(victim, X_adv)

        n_classes = len(classes)
        predicted = logits_adv.argmax(1)
        confusion = np.zeros((n_classes, n_classes), dtype=int)
        np.add.at(confusion, (index, predicted), 1)
        hardest = _best_false(cosines, index)
        fooled = (logits.argmax(1) == index) & (predicted != index)
        wrong = confusion.copy()
        np.fill_diagonal(wrong, 0)
        chi2, p_value, entropy = _non_uniformity(wrong)
        return cls(
            classes=classes,
            confusion=confusion,
            mean_cosines=np.stack(
                [
                    cosines[index == i].mean(0)
                    if (index == i).any()
                    else np.full(n_classes, np.nan)
                    for i in range(n_classes)
                ]
            ),
            shares=class_pair_shares(logits, index),
            n_fooled=int(fooled.sum()),
            agreement={
                "cosine": _share(hardest[fooled] == predicted[fooled]),
                "logit": _share(_best_false(logits, index)[fooled] == predicted[fooled]),
                "chance": 1.0 / (n_classes - 1),
            },
            chi2=chi2,
            p_value=p_value,
            entropy=entropy,
            prototype_norms=norms,
            prototype_cv=float(norms.std() / norms.mean()),
            cosine_change=float(np.abs(cosines - cosines_adv).mean()),
            same_hardest=_share(hardest == _best_false(cosines_adv, index)),
        )

    def plot(self, what="confusion", *, ax=None, **plot_kwargs):
        """Draw a matrix: a row per true class.

        Parameters
        ----------
        what : {"confusion", "cosines"}, default="confusion"
            Shares of the predictions under attack, or mean cosines with the
            prototypes.
        ax : matplotlib Axes, default=None
            Where to draw. None means a new figure.
        **plot_kwargs : dict
            Passed to :meth:`TransferabilityDisplay.plot`.

        Returns
        -------
        TransferabilityDisplay
            The display, with the matrix drawn.
        """
        pyplot(f"{type(self).__name__}.plot")
        if what not in ("confusion", "cosines"):
            raise ValueError(f"what must be 'confusion' or 'cosines', got {what!r}.")
        if what == "confusion":
            matrix = self.confusion / np.maximum(self.confusion.sum(1, keepdims=True), 1)
        else:
            matrix = self.mean_cosines
            plot_kwargs = {"im_kw": {"vmin": -1.0}, **plot_kwargs}
        names = [str(c) for c in self.classes]
        display = TransferabilityDisplay(
            matrix,
            source_names=names,
            target_names=names,
            metric="Share of predictions" if what == "confusion" else "Mean cosine",
        ).plot(ax=ax, **plot_kwargs)
        display.ax_.set(
            ylabel="True class",
            xlabel="Predicted under attack" if what == "confusion" else "Prototype",
        )
        return display


def _look(victim, values):
    """Return logits, cosines with the prototypes, and the lengths of the prototypes."""
    logits, cosines = [], []
    with victim.frozen() as seen, torch.no_grad():
        layer = get_classifier(seen.module)[1]
        weight = layer.weight.detach()
        prototypes = F.normalize(weight, eps=1e-12)
        for rows in chunks(values):
            x = torch.from_numpy(values[rows]).to(victim.device, victim.dtype)
            out, features = forward_with_features(seen.module, x)
            if out.shape[1] != len(weight) or not torch.allclose(layer(features), out, rtol=1e-3):
                raise ValueError(
                    f"The logits of {victim.name}, of shape {tuple(out.shape)}, are not those of "
                    f"its last linear layer, {layer}: the analysis needs one network that ends in "
                    "a linear or cosine layer with one output per class. Analyse the members of "
                    "an ensemble one by one."
                )
            logits.append(out.double().cpu().numpy())
            cosines.append(F.linear(F.normalize(features, eps=1e-12), prototypes).cpu().numpy())
    norms = torch.linalg.vector_norm(weight, dim=1).double().cpu().numpy()
    return np.concatenate(logits), np.concatenate(cosines), norms


def _best_false(scores, index):
    scores = scores.copy()
    scores[np.arange(len(index)), index] = -np.inf
    return scores.argmax(1)


def _share(hits):
    return float(hits.mean()) if len(hits) else float("nan")


def _non_uniformity(wrong):
    """Return chi-square, its p-value and the relative entropy of each row of counts."""
    n_classes = len(wrong)
    chi2, p_value, entropy = (np.full(n_classes, np.nan) for _ in range(3))
    for i, row in enumerate(wrong):
        counts = np.delete(row, i)
        total = counts.sum()
        if total == 0 or len(counts) < 2:
            continue
        chi2[i], p_value[i] = chisquare(counts)
        p = counts[counts > 0] / total
        entropy[i] = -(p * np.log(p)).sum() / np.log(len(counts))
    return chi2, p_value, entropy
