"""What constructors say to tools that do not run them, and to users who mistype."""

import inspect
import re
import sys
from collections.abc import Callable

import pytest
import torch
from sklearn.base import clone
from torch import nn
from torch.utils.data import DataLoader

import robustsk
from robustsk import AWP, PGD, BaseDefense, HypersphereHead, MMCHead, TRADESClassifier, models
from robustsk._discovery import all_attacks, all_defenses
from robustsk._shared import public_classes
from robustsk.attacks import _parameters as of_attacks
from robustsk.attacks.base import BaseAttack
from robustsk.attacks.multi_objective import _parameters as of_several_objectives
from robustsk.defenses import _parameters as of_defenses
from robustsk.defenses._nested import _OF_SKORCH as OF_SKORCH
from robustsk.defenses._parameters import NestedDefenseParameters
from robustsk.ensembles import _parameters as of_ensembles
from robustsk.models.registry import MODELS

ATTACKS = [*all_attacks(), *public_classes(robustsk.training, BaseAttack)]
DEFENSES = all_defenses()
NESTED = set(NestedDefenseParameters.__annotations__)


def parameters_of(function):
    """Return the parameters that can be given by their names, but for the first."""
    parameters = list(inspect.signature(function).parameters.values())
    return {p.name: p for p in parameters[1:] if p.kind is p.KEYWORD_ONLY}


def own_names(function):
    code = function.__code__
    return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])


def typed_dict(cls):
    """Return the TypedDict behind ``**common``."""
    name = re.fullmatch(r"Unpack\[(\w+)\]", cls.__init__.__annotations__["common"])[1]
    places = (of_attacks, of_several_objectives, of_defenses, of_ensembles)
    return next(vars(m)[name] for m in places if name in vars(m))


# --- what type checkers and editors see ----------------------------------------------


@pytest.mark.parametrize("cls", [*ATTACKS, *DEFENSES])
def test_everything_behind_common_is_typed(cls):
    own = own_names(cls.__init__)
    assert own <= {*cls.__init__.__annotations__, "self"}
    shared = {n: p for n, p in parameters_of(cls.__init__).items() if n not in own}
    known = typed_dict(cls).__annotations__
    assert {n: p.annotation for n, p in shared.items()} == {
        n: t.__forward_arg__ for n, t in known.items() if "__" not in n and n not in OF_SKORCH
    }
    assert known.keys() >= set(OF_SKORCH if issubclass(cls, BaseDefense) else ())


@pytest.mark.parametrize("cls", DEFENSES)
def test_parameters_of_what_is_nested_by_default_are_typed(cls):
    known = typed_dict(cls).__annotations__
    assert known.keys() >= NESTED
    inside = {"adversary": cls().default_adversary().get_params(deep=False)}
    inside["adversary"].pop("estimator")
    for prefix in set(cls.prefixes_) - set(BaseDefense.prefixes_):
        assert any(name.startswith(f"{prefix}__") for name in known)
    for prefix, names in inside.items():
        assert {f"{prefix}__{name}" for name in names} <= known.keys()


def of(prefix):
    return {name.removeprefix(f"{prefix}__") for name in NESTED if name.startswith(f"{prefix}__")}


def names_in(*functions):
    return {name for f in functions for name in inspect.signature(f).parameters}


def test_parameters_of_nested_objects_are_typed():
    """And there are no others, at least not where they are all our own."""
    assert of("head") == names_in(HypersphereHead, MMCHead)
    assert of("weight_perturbation") == names_in(AWP)
    assert of("augmentation") == names_in(robustsk.RandomCropFlip, robustsk.Cutout)
    networks = public_classes(models, models.BaseNetwork)
    assert of("module") == names_in(*MODELS.values(), *networks) - {"input_shape", "n_classes"}
    projection = typed_dict(robustsk.ASCLClassifier).__annotations__.keys() - NESTED
    assert {f"projection__{n}" for n in names_in(models.ProjectionHead) - {"in_features"}} == {
        name for name in projection if "__" in name
    }


@pytest.mark.parametrize(
    ("prefix", "makers"),
    [
        ("criterion", [nn.CrossEntropyLoss]),
        ("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop]),
        ("iterator_train", [DataLoader]),
        ("iterator_valid", [DataLoader]),
        ("compile", [torch.compile]),
    ],
)
def test_typed_parameters_of_torch_exist(prefix, makers):
    assert of(prefix) - {"param_groups"} <= names_in(*makers)  # which skorch takes out


def test_adversaries_have_their_types():
    for name in of("adversary"):
        types = {
            p.annotation
            for cls in ATTACKS
            if (p := inspect.signature(cls.__init__).parameters.get(name)) is not None
        }
        assert (
            NestedDefenseParameters.__annotations__[f"adversary__{name}"].__forward_arg__ in types
        )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is of Python 3.11")
@pytest.mark.parametrize(
    "function",
    [
        BaseAttack.perturb,
        BaseAttack.generate,
        BaseDefense.perturb,
        robustsk.load_digits_images,
        robustsk.load_image_folder,
        robustsk.fetch_mnist,
        robustsk.fetch_cifar10,
        robustsk.fetch_cifar100,
        robustsk.robustness_report,
        robustsk.wrm_certificate,
    ],
)
def test_overloads_have_all_parameters(function):
    from typing import get_overloads

    def named(f):
        found = {}
        for name, p in inspect.signature(f).parameters.items():
            if p.kind is p.VAR_KEYWORD:
                options = re.fullmatch(r"Unpack\[(\w+)\]", p.annotation)[1]
                home = sys.modules[f.__module__]
                options = getattr(home, options, None) or getattr(of_attacks, options)
                found.update((n, t.__forward_arg__) for n, t in options.__annotations__.items())
            else:
                found[name] = p.annotation
        return found

    overloads = get_overloads(function)
    assert len(overloads) == 2
    whole = named(function)
    for overload in overloads:
        types = named(overload)
        assert types.keys() == whole.keys()
        different = {n for n in types if types[n] not in (whole[n], f"Required[{whole[n]}]")}
        # no types but those of the overloads: of BaseDefense.perturb
        assert len(different) == 1 or set(whole.values()) == {inspect.Parameter.empty}


# --- what mistypes are told ----------------------------------------------------------


def message(cls, name, **given):
    with pytest.raises(TypeError) as caught:
        cls(**given, **{name: 1})
    return str(caught.value)


def transposed(name):
    middle = len(name) // 2
    return name[: middle - 1] + name[middle] + name[middle - 1] + name[middle + 1 :]


@pytest.mark.dealt
@pytest.mark.parametrize("cls", [*ATTACKS, *DEFENSES])
def test_a_mistyped_parameter(cls):
    for name in parameters_of(cls.__init__):
        wrong = transposed(name)
        if len(name) < 5 or wrong == name:
            continue
        said = f"{cls.__name__} has no parameter '{wrong}'. Did you mean '{name}'?"
        assert message(cls, wrong) == said
    assert message(cls, "qqqq") == f"{cls.__name__} has no parameter 'qqqq'."


@pytest.mark.parametrize("cls", ATTACKS)
def test_what_other_libraries_call_it(cls):
    assert message(cls, "epsilon").endswith("'epsilon'. Did you mean 'eps'?")
    if "n_steps" in parameters_of(cls.__init__):
        for name in ("steps", "nsteps", "n_step"):
            assert message(cls, name).endswith(f"'{name}'. Did you mean 'n_steps'?")


@pytest.mark.parametrize(
    ("cls", "name", "meant"),
    [
        (PGD, "alpha", "step_size"),
        (PGD, "nb_iter", "n_steps"),
        (PGD, "seed", "random_state"),
        (robustsk.CarliniWagner, "model", "estimator"),
        (TRADESClassifier, "epochs", "max_epochs"),
        (TRADESClassifier, "model", "module"),
        (TRADESClassifier, "seed", "random_state"),
    ],
)
def test_words_of_other_libraries(cls, name, meant):
    assert message(cls, name).endswith(f"'{name}'. Did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (robustsk.FGSM, "steps"),
        (robustsk.HopSkipJump, "steps"),
        (TRADESClassifier, "projection__bias"),
        (robustsk.StaticEnsembleATClassifier, "n_member"),
    ],
)
def test_no_hint_where_nothing_is_alike(cls, name):
    # a few letters in common with a short or a nested name are a coincidence
    assert message(cls, name) == f"{cls.__name__} has no parameter '{name}'."


def test_a_parameter_may_have_the_name_of_what_the_base_refuses():
    class Own(PGD):
        def __init__(self, estimator=None, *, unknown=4, **common):
            super().__init__(estimator, **common)
            self.unknown = unknown

    assert clone(Own(unknown=2)).unknown == 2


@pytest.mark.dealt
@pytest.mark.parametrize("cls", DEFENSES)
def test_a_parameter_of_the_adversary(cls):
    for name in cls().default_adversary().get_params(deep=False):
        if name not in inspect.signature(cls).parameters and name != "estimator":
            said = f"{cls.__name__} has no parameter '{name}'. Did you mean 'adversary__{name}'?"
            assert message(cls, name) == said


@pytest.mark.dealt
@pytest.mark.parametrize("cls", DEFENSES)
def test_a_mistyped_prefix(cls):
    for name in ("advresary__eps", "attack__eps", "adversary_eps"):
        said = f"{cls.__name__} has no parameter '{name}'. Did you mean 'adversary__eps'?"
        assert message(cls, name) == said


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("beta_", {}, "beta"),
        ("weight_decay", {}, "optimizer__weight_decay"),
        ("momentum", {"optimizer": torch.optim.SGD}, "optimizer__momentum"),
        ("label_smoothing", {}, "criterion__label_smoothing"),
        ("shuffle", {}, "iterator_train__shuffle"),
        ("hidden_sizes", {}, "module__hidden_sizes"),
        ("dropout", {"module": "wide_resnet_28_10"}, "module__dropout"),
        ("bias", {"module": nn.Linear}, "module__bias"),
        ("bias", {"module": nn.Linear(2, 2)}, "module__bias"),
        ("gamma", {"weight_perturbation": AWP()}, "weight_perturbation__gamma"),
        ("m", {"head": HypersphereHead()}, "head__m"),
        ("rho", {"adversary": robustsk.APGD()}, "adversary__rho"),
        ("optimiser__weight_decay", {}, "optimizer__weight_decay"),
        ("epochs", {}, "max_epochs"),
        ("model", {}, "module"),
    ],
)
def test_a_parameter_of_something_nested(name, given, hint):
    assert message(TRADESClassifier, name, **given).endswith(f"Did you mean '{hint}'?")


def test_a_parameter_of_the_attack_inside():
    assert message(robustsk.EOT, "n_steps").endswith("Did you mean 'attack=PGD(n_steps=...)'?")
    said = message(robustsk.MultiTargeted, "rho", attack=robustsk.APGD())
    assert said.endswith("Did you mean 'attack=APGD(rho=...)'?")


def test_several_mistakes():
    """The first is named."""
    with pytest.raises(TypeError, match="'betta'"):
        TRADESClassifier(adversary__eps=0.1, betta=3, advresary__eps=1)


@pytest.mark.parametrize("cls", [*ATTACKS, *DEFENSES])
def test_what_is_right_passes(cls):
    params = cls().get_params(deep=False)
    assert clone(cls(**params)).get_params(deep=False).keys() == params.keys()


class Needy(TRADESClassifier):
    """One that cannot be made without a parameter of its own."""

    def __init__(self, module=None, *, need, **common):
        super().__init__(module, **common)
        self.need = need


class Mistaken(robustsk.FATClassifier):
    """One that passes on what nobody knows."""

    def __init__(self, module=None, **common):
        super().__init__(module, taau=1, **common)


class OwnPart(TRADESClassifier):
    """One that has a part of its own, as in skorch."""

    def initialize_module(self):
        super().initialize_module()
        self.teacher_ = nn.Linear(4, self.get_params_for("teacher").get("width", 1))
        return self


def test_subclasses_of_users():
    assert message(Needy, "bta", need=1) == "Needy has no parameter 'bta'. Did you mean 'beta'?"
    with pytest.raises(TypeError, match=r"Mistaken has no parameter 'taau'. Did you mean 'tau'"):
        Mistaken()
    clf = OwnPart(teacher__width=3, input_shape=(4,), classes=[0, 1])
    assert clone(clf).initialize().teacher_.out_features == 3
    with pytest.raises(TypeError, match=r"'techer__width'"):
        OwnPart(techer__width=3, input_shape=(4,), classes=[0, 1]).initialize()


def test_subclasses_have_the_whole_signature():
    class Own(PGD):
        def __init__(self, estimator=None, *, mine: Callable | None = None, **common):
            super().__init__(estimator, **common)
            self.mine = mine

    assert parameters_of(Own.__init__).keys() == {"mine", *parameters_of(PGD.__init__)}
    assert message(Own, "mines") == "Own has no parameter 'mines'. Did you mean 'mine'?"
    assert not any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(BaseAttack).parameters.values()
    )


@pytest.mark.parametrize("cls", [*ATTACKS, *DEFENSES])
def test_names_can_be_completed_before_anything_is_fitted(cls):
    # newer versions of scikit-learn look at every attribute for it
    names = [name for name in dir(cls) if not name.startswith("_")]
    new = cls()
    assert all(isinstance(hasattr(new, name), bool) for name in names)
    assert "fit" in dir(new)
