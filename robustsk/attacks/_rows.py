"""The door through which samples come to an attack; its functions are methods of `BaseAttack`."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_array
from sklearn.utils.validation import _check_feature_names, _check_n_features, validate_data

from .._containers import FLOATS, Rows, is_dataset, is_mapped, to_array
from .._validation import check_sample_shape
from ..victims._columns import TableRows, needs_table
from ..victims._frames import is_missing
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
    _check_space(space)
    if not space.__sklearn_is_fitted__():
        space = vars(attack).get("space_")
    if space is None:
        raise NotFittedError(
            "space is not fitted, and tensors do not say what their columns are: call "
            "space.fit(X_train) first."
        )
    return space


def _check_space(space):
    if space is not None and not isinstance(space, FeatureSpace):
        raise TypeError(f"space must be a FeatureSpace(...), got {space!r}.")


def table_rows(attack, X):
    """Return `X` as rows of a table, None where it is an array of numbers without a space.

    Parameters
    ----------
    attack : BaseAttack
    X : object
        What the user has passed. An unfitted space is fitted on it, unless `fit` has seen training
        data.
    """
    return read_table(X, attack.space, vars(attack).get("space_"))


def read_table(X, space=None, learned=None):
    """Return `X` as rows of a table, None where it is an array of numbers without a space.

    Parameters
    ----------
    X : object
    space : FeatureSpace, optional
    learned : FeatureSpace, optional
        Fitted, in the place of one that is not.
    """
    if isinstance(X, TableRows):
        return X
    if is_dataset(X) or (space is None and learned is None and not needs_table(X)):
        return None
    _check_space(space)
    space = FeatureSpace() if space is None else space
    if not space.__sklearn_is_fitted__():
        space = clone(space).fit(X) if learned is None else learned
    return space.encode(X)


def check_samples(attack, X, victim):
    """Return `X` as a validated array, or as `Rows` that are validated when they are read.

    Parameters
    ----------
    attack : BaseAttack
    X : object
        What the user has passed, and no table.
    victim : Victim
    """
    lazy = Rows(X) if is_dataset(X) or is_mapped(X) else None
    values = to_array(X) if lazy is None else lazy[:1]
    fitted = getattr(attack, "_sample_shape", ())
    if len(fitted) > 1 < np.ndim(values):  # of which scikit-learn would count the channels
        check_sample_shape(np.shape(values)[1:], fitted, attack)
    if hasattr(attack, "n_features_in_"):
        values = validate_data(attack, values, dtype=FLOATS, allow_nd=True, reset=False)
    else:
        values = check_array(values, dtype=FLOATS, allow_nd=True)
        expected = getattr(attack.estimator, "n_features_in_", values.shape[1])
        if values.shape[1] != expected:
            raise ValueError(
                f"X has {values.shape[1]} features, but {victim.name} is expecting {expected} "
                "features as input."
            )
    check_sample_shape(values.shape[1:], fitted or values.shape[1:], attack)
    return values if lazy is None else lazy


def warn_about_rows(rows, stacklevel=5):
    """Tell of rows that contradict the space, or hold what nobody knows.

    Parameters
    ----------
    rows : TableRows
    stacklevel : int, default=5
    """
    space, values = rows.space, np.asarray(rows).reshape(len(rows), -1)
    relations = space.limits_.relations
    if relations is not None:
        failing = ~relations.satisfied(np.where(is_missing(values), np.nan, values))
        said = space.limits_.said
        named = [said[j] for j in np.flatnonzero(failing.any(axis=0))]
        if named:
            warnings.warn(
                f"relations {named} fail for {int(failing.any(axis=1).sum())} of {len(rows)} rows "
                "of X: these rows are returned unchanged and counted as they are predicted.",
                UserWarning,
                stacklevel=stacklevel,
            )
    if space.max_changes == 0:
        return  # no category changes anyway
    unknown = space.unknown(values)
    if unknown.any():
        names = np.array(space.columns_.names, dtype=object)[unknown.any(axis=0)]
        warnings.warn(
            f"{int(unknown.any(axis=1).sum())} of {len(rows)} rows of X hold categories of "
            f"{list(names)} that were not there when the space was fitted: they stay as they are.",
            UserWarning,
            stacklevel=stacklevel,
        )


def check_categories(attack, space, stacklevel=5):
    """Tell whoever lets categories change of attacks that change numbers only.

    Parameters
    ----------
    attack : BaseAttack
    space : FeatureSpace
        Fitted.
    stacklevel : int, default=5

    Raises
    ------
    ValueError
        If it is one that looks for the closest example, which may be another category.
    """
    if space.max_changes == 0 or attack.changes_categories:
        return
    limits, columns = space.limits_, space.columns_
    places = [place for place, values in enumerate(limits.values) if values is not None]
    places += [place for group, _ in limits.groups for place in group]
    names = [columns.names[place] for place in places if not limits.is_immutable[place]]
    if not names:
        return
    name = type(attack).__name__
    shown = ", ".join(map(str, names[:10])) + (", ..." if len(names) > 10 else "")
    if attack.minimal:
        raise ValueError(
            f"{name} needs continuous columns, and {len(names)} columns hold categories that may "
            f"change ({shown}): freeze them (FeatureSpace(max_changes=0)), or use GreedySearch."
        )
    warnings.warn(
        f"{name} moves numbers only and {len(names)} columns hold categories ({shown}): they stay "
        "as they are. Give the space to an attack that can change them (GreedySearch, CAPGD, "
        "TabularAutoAttack), or say max_changes=0.",
        UserWarning,
        stacklevel=stacklevel,
    )


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
    norm = check_norm(settings.norm, settings.supported_norms)
    if np.ndim(settings.eps) != 2 or hasattr(settings.eps, "columns"):  # else of other rows
        settings._effective_eps(norm, rows.shape[1:])
    settings._box(None)
    attack.estimator_, attack.space_ = settings.estimator, rows.space
    attack._sample_shape = rows.shape[1:]
    return attack
