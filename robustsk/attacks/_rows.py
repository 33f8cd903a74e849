"""The door through which tables come to an attack; its functions are methods of `BaseAttack`."""

from __future__ import annotations

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import _check_feature_names, _check_n_features

from .._containers import is_dataset
from ..victims._columns import TableRows, needs_table
from ..victims.resolve import as_victim
from ..victims.space import FeatureSpace
from .threat import check_norm


def space_of(attack, X):
    """Return the fitted space of what is attacked, None for arrays of numbers without one.

    Parameters
    ----------
    attack : BaseAttack
    X : ndarray, TableRows, Rows or the shape of a sample
    """
    if isinstance(X, TableRows):
        return X.space
    if attack.space is None:
        return None
    space = attack.space
    if not space.__sklearn_is_fitted__():
        space = vars(attack).get("space_")
    if space is None:
        raise NotFittedError(
            "space is not fitted, and tensors do not say what their columns are: call "
            "space.fit(X_train) first."
        )
    return space


def table_rows(attack, X):
    """Return `X` as rows of a table, None where it is an array of numbers without a space.

    Parameters
    ----------
    attack : BaseAttack
    X : object
        What the user has passed. An unfitted space is fitted on it, unless `fit` has seen training
        data.
    """
    if isinstance(X, TableRows):
        return X
    if is_dataset(X) or (attack.space is None and not needs_table(X)):
        return None
    space = FeatureSpace() if attack.space is None else attack.space
    if not space.__sklearn_is_fitted__():
        learned = vars(attack).get("space_")
        space = clone(space).fit(X) if learned is None else learned
    return space.encode(X)


def fit_table(attack, settings, rows, X):
    """Learn what the columns of a table may become; what `fit` does for a table.

    Parameters
    ----------
    attack, settings : BaseAttack
        What is fitted, and the attack that says all about it.
    rows : TableRows
    X : table
    """
    if settings.estimator is None:
        raise ValueError(
            f"{type(attack).__name__} has no model to attack, and none is made for a table: pass a "
            "fitted pipeline as `estimator`."
        )
    as_victim(
        settings.estimator,
        attack=type(attack).__name__,
        access=settings.access,
        columns=rows.space.columns_,
    )
    _check_feature_names(attack, X, reset=True)
    _check_n_features(attack, X, reset=True)
    settings._effective_eps(check_norm(settings.norm, settings.supported_norms), rows.shape[1:])
    settings._box(None)
    attack.estimator_, attack.space_ = settings.estimator, rows.space
    attack._sample_shape = rows.shape[1:]
    return attack
