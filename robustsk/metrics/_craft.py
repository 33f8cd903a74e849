"""What the metrics of several models have in common: samples, examples, names, ensembles."""

from __future__ import annotations

from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_consistent_length, column_or_1d

from .._containers import check_floats, check_one_input, dataset_labels, is_dataset
from .._validation import check_labels, encode_labels, learn_bounds
from ..victims._columns import columns_of, needs_table
from ..victims.ensemble import join_victims
from ..victims.resolve import as_victim, members_as_victims
from ..victims.victim import Victim


def check_samples(X, y):
    """Return samples and labels as arrays of the same length.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...) or torch Dataset
    y : array-like of shape (n_samples,) or None
        None where `X` is a Dataset that yields labels.

    Returns
    -------
    values : ndarray of shape (n_samples, ...)
        Finite and floating.
    y_true : ndarray of shape (n_samples,)
    """
    if is_dataset(X) and y is None:
        y = dataset_labels(X)
    check_one_input(X, y)
    y_true = column_or_1d(check_labels(y))
    if needs_table(X):
        raise TypeError(
            "X has columns of labels or missing values, which only attacks, scores, reports and "
            "robustness curves take: encode them first, and pass the model behind the encoder."
        )
    values = check_floats(X)
    check_consistent_length(values, y_true)
    return values, y_true


def valid_range(attack, victim, values):
    """Return the range for clip="auto": the attack's, the victim's, or that of the samples.

    An explicit `clip` needs none: then samples are not searched for one.
    """
    bounds = getattr(attack, "clip_bounds_", victim.bounds)
    if bounds is None and isinstance(attack.clip, str):
        bounds = learn_bounds(values, victim.is_image)
    return bounds


def prepared(attack, model, values, y_true, X, **known):
    """Settle a run of an attack on a model, with the range of all samples.

    Parameters
    ----------
    attack : attack
    model : fitted estimator, torch.nn.Module or Victim
    values : ndarray or Rows of shape (n_samples, ...)
    y_true : ndarray of shape (n_samples,)
    X : object
        What the user passed as `X`, for warnings.
    **known
        As for :meth:`BaseAttack.prepare`.

    Returns
    -------
    Prepared
    """
    attack = attack._resolved()
    columns = columns_of(values)
    victim = as_victim(model, attack=type(attack).__name__, access=attack.access, columns=columns)
    bounds = None if columns is not None else valid_range(attack, victim, values)
    return attack.prepare(victim, values, y_true, bounds=bounds, original=X, **known)


def craft(attack, model, values, y_true, X):
    """Attack samples, going on after a success; parameters as for :func:`prepared`.

    Returns
    -------
    X_adv : ndarray of shape (n_samples, ...)
    info : dict of str to ndarray of shape (n_samples, ...)
    """
    run = prepared(attack, model, values, y_true, X)
    run.victim.compare(values, columns=getattr(X, "columns", None))
    found = run.attack.run(run)
    run.batches.warn()
    return found


def named(things, what):
    """Return names and members of a list or dict, or of an ensemble with `members_`.

    Parameters
    ----------
    things : list, dict or fitted ensemble
    what : str
        Name of the argument, for messages.

    Returns
    -------
    names : list of str
        The keys of a dict; class names, numbered where one occurs twice.
    members : list
    """
    if isinstance(things, dict):
        names, members = [str(key) for key in things], list(things.values())
    elif isinstance(things, (list, tuple)):
        members = list(things)
        kinds = [_kind(thing) for thing in members]
        names = [
            kind if kinds.count(kind) == 1 else f"{kind} {kinds[:i].count(kind) + 1}"
            for i, kind in enumerate(kinds)
        ]
    elif hasattr(things, "__robustsk_victim__") and hasattr(things, "members_"):
        members = [things._victim(member, things.classes_) for member in things.members_]
        names = [f"member {i + 1}" for i in range(len(members))]
    else:
        raise TypeError(
            f"{what} must be a list, a dict, or a fitted ensemble with members_; got "
            f"{type(things).__name__}."
        )
    if not members:
        raise ValueError(f"{what} is empty: at least one is needed.")
    return names, members


def _kind(thing):
    if isinstance(thing, Victim):
        return thing.name
    if isinstance(thing, FrozenEstimator):
        thing = thing.estimator
    return getattr(thing, "__name__", type(thing).__name__)


def combined_victim(models, values, attack):
    """Return a model, or the ensemble that averages the probabilities of several.

    Parameters
    ----------
    models : list of fitted estimators
    values : ndarray of shape (n_samples, ...)
        Samples with which classes are counted where a model does not know them.
    attack : attack

    Returns
    -------
    Victim
        With the classes of the first model, in their order.
    """
    attack = attack._resolved()
    victims = members_as_victims(models, type(attack).__name__, attack.access)
    for victim in victims if len(victims) > 1 else ():
        victim.learn_classes(values)
    return join_victims(victims)


def judges(estimators, values, y_true):
    """Return the victims that `predict` needs, having checked that they know the labels."""
    victims = [as_victim(estimator, access="labels") for estimator in estimators]
    for victim in victims:
        encode_labels(y_true, victim.learn_classes(values), "y")
    return victims
