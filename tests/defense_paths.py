"""For which defences a test of all of them runs in the default run.

What a defence can break by itself (its loss, its examples, its state) is tested for each. For what
the base classes decide, those that have a code path of their own are enough, and all others are for
the slow run. The default run has a share of that, which `code_paths.py` deals out.
"""

import inspect

from code_paths import each_code_path

from robustsk import PGD
from robustsk._discovery import all_defenses
from robustsk.attacks import FriendlyPGD
from robustsk.defenses import BaseDefense

DEFENSES = all_defenses()

#: From what the user gives to samples, classes, shapes, weights and valid range.
DATA = (
    "_prepare", "_learn_classes", "_encode", "_learn_shape", "_learn_range", "_weights",
    "get_dataset", "_to_input", "fit", "partial_fit",
)  # fmt: skip
#: How a network is made, and taken for a classifier.
NETWORK = (
    "build_module", "make_network", "initialize", "initialize_module", "initialize_criterion",
    "_modules", "_check_logits", "prefixes_",
)  # fmt: skip
#: What a call of `fit` runs through until the loss, and what it keeps.
TRAINING = (
    "_train", "_session", "_begin_anew", "_new_generator", "_receive", "_take_step", "train_step",
    "train_step_single", "run_single_epoch", "infer", "get_loss", "get_iterator",
    "get_split_datasets", "_steps_per_batch", "_give_up",
)  # fmt: skip
#: What is called at the hooks of skorch.
CALLBACKS = ("_default_callbacks",)
#: How parameters, those of nested objects included, are set and checked.
PARAMETERS = (
    "_nested", "_adversary", "_head", "_objects", "_signature_names", "_validate_params",
    "_check_params", "get_params", "set_params", "__repr__", "like_adversary",
)  # fmt: skip
#: What answers when the training is over.
PREDICTION = (
    "_outputs", "forward_iter", "predict", "predict_proba", "decision_function",
    "score_adversarial", "default_attack", "classes_", "__robustsk_victim__", "_victim",
)  # fmt: skip
#: What a saved defence consists of.
SAVING = ("__getstate__", "__setstate__", "load_params", "cuda_dependent_attributes_")


def one_of_each(*names):
    """Return a decorator that gives a test defences by the code paths of the named methods."""
    return each_code_path(DEFENSES, *names)


def own_parameters(cls):
    """Return the defaults of the hyperparameters that `cls` adds to those of all defences."""
    # through the whole MRO, because mixins of skorch hide the signature behind **kwargs
    names = set(cls._signature_names()) - set(BaseDefense._signature_names())
    found = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, BaseDefense) and "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.items()
            found.update((name, p.default) for name, p in parameters if name in names)
    return found


def suitable(cls, **params):
    """Return an adversary with which a defence can be trained: PGD, unless it prescribes one."""
    prescribed = cls is not None and isinstance(cls().default_adversary(), FriendlyPGD)
    return (FriendlyPGD if prescribed else PGD)(**params)


def epochs(cls, n):
    """Return the parameters with which no part of the training of `cls` has more epochs."""
    own = own_parameters(cls).items()
    few = {k: min(v, max(n, 1)) for k, v in own if k.endswith("_epochs") and type(v) is int}
    return {"max_epochs": n, **few}
