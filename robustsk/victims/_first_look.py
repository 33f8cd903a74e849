"""What is found out about a victim on a few samples, before it is attacked."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from .._containers import Batches, Rows, is_out_of_memory
from .._generator import GeneratorState
from ._checks import ASK_FOR_LABELS, no_answer
from ._outputs import has_answer, is_probability, is_single_probability

#: How many samples are looked at: of a module, and of what is compared with predictions.
FEW, MANY = 8, 256
#: The latter are so many numbers, and this share of all samples, so that they cost next to nothing.
_NUMBERS, _SHARE = 2**11, 1 / 32
#: How many of those that are read one by one, in their order.
_MOST_READ = 32
#: Share of the usual difference between the logits of a sample that may be rounding.
_ROUNDING = 1e-3


def few_rows(X, most):
    """Return the places of a few of the samples `X`, which may be sorted by class."""
    n_numbers = max(1, int(np.prod(X.shape[1:])))
    count = min(len(X), most, max(FEW, _NUMBERS // n_numbers, int(_SHARE * len(X))))
    if isinstance(X, Rows):
        return np.arange(min(count, _MOST_READ))
    return np.linspace(0, len(X) - 1, count).astype(int)


def _has_channels_last(sample_shape):
    return len(sample_shape) == 3 and sample_shape[-1] in (1, 3, 4) and sample_shape[0] > 4


class FirstLook:
    """A few samples, and what a victim answers.

    Parameters
    ----------
    victim : Victim
    X : ndarray or Rows of shape (n_samples, ...)

    Attributes
    ----------
    rows : ndarray of int
        Places of the samples.
    values : ndarray of shape (n, ...)
    logits : torch.Tensor of shape (n, n_classes)
    draws : bool
        Whether the answers depend on torch's global generators, which are put back.
    """

    def __init__(self, victim, X):
        self._source, self._most = X, MANY if victim.is_compared else FEW
        self.rows = few_rows(X, self._most)
        self.values = np.asanyarray(X[self.rows])
        parts = []
        with GeneratorState.present(victim.device).watched() as has_drawn:
            try:
                Batches(len(self.rows)).run(
                    lambda rows: parts.append(victim.logits(self.values[rows])), len(self.rows)
                )
            except RuntimeError as error:
                if not _has_channels_last(X.shape[1:]) or is_out_of_memory(error):
                    raise
                raise ValueError(
                    f"{victim.name} does not take X of shape {X.shape}, which looks like images "
                    "with their channels last; PyTorch has them first: pass "
                    "X.transpose(0, 3, 1, 2) (NumPy) or X.permute(0, 3, 1, 2) (PyTorch)."
                ) from error
        self.draws = has_drawn()
        self.logits = torch.cat(parts)

    def is_of(self, X):
        """Return whether these are the samples of `X` that would be looked at."""
        if X is self._source:
            return True
        rows = few_rows(X, self._most)
        return np.array_equal(rows, self.rows) and np.array_equal(X[rows], self.values)

    def check(self, victim):
        """Raise if the model has no answer for a sample, or not as many logits as classes."""
        lost = int((~has_answer(self.logits)).sum())
        if lost:
            raise no_answer(victim.name, lost, len(self.rows))
        known = 0 if victim.classes is None or victim.is_numbered else len(victim.classes)
        found = self.logits.shape[1]
        if known > 1 and found != known:
            raise ValueError(
                f"{victim.name} returns {found} logits per sample and has {known} classes "
                f"({victim.classes[:10].tolist()}): which of its outputs holds the logits? Return "
                "them alone, first, or under the name 'logits'."
            )

    def warn_about_probabilities(self, victim, stacklevel):
        """Warn where probabilities are returned instead of logits.

        A softmax before the loss that is attacked saturates: its gradients vanish on confident
        predictions, and the model looks robust.
        """
        if len(self.rows) < 2:
            return
        name, message = victim.name, None
        if is_probability(self.logits):
            message = (
                f"{name} returns probabilities (each row sums to 1) where logits are needed: "
                "gradients through the softmax vanish and the attack is weakened. Remove the "
                "softmax from the module, or return its logarithm."
            )
        elif victim.own_predict is None and self._is_single_probability(victim):
            message = (
                f"{name} returns one number in [0, 1] per sample. It is read as the logit of the "
                "second class, so that the second class is predicted always. Remove the sigmoid "
                "from the module."
            )
        if message is not None:
            warnings.warn(message, UserWarning, stacklevel=stacklevel)

    def _is_single_probability(self, victim):
        if not is_single_probability(self.logits):
            return False
        rows = few_rows(self._source, MANY)  # more of them
        return len(rows) >= FEW and is_single_probability(victim.logits(self._source[rows]))


def contradiction(victim, look, own, columns=None):
    """Return how an estimator contradicts the logits that are attacked, None if it does not.

    Rounding is excused, and so are models that answer at random or look at a batch as a whole:
    there is no answer that could be followed.

    Parameters
    ----------
    victim : Victim
        With an estimator's `own_predict`.
    look : FirstLook
    own : ndarray of shape (n,)
        What the estimator predicts for the samples looked at.
    columns : list of str, optional
        Names of the features.
    """
    top, seen = look.logits.double().topk(min(2, look.logits.shape[1]))
    seen = seen[:, 0].numpy()
    seen = seen if victim.classes is None else victim.classes[seen]
    differs = has_answer(look.logits).numpy() & (np.asarray(own) != seen)
    if not differs.any():
        return None
    limit = _rounding(victim, look.logits)
    wrong = np.flatnonzero(differs & ((top[:, 0] - top[:, -1]).numpy() > limit))
    if not len(wrong) or _is_unsettled(victim, look, own, columns, limit):
        return None
    first = wrong[0]
    return (
        f"`predict` of {victim.name} contradicts the largest of the logits that are attacked for "
        f"{len(wrong)} of {len(own)} samples, and not for rounding (it says {_plain(own[first])!r} "
        f"where they say {_plain(seen[first])!r}). {victim.followed} Use an attack that asks "
        f"`predict` alone ({ASK_FOR_LABELS}), or attack a torch module that computes what "
        "`predict` does: as_victim(module, classes=...)."
    )


def _rounding(victim, logits):
    spread = (logits.amax(1) - logits.amin(1)).double().median()
    return max(_ROUNDING, 16 * torch.finfo(victim.dtype).eps) * float(spread)


def _is_unsettled(victim, look, own, columns, limit):
    """Return whether the model answers something else when it is asked again, or in other company.

    Only asked where there is something to explain.
    """
    values = look.values
    halves = [slice(0, len(values) // 2), slice(len(values) // 2, None)]
    for parts in ([slice(None)], [slice(None)], halves if len(values) > 3 else []):
        if not parts:
            continue
        try:
            again = torch.cat([victim.logits(values[rows]) for rows in parts])
            labels = np.concatenate([victim.own_predict(values[rows], columns) for rows in parts])
        except (RuntimeError, FloatingPointError):  # not every model takes any batch
            continue
        if float((again - look.logits).abs().max()) > limit or (labels != own).any():
            return True
    return False


def _plain(label):
    return label.item() if isinstance(label, np.generic) else label


def warn_about_outputs(name, n_columns, others, n_needed):
    """Warn where another output of a network fits the labels, and the first does not.

    Parameters
    ----------
    name : str
    n_columns : int
        Of the output that is taken for logits.
    others : list of int
        Numbers of columns of the others.
    n_needed : int
        How many classes the labels speak of.
    """
    if n_needed < n_columns and n_needed in others:
        warnings.warn(
            f"{name} returns several outputs without names, of which the first is taken for "
            f"logits; it has {n_columns} columns. Another one has {n_needed}, as many as y has "
            "classes. If that holds the logits, return them first, or name them 'logits' in a "
            "dict or namedtuple.",
            UserWarning,
            stacklevel=5,
        )
