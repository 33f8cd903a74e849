"""Parameters of a defence, and of the objects in it."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from torch import nn
from torch.optim import Optimizer

from .._shared import names_inside
from ..attacks.base import check_attack
from ..models import MLP, SmallCNN
from ..models.registry import MODELS

if TYPE_CHECKING:
    from typing_extensions import Self

#: What the parameters that hold objects expect, and a method that tells it.
_EXPECTED = {
    "head": ("a head such as HypersphereHead(s=10)", "attach"),
    "weight_perturbation": ("an object such as AWP(gamma=0.01)", "applied"),
    "augmentation": ("a function of a batch, or an object such as RandomCropFlip()", "__call__"),
}
#: Parameters of skorch that are taken as they are, and are not in the signature.
_OF_SKORCH = ("dataset", "predict_nonlinearity", "torch_load_kwargs", "use_caching")
#: Parameters that hold what makes an object.
_MADE = ("module", "criterion", "optimizer", "iterator_train")


class NestedParameters:
    """`get_params` and `set_params` that reach into nested objects.

    It stands among the direct bases of the class whose signature is complete.
    """

    def _nested(self, name):
        """Return the object that a parameter holds with all its own parameters applied, a copy."""
        own = getattr(self, name)
        if own is None and name == "adversary":
            own = self.default_adversary()
        kind, method = _EXPECTED.get(name, ("", ""))
        if method and own is not None and (isinstance(own, type) or not hasattr(own, method)):
            raise TypeError(f"{name} must be {kind} or None, got {own!r}.")
        params = self.get_params_for(name)
        if hasattr(own, "get_params"):
            return clone(own).set_params(**params)
        if params:
            raise ValueError(
                f"{name} is {own!r} and has no parameters; {type(self).__name__} was given "
                f"{sorted(f'{name}__{key}' for key in params)}: pass the object as well, "
                f"{name}=..."
            )
        return own

    def _adversary(self):
        """Return the adversary with all nested parameters applied, a copy."""
        if self.adversary is not None:
            check_attack(self.adversary, "adversary")
        adversary = self._nested("adversary")
        return adversary._in_order(self) if hasattr(adversary, "_in_order") else adversary

    def _head(self):
        """Return the head with all nested parameters applied, or None."""
        return self._nested("head")

    @classmethod
    def _signature_names(cls):
        # the whole MRO, because mixins of skorch hide the signature behind **kwargs
        names = {}
        for base in cls.__mro__:
            if "__init__" in vars(base):
                for p in inspect.signature(base.__init__).parameters.values():
                    if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                        names[p.name] = None
            if NestedParameters in base.__bases__:
                break
        return list(names)

    @property
    def _params_to_validate(self):
        """What has been given beyond the signature."""
        known = self._signature_names()
        # other attributes are the user's own, as in any estimator
        extra = (k for k in vars(self) if ("__" in k or k in _OF_SKORCH) and k not in known)
        return {k for k in extra if not k.startswith("_") and not k.endswith("_")}

    def _get_param_names(self):
        return [*self._signature_names(), *sorted(self._params_to_validate)]

    def _validate_params(self):
        self._refuse(k for k in sorted(self._params_to_validate) if not self._is_nested(k))
        if self.use_caching not in ("auto", True, False):
            raise ValueError(
                f"use_caching must be 'auto', True or False, got {self.use_caching!r}."
            )

    def _is_nested(self, key):
        """Return whether a name is that of a parameter of a nested object, or of skorch."""
        prefix, dunder, _ = key.partition("__")
        return (bool(dunder) and prefix in self.prefixes_) or key in _OF_SKORCH

    def _may_be_nested(self, key):
        """Return the same in the constructor; what is let through is looked at in `initialize`."""
        # a subclass from elsewhere may have parts of its own, of which skorch learns in initialize
        ours = type(self).__module__.partition(".")[0] == __name__.partition(".")[0]
        if self._is_nested(key) or ("__" in key and not ours):
            return True
        # scikit-learn's checks take "nested" for a parameter, since **nested is in the signature
        return key in inspect.signature(type(self)).parameters

    def __setattr__(self, name, value):
        # skorch would take an instance for a part that must be made in an `initialize_` method
        if isinstance(value, (nn.Module, Optimizer)) and name in self._signature_names():
            vars(self)[name] = value
        else:
            super().__setattr__(name, value)

    def _spellings(self):
        spelled = {name: name for name in (*self._signature_names(), *_OF_SKORCH)}
        for part, things in self._parts().items():
            inside = dict.fromkeys(name for thing in things for name in names_inside(thing))
            inside.pop("estimator", None)  # an adversary is told what to attack
            spelled.update((f"{part}__{name}", name) for name in inside)
        return spelled

    def _parts(self):
        """Return what is nested, or what makes it, in the constructor already."""
        parts = {name: [getattr(self, name)] for name in (*self._objects, *_MADE)}
        if self.adversary is None:
            # of a stand-in with all defaults: it may depend on what `self` has not been told yet
            defaults = inspect.signature(type(self)).parameters.items()
            bare = object.__new__(type(self))
            vars(bare).update((n, p.default) for n, p in defaults if p.default is not p.empty)
            try:
                parts["adversary"] = [bare.default_adversary()]
            except Exception:  # it needs what has no default; there is a hint less then
                parts["adversary"] = []
        if self.module is None:
            parts["module"] = [MLP, SmallCNN]
        elif isinstance(self.module, str):
            parts["module"] = [MODELS.get(self.module)]
        elif isinstance(self.module, nn.Module):
            parts["module"] = [type(self.module)]
        return parts

    def get_params(self, deep=True, **kwargs):
        """Return the parameters, those of nested objects included if `deep`."""
        params = super().get_params(deep=deep, **kwargs)
        if deep and self.adversary is None:
            defaults = self.default_adversary().get_params()
            params = {**{f"adversary__{k}": v for k, v in defaults.items()}, **params}
        params.update({k: getattr(self, k) for k in self._params_to_validate})
        return params

    def set_params(self, **params: Any) -> Self:
        """Set parameters of this estimator and of the objects in it.

        Parameters
        ----------
        **params
            As in the constructor. On an initialised estimator, `lr` and those
            of the optimizer and of callbacks act at once; those of the module
            and the criterion re-initialise it, as in skorch.

        Returns
        -------
        self
        """
        for name in self._objects:
            if name in params:
                vars(self)[name] = params.pop(name)
                for key in [k for k in vars(self) if k.startswith(f"{name}__")]:
                    del vars(self)[key]
        for key in [k for k in params if k.partition("__")[0] in self._objects]:
            name, _, parameter = key.partition("__")
            own, value = getattr(self, name), params.pop(key)
            if hasattr(own, "set_params") and key not in vars(self):
                own.set_params(**{parameter: value})
                continue
            known = self._nested(name)
            if not hasattr(known, "set_params"):
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}: {name} is "
                    f"{known!r}, which has no parameters."
                )
            known.set_params(**{parameter: value})  # raises if there is no such thing
            vars(self)[key] = value
        parts = (*self._modules, *self._criteria, *self._optimizers)  # of subclasses as well
        acting = {"module", "criterion", "optimizer", "lr", "callbacks", "compile", *parts}
        if self.initialized_:
            rest = {k: params.pop(k) for k in list(params) if k.split("__")[0] in acting}
            with self._new_generator().in_use() if rest.keys() - {"lr"} else nullcontext():
                super().set_params(**rest)
        valid = self._signature_names()
        # scikit-learn's checks take "nested" for a parameter here as well
        known = {*valid, *inspect.signature(type(self)).parameters}
        for key, value in params.items():
            if key not in known and not self._is_nested(key):
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}. "
                    f"Valid parameters are: {sorted(valid)}."
                )
            vars(self)[key] = value
        return self
