"""Adversarial robustness as an ordinary part of scikit-learn work.

Everything that is typed often can be imported from here; it is loaded when it
is first used.
"""

import importlib

__version__ = "0.1.0"

_HOME = {
    "attacks": [
        "APGD",
        "AdversarialAugmentation",
        "AutoAttack",
        "BIM",
        "BPDA",
        "BoundaryAttack",
        "BrendelBethge",
        "CarliniWagner",
        "DRA",
        "DeepFool",
        "DynamicPGD",
        "EAD",
        "EOT",
        "FAB",
        "FGSM",
        "FeatureScatter",
        "FriendlyPGD",
        "GeometryAwarePGD",
        "HopSkipJump",
        "JSMA",
        "LBFGS",
        "LocalSearch",
        "MIM",
        "MultiTargeted",
        "NES",
        "PGD",
        "SPSA",
        "ScaledPGD",
        "SquareAttack",
        "TAMOO",
        "TransferAttack",
        "TransformTAMOO",
        "UniversalPerturbation",
        "UniversalTAMOO",
        "ZOO",
        "register_converter",
    ],
    "datasets": ["fetch_cifar10", "fetch_cifar100", "fetch_mnist", "load_digits_images"],
    "defenses": [
        "ADRClassifier",
        "ALPClassifier",
        "ASCLClassifier",
        "AdversarialFineTuneClassifier",
        "AdversarialRegularizationClassifier",
        "CurriculumATClassifier",
        "DynamicATClassifier",
        "FATClassifier",
        "FGSMATClassifier",
        "FastATClassifier",
        "FeatureScatterClassifier",
        "FreeATClassifier",
        "GAIRATClassifier",
        "MAILClassifier",
        "MARTClassifier",
        "MMCClassifier",
        "MixedATClassifier",
        "PGDATClassifier",
        "PretrainTuneClassifier",
        "RegularizedATClassifier",
        "RobustSelfTrainingClassifier",
        "SPATClassifier",
        "StandardClassifier",
        "SupervisedContrastiveClassifier",
        "TRADESClassifier",
        "UDRAWPClassifier",
        "UDRMARTClassifier",
        "UDRPGDClassifier",
        "UDRTRADESClassifier",
        "WRMClassifier",
    ],
    "detection": ["EntropyDetector"],
    "ensembles": [
        "EnsembleADP",
        "EnsembleAT",
        "EnsembleCCE",
        "EnsembleDVERGE",
        "EnsembleGAL",
        "EnsembleTRS",
        "StaticEnsembleATClassifier",
    ],
    "inspection": [
        "GradientCosineDisplay",
        "HardClassPairAnalysis",
        "MinNormDisplay",
        "RobustnessCurveDisplay",
        "SecureRegionsDisplay",
        "TaskTraceDisplay",
        "TrainingCurveDisplay",
        "TransferabilityDisplay",
    ],
    "losses": [],
    "metrics": [
        "MostRobust",
        "attack_success_rate",
        "adversary_profile",
        "class_pair_gradients",
        "class_pair_shares",
        "generalization_gap",
        "half_accuracy_eps",
        "joint_success_rates",
        "make_adversarial_scorer",
        "match_attack_strength",
        "mean_perturbation",
        "perturbation_profile",
        "red_flags",
        "robust_accuracy",
        "robustness_report",
        "score_adversarial",
        "secure_regions",
        "transferability_matrix",
    ],
    "models": ["HypersphereHead", "MMCHead", "get_model", "list_models"],
    "training": ["AWP", "RobustEarlyStopping", "UDRAdversary", "WeightAveraging"],
}
_WHERE = {name: package for package, names in _HOME.items() for name in names}

__all__ = sorted([*_HOME, *_WHERE, "__version__"])


def __getattr__(name):
    if name in _HOME:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _WHERE:
        value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
