"""Parameters of a defence, and of the objects in it."""

from __future__ import annotations

import difflib
import inspect
from contextlib import nullcontext

from sklearn.base import clone

from ..attacks.base import check_attack

#: What the parameters that hold objects expect, and a method that tells it.
_EXPECTED = {
    "head": ("a head such as HypersphereHead(s=10)", "attach"),
    "weight_perturbation": ("an object such as AWP(gamma=0.01)", "applied"),
    "augmentation": ("a function of a batch, or an object such as RandomCropFlip()", "__call__"),
}


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
        return self._nested("adversary")

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
        extra = (k for k in vars(self) if k not in known)
        return {k for k in extra if not k.startswith("_") and not k.endswith("_")}

    def _get_param_names(self):
        return [*self._signature_names(), *sorted(self._params_to_validate)]

    def _validate_params(self):
        unknown = {
            k
            for k in self._params_to_validate
            if k.split("__")[0] not in self.prefixes_ or "__" not in k
        }
        for key in sorted(unknown):
            close = difflib.get_close_matches(
                key, [*self._signature_names(), *(p + "__" for p in self.prefixes_)], n=1
            )
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{type(self).__name__} has no parameter {key!r}.{hint}")

    def get_params(self, deep=True, **kwargs):
        """Return the parameters, those of nested objects included if `deep`."""
        params = super().get_params(deep=deep, **kwargs)
        if deep and self.adversary is None:
            defaults = self.default_adversary().get_params()
            params = {**{f"adversary__{k}": v for k, v in defaults.items()}, **params}
        params.update({k: getattr(self, k) for k in self._params_to_validate})
        return params

    def set_params(self, **params):
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
        acting = ("module", "criterion", "optimizer", "lr", "callbacks", "compile")
        if self.initialized_:
            rest = {k: params.pop(k) for k in list(params) if k.split("__")[0] in acting}
            with self._seeded() if rest.keys() - {"lr"} else nullcontext():
                super().set_params(**rest)
        valid = self._signature_names()
        for key, value in params.items():
            prefix, dunder, _ = key.partition("__")
            if key not in vars(self) and not (dunder and prefix in self.prefixes_):
                raise ValueError(
                    f"Invalid parameter {key!r} for estimator {type(self).__name__}. "
                    f"Valid parameters are: {sorted(valid)}."
                )
            vars(self)[key] = value
        return self
