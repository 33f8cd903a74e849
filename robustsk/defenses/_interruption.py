"""What becomes of a training that Ctrl-C has cut short."""

from __future__ import annotations

import sys
import warnings

from .._interrupts import noted

#: Packages that train models in order to compare or to join them, and go on after one.
_GO_ON = (
    "sklearn", "imblearn", "joblib", "hyperopt", "mlxtend", "optuna", "skopt",
    "robustsk.attacks", "robustsk.evaluation",
)  # fmt: skip
#: What in them only passes a call on.
_PASS_ON = (
    "sklearn.base", "sklearn.pipeline", "sklearn.utils", "imblearn.base", "imblearn.pipeline",
    "imblearn.utils",
)  # fmt: skip


class Interruption:
    """What a defence does when its training is interrupted."""

    #: Where the training was cut, None where it was not.
    interrupted_ = None

    def fit_loop(self, X, y=None, epochs=None, **fit_params):
        """Train; called by skorch, which takes an interrupt for the end of the training."""
        with noted() as arrived:
            try:
                return super().fit_loop(X, y, epochs, **fit_params)
            except KeyboardInterrupt:
                # callbacks raise it as well to end a training, between two epochs
                if arrived or not self._is_between_epochs():
                    self.interrupted_ = self._place()
                raise

    def _is_between_epochs(self):
        return bool(self.history_) and "train_batch_count" in self.history_[-1]

    def _place(self):
        batches = self.history_[-1]["batches"] if self.history_ else []
        done = sum("train_loss" in batch for batch in batches)
        return {"epoch": len(self.history_ or []), "batch": done}

    def _tell_interrupt(self):
        """Say that and where the training was cut, unless the interrupt is meant for the caller.

        A search would take what has been half trained for a candidate like the others.
        """
        if self.interrupted_ is None:
            return
        for module, caller in _callers():
            if caller is not self and isinstance(caller, Interruption):
                return  # this was a part of another training, which tells of itself
            if _is_in(module, _GO_ON) and not _is_in(module, _PASS_ON):
                raise KeyboardInterrupt
        warnings.warn(
            "The training of {} was interrupted in epoch {epoch}, after {batch} batches of it. The "
            "model can be used as it is; partial_fit goes on from there, fit begins "
            "anew.".format(type(self).__name__, **self.interrupted_),
            UserWarning,
            stacklevel=4,
        )


def _callers():
    """Yield the module and the object of each frame that waits for the training."""
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_globals.get("__name__") or "", frame.f_locals.get("self")
        frame = frame.f_back


def _is_in(module, packages):
    return any(module == p or module.startswith(f"{p}.") for p in packages)
