"""Pretraining on one data set, tuning on another, with any defence in each stage."""

from __future__ import annotations

import copy
import fnmatch
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import _num_samples, check_is_fitted, column_or_1d
from skorch.callbacks import Callback
from torch import nn
from torch.utils.data import Subset

from .._containers import dataset_labels, is_dataset, sample_of
from .._generator import GeneratorState
from .._interrupts import uninterrupted
from .._validation import check_labels
from ..attacks import BaseAttack
from ..models import CosineLinear, get_classifier, replace_classifier
from ..training._weights import copy_of_state, put
from ._fitting import SparseInput
from .base import BaseDefense
from .pgd_at import PGDATClassifier

if TYPE_CHECKING:
    from typing_extensions import Self


class PretrainTuneClassifier(SparseInput, ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Train on one data set with one defence, then tune on another with a second one.

    The first stage trains a network on many samples of a related problem. The second goes on
    from its weights, with a fresh optimizer, on the samples of the problem itself. Either stage
    is any defence, so that robustness can be learnt in both or be left to one.

    Parameters
    ----------
    pretrainer : BaseDefense, default=None
        Estimator of the first stage, whose `module` is the network of both. None means
        :class:`~robustsk.defenses.PGDATClassifier`.
    tuner : BaseDefense, "none" or None, default=None
        Estimator of the second stage; its `module` is not used. None means the same as
        `pretrainer`, "none" leaves the pretrained network as it is.
    pretrain_lr : float, default=None
        Learning rate of the first stage. None means that of `pretrainer`.
    tune_lr : float, default=None
        Learning rate of the second stage. None means that of `tuner`.
    pretrain_epochs : int, default=None
        Epochs of the first stage. None means those of `pretrainer`; 0 leaves it out, which is
        the tuner alone.
    tune_epochs : int, default=None
        Epochs of the second stage. None means those of `tuner`.
    pretrain_subset : int or float, default=None
        How many samples of the pretraining data to use, drawn without replacement, as a number
        or as a share in (0, 1]. None means all.
    stratify : bool, default=False
        Whether the sample has the shares of the classes.
    match_steps : bool, default=False
        Whether a sample is trained on for as many more epochs as it is smaller, so that the
        number of steps is that of all pretraining data.
    tune_layers : {"all", "head"} or list of str, default="all"
        What the second stage changes: everything, the last linear layer, or the parameters
        whose names match one of the patterns, e.g. ``["layer4.*", "fc.*"]``. Other weights, and
        the statistics of batch normalisations none of whose parameters are tuned, stay as they
        are, to the last bit.
    keep_snapshots : bool, default=False
        Whether to keep the weights after each epoch of tuning.
    classes_map : dict, default=None
        For each label of the pretraining data the label that its class has in `y`, where the two
        data sets name the same classes differently, e.g. ``{"airplane": 0, "automobile": 1}``.
        The first stage then learns the labels of `y`, and the last layer is kept. None means
        that equal labels are the same class, and others another.
    random_state : int, RandomState or None, default=None
        Source of the sample of the pretraining data, and of the seeds of both stages. None
        leaves the stages theirs.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels in the order of the columns of `predict_proba`.
    estimator_ : BaseDefense
        What predicts: the fitted tuner, or with ``tuner="none"`` the fitted pretrainer.
    pretrained_estimator_ : BaseDefense or None
        The fitted pretrainer; None with 0 epochs of pretraining.
    pretrain_indices_ : ndarray of int or None
        The samples that were drawn, in ascending order.
    snapshots_ : list of dict of str to torch.Tensor
        State dicts on the CPU, from the pretrained network to the final one: one more than
        there were epochs of tuning. Only with `keep_snapshots`.
    n_features_in_ : int
        Number of features seen in `fit`.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features seen in `fit`, if they are all strings.

    See Also
    --------
    AdversarialFineTuneClassifier : Standard training and fine-tuning on one data set.

    Notes
    -----
    The last layer is initialised anew, with a warning, where the labels of the two data sets
    differ: other classes, or the same ones under other names without `classes_map`. The second
    stage starts from every pretrained tensor whose name and
    shape are those of a tensor in the network of the tuner, which may put a head of its own on
    it. With a search over parameters, `X_pretrain` is split like `X` if it has as many samples.

    References
    ----------
    J. Zhang, "Adversarial regularization and pre-training", thesis, Ch. 5, where PGD, TRADES and
    adversarial regularisation are combined (lr 0.1 and then 0.001, 100 epochs each), and Sec.
    5.6 on samples of the pretraining set; Hendrycks, Lee and Mazeika (2019), "Using pre-training
    can improve model robustness and uncertainty".

    Examples
    --------
    >>> from robustsk import PGDATClassifier, PretrainTuneClassifier, TRADESClassifier
    >>> from robustsk.datasets import load_digits_images
    >>> X, y = load_digits_images(return_X_y=True)
    >>> low = y < 5
    >>> clf = PretrainTuneClassifier(
    ...     PGDATClassifier(adversary__eps=0.1, max_epochs=4),
    ...     TRADESClassifier(adversary__eps=0.1, max_epochs=4, beta=3),
    ...     random_state=0,
    ... ).fit(X[low][:400], y[low][:400], X_pretrain=X[~low], y_pretrain=y[~low])
    >>> clf.classes_
    array([0, 1, 2, 3, 4])
    >>> bool(clf.score_adversarial(X[low][400:600], y[low][400:600]) > 0.4)
    True
    """

    def __init__(
        self,
        pretrainer: BaseDefense | None = None,
        tuner: BaseDefense | str | None = None,
        *,
        pretrain_lr: float | None = None,
        tune_lr: float | None = None,
        pretrain_epochs: int | None = None,
        tune_epochs: int | None = None,
        pretrain_subset: float | None = None,
        stratify: bool = False,
        match_steps: bool = False,
        tune_layers: str | Sequence[str] = "all",
        keep_snapshots: bool = False,
        classes_map: dict | None = None,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.pretrainer = pretrainer
        self.tuner = tuner
        self.pretrain_lr = pretrain_lr
        self.tune_lr = tune_lr
        self.pretrain_epochs = pretrain_epochs
        self.tune_epochs = tune_epochs
        self.pretrain_subset = pretrain_subset
        self.stratify = stratify
        self.match_steps = match_steps
        self.tune_layers = tune_layers
        self.keep_snapshots = keep_snapshots
        self.classes_map = classes_map
        self.random_state = random_state

    # --- fitting -----------------------------------------------------------------------

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        X_pretrain: Any = None,
        y_pretrain: ArrayLike | None = None,
    ) -> Self:
        """Pretrain, then tune.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset
            Data of the problem itself.
        y : array-like of shape (n_samples,)
            Their labels. May be omitted where `X` is a Dataset that yields them.
        X_pretrain : array-like of shape (n_pretrain, ...) or torch Dataset, default=None
            Data of the first stage, samples of the same shape. None means `X` and `y`.
        y_pretrain : array-like of shape (n_pretrain,), default=None
            Their labels, of any kind.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the data, the labels or a parameter are not valid.
        """
        rng = None if self.random_state is None else check_random_state(self.random_state)
        pretrainer, tuner = self._stages(rng)
        if X_pretrain is None:
            if y_pretrain is not None:
                raise ValueError("y_pretrain was given without X_pretrain.")
            if self.classes_map is not None:
                raise ValueError(
                    "classes_map was given without X_pretrain, whose labels it is about."
                )
            X_pretrain, y_pretrain = X, y
        else:
            _check_same_shape(X, X_pretrain)
            if self.classes_map is not None:
                y_pretrain = self._mapped(pretrainer, X_pretrain, y_pretrain)
        self.pretrain_indices_ = None
        if pretrainer is not None:
            self._pretrain(pretrainer, X_pretrain, y_pretrain, rng)
        self.pretrained_estimator_ = pretrainer
        if tuner is None:
            unknown = np.setdiff1d(_classes_of(pretrainer, X, y), pretrainer.classes_)
            if len(unknown):
                raise ValueError(
                    "With tuner='none' the pretrained network stays as it is, and it has not been "
                    f"trained on the labels {unknown.tolist()} of y, but on "
                    f"{pretrainer.classes_.tolist()}. If those are the same classes under other "
                    "names, say so by classes_map={...}."
                )
            snapshots = [copy_of_state(pretrainer.module_, "cpu")]
        else:
            snapshots = self._tune(tuner, pretrainer, X, y)
        self.estimator_ = pretrainer if tuner is None else tuner
        self.classes_ = self.estimator_.classes_
        for name in ("snapshots_", "n_features_in_", "feature_names_in_"):
            vars(self).pop(name, None)
        if self.keep_snapshots:
            self.snapshots_ = snapshots
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(self.estimator_, name):
                setattr(self, name, getattr(self.estimator_, name))
        return self

    def _stages(self, rng):
        """Return copies of the estimators with everything applied; None for a stage left out."""
        first = PGDATClassifier() if self.pretrainer is None else self.pretrainer
        second = first if self.tuner is None else self.tuner
        stages = []
        for name, estimator in (("pretrain", first), ("tune", second)):
            seed = None if rng is None else int(rng.randint(np.iinfo(np.int32).max))
            if name == "tune" and isinstance(estimator, str) and estimator == "none":
                stages.append(None)
                continue
            if not isinstance(estimator, BaseDefense):
                what = "pretrainer must be" if name == "pretrain" else "tuner must be 'none',"
                raise TypeError(
                    f"{what} a defence of robustsk such as PGDATClassifier(), or None; "
                    f"got {estimator!r}."
                )
            epochs = getattr(self, f"{name}_epochs")
            if epochs is not None and (not isinstance(epochs, numbers.Integral) or epochs < 0):
                raise ValueError(
                    f"{name}_epochs must be None or an integer of at least 0, got {epochs!r}."
                )
            params = {"lr": getattr(self, f"{name}_lr"), "max_epochs": epochs, "random_state": seed}
            params = {k: v for k, v in params.items() if v is not None}
            stages.append(clone(estimator).set_params(**params))
        pretrainer, tuner = stages
        if tuner is not None:
            if tuner.input_shape is None:
                tuner.set_params(input_shape=pretrainer.input_shape)
            if pretrainer.max_epochs == 0:
                if tuner.module is None and not tuner.get_params_for("module"):
                    params = pretrainer.get_params_for("module")
                    tuner.set_params(
                        module=pretrainer.module, **{f"module__{k}": v for k, v in params.items()}
                    )
                pretrainer = None
        return pretrainer, tuner

    def _mapped(self, pretrainer, X, y):
        """Return the labels of the pretraining data, as those of the problem itself."""
        if not isinstance(self.classes_map, Mapping):
            raise TypeError(
                "classes_map must be a dict from labels of y_pretrain to labels of y, or None; "
                f"got {self.classes_map!r}."
            )

        def mapped(labels):
            missing = [v for v in np.unique(labels).tolist() if v not in self.classes_map]
            if missing:
                raise ValueError(
                    f"classes_map says nothing of the labels {missing} of the pretraining data: "
                    "it needs an entry for each of them."
                )
            return np.array([self.classes_map[v] for v in np.asarray(labels).tolist()])

        if pretrainer is not None and pretrainer.classes is not None:
            pretrainer.set_params(classes=mapped(pretrainer.classes))
        y = dataset_labels(X) if y is None and is_dataset(X) else y
        return mapped(column_or_1d(check_labels(y)))

    def _pretrain(self, pretrainer, X, y, rng):
        if self.pretrain_subset is not None:
            n = _num_samples(X)
            size = _check_subset(self.pretrain_subset, n)
            rows = np.arange(n)
            if size < n:
                labels = dataset_labels(X) if y is None and is_dataset(X) else y
                rows, _ = train_test_split(
                    rows,
                    train_size=size,
                    stratify=labels if self.stratify else None,
                    random_state=rng,
                )
            self.pretrain_indices_ = rows = np.sort(rows)
            X = Subset(X, rows.tolist()) if is_dataset(X) else _safe_indexing(X, rows)
            y = None if y is None else _safe_indexing(y, rows)
            if self.match_steps:
                pretrainer.set_params(max_epochs=round(pretrainer.max_epochs * n / size))
        pretrainer.fit(X, y)
        if getattr(pretrainer, "interrupted_", None) is not None:
            raise KeyboardInterrupt  # nobody has asked to tune what is half trained

    def _tune(self, tuner, pretrainer, X, y):
        """Fit the tuner, and return what snapshots were taken."""
        start, keep = _Start(self.tune_layers), _Snapshots()
        if pretrainer is not None:
            network = copy.deepcopy(pretrainer.module_)
            classes = _classes_of(tuner, X, y)
            if classes is not None and not np.array_equal(classes, pretrainer.classes_):
                warnings.warn(
                    "The labels of the pretraining data are "
                    f"{_few(pretrainer.classes_)} and those of y {_few(classes)}: the pretrained "
                    "last layer is replaced by a new one. If they are the same classes under "
                    "other names, keep it by classes_map={label of y_pretrain: label of y, ...}; "
                    "if y lacks some of them, by classes=[...] of the tuner.",
                    UserWarning,
                    stacklevel=3,
                )
                network = _with_new_head(network, len(classes), tuner.random_state)
            start.state = copy_of_state(network, "cpu")
            for name in [k for k in vars(tuner) if k.startswith("module__")]:
                delattr(tuner, name)  # they would make a new network instead of a copy
            members = getattr(network, "members", None)
            if members is not None and hasattr(type(tuner), "members_"):
                tuner.set_params(module=list(members), n_members=len(members))
            else:
                tuner.set_params(module=network)
        callbacks = tuner.callbacks
        listed = [] if callbacks in (None, "disable") else callbacks
        last = [("snapshots", keep)] if self.keep_snapshots else []
        # callbacks, because the tuner builds its network and its optimizer itself
        tuner.set_params(callbacks=[("start", start), *listed, *last])
        with uninterrupted() as interruptible:
            try:
                with interruptible():
                    tuner.fit(X, y)
            finally:
                start.release()
        vars(tuner)["callbacks"] = callbacks
        tuner.callbacks_ = [(k, cb) for k, cb in tuner.callbacks_ if cb not in (start, keep)]
        return keep.states

    # --- prediction --------------------------------------------------------------------

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probability of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.
        """
        check_is_fitted(self)
        return self.estimator_.predict_proba(X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the logits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...) or torch Dataset

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            With two classes, the difference of the two logits, shape
            (n_samples,); positive means ``classes_[1]``.
        """
        check_is_fitted(self)
        return self.estimator_.decision_function(X)

    def score_adversarial(
        self,
        X: Any,
        y: ArrayLike | None = None,
        attack: BaseAttack | None = None,
        sample_weight: ArrayLike | None = None,
        *,
        scoring: str | Callable | None = None,
        attack_classes: ArrayLike | None = None,
    ) -> float:
        """Return the accuracy under attack, or another score.

        Parameters
        ----------
        X, y, sample_weight, scoring, attack_classes
            As in :func:`robustsk.metrics.score_adversarial`.
        attack : attack, default=None
            None means that of the tuner.

        Returns
        -------
        float
            Share of samples that are classified correctly and stay so under
            the attack, in [0, 1]; with `scoring` what that returns.
        """
        check_is_fitted(self)
        return self.estimator_.score_adversarial(
            X, y, attack, sample_weight, scoring=scoring, attack_classes=attack_classes
        )

    def default_attack(self) -> BaseAttack:
        """Return the attack that :meth:`score_adversarial` uses by default."""
        check_is_fitted(self)
        return self.estimator_.default_attack()

    def __robustsk_victim__(self):
        """Return what attacks work on: raw rows in, logits out."""
        check_is_fitted(self)
        return self.estimator_.__robustsk_victim__()


class _Start(Callback):
    """Put pretrained weights in place when training begins, and hold some of them."""

    def __init__(self, layers, state=None):
        self.layers = layers
        self.state = state
        self.module_ = None

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Load whatever fits into the network; freeze the rest of the layers."""
        module = net.module_
        if self.state is not None:
            present = module.state_dict()
            names = [
                k for k, v in self.state.items() if k in present and present[k].shape == v.shape
            ]
            put([present[k] for k in names], [self.state[k] for k in names])
        tuned = _tuned(module, self.layers)
        self.module_, self.hooks_ = module, []
        if tuned is None:
            return
        for name, p in module.named_parameters():
            p.requires_grad_(name in tuned)
        for part in module.modules():
            own = list(part.parameters(recurse=False))
            if list(part.buffers(recurse=False)) and not any(p.requires_grad for p in own):
                # skorch puts the whole network into training mode in every step
                self.hooks_.append(part.register_forward_pre_hook(_stay_in_evaluation))

    def release(self):
        """Let everything be trained again."""
        if self.module_ is not None:
            self.module_.requires_grad_(True)
            for hook in self.hooks_:
                hook.remove()
        self.module_ = None


class _Snapshots(Callback):
    """Keep the weights at the beginning and at the end of every epoch."""

    def __init__(self):
        self.states = []

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        """Keep the weights to begin with."""
        self.states.append(copy_of_state(net.module_, "cpu"))

    def on_epoch_end(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        """Keep the weights."""
        self.states.append(copy_of_state(net.module_, "cpu"))


def _stay_in_evaluation(part, inputs):
    part.training = False


def _members(module):
    """Return the networks in an ensemble with the prefixes of their parameters."""
    members = getattr(module, "members", None)
    if members is None:
        return [("", module)]
    return [(f"members.{i}.", member) for i, member in enumerate(members)]


def _tuned(module, layers):
    """Return the names of the parameters to tune; None means all."""
    names = [name for name, _ in module.named_parameters()]
    if isinstance(layers, str):
        if layers == "all":
            return None
        if layers != "head":
            raise ValueError(
                f"tune_layers must be 'all', 'head' or a list of name patterns, got {layers!r}."
            )
        layers = [
            ".".join(part for part in (prefix + get_classifier(member)[0], "*") if part)
            for prefix, member in _members(module)
        ]
    tuned = set()
    for pattern in layers:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise ValueError(
                f"tune_layers: no parameter matches {pattern!r}. The parameters are {names}."
            )
        tuned.update(found)
    return tuned


def _with_new_head(network, n_classes, random_state):
    """Return a network whose last layer is made anew, for another number of classes."""
    seed = int(check_random_state(random_state).randint(np.iinfo(np.int32).max))
    with GeneratorState(seed).in_use():
        for _, member in _members(network):
            _, old = get_classifier(member)

            def layer(n_in, n_out, old=old):
                if isinstance(old, CosineLinear):
                    return CosineLinear(
                        n_in, n_classes, old.scale, old.feature_norm, old.weight_norm
                    )
                return nn.Linear(n_in, n_classes, bias=old.bias is not None)

            changed = replace_classifier(member, layer)
            if member is network:
                network = changed
    return network


def _classes_of(estimator, X, y):
    """Return the labels that an estimator is about to learn; None where there are none."""
    if estimator.classes is not None:
        return np.unique(np.asarray(estimator.classes))
    if y is None:
        if not is_dataset(X):
            return None
        y = dataset_labels(X)
    return np.unique(column_or_1d(check_labels(y)))


def _few(classes):
    """Return the labels as a text, the first ten of them."""
    text = ", ".join(repr(v) for v in classes[:10].tolist())
    return f"[{text}, ...]" if len(classes) > 10 else f"[{text}]"


def _check_same_shape(X, X_pretrain):
    def shape(data):
        if is_dataset(data):
            return tuple(np.shape(sample_of(data[0])))
        return tuple(getattr(data, "shape", None) or np.shape(data))[1:]

    if shape(X) != shape(X_pretrain):
        raise ValueError(
            f"X_pretrain has samples of shape {shape(X_pretrain)} and X of shape {shape(X)}: "
            "they must be the same, because one network is trained on both."
        )


def _check_subset(value, n):
    if isinstance(value, numbers.Integral):
        if 1 <= value <= n and not isinstance(value, bool):
            return int(value)
    elif isinstance(value, numbers.Real) and 0 < value <= 1:
        return max(1, round(value * n))
    raise ValueError(
        f"pretrain_subset must be None, a number of samples up to {n} or a share in (0, 1], "
        f"got {value!r}."
    )
