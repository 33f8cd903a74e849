"""What users write, about which a type checker has nothing to say; see check_types.py."""

from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn, optim

from robustsk import (
    AWP,
    BPDA,
    DRA,
    EOT,
    FAB,
    PGD,
    TAMOO,
    AutoAttack,
    CarliniWagner,
    EnsembleCCE,
    EntropyDetector,
    HypersphereHead,
    RandomCropFlip,
    SPATClassifier,
    SquareAttack,
    StandardClassifier,
    TRADESClassifier,
    UDRAWPClassifier,
    load_digits_images,
    make_adversarial_scorer,
    robust_accuracy,
    robustness_report,
)

X, y = load_digits_images(return_X_y=True)
rows = load_digits_images(as_flat=True).data
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

# the README
attack = PGD(eps=0.1, n_steps=20, random_state=0)
for clf in StandardClassifier(random_state=0), TRADESClassifier(random_state=0):
    clf.set_params(adversary__eps=0.1).fit(X_train, y_train)
    print(f"{type(clf).__name__:<18} clean {clf.score(X_test, y_test):.2f}", end="  ")
    print(f"under attack {clf.score_adversarial(X_test, y_test, attack):.2f}")


class Net(nn.Module):
    def __init__(self, n_classes: int, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, n_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


# a network of one's own, nested parameters, what `fit` returns
robust = TRADESClassifier(
    Net,
    beta=3,
    lr=0.1,
    optimizer=optim.SGD,
    optimizer__momentum=0.9,
    optimizer__weight_decay=5e-4,
    criterion__label_smoothing=0.1,
    iterator_train__shuffle=True,
    adversary__eps=0.1,
    adversary__n_steps=5,
    classes=range(10),
    device=None,
).fit(X_train, y_train)
accuracy: float = robust.score_adversarial(X_test, y_test)
again = TRADESClassifier(Net(10), input_shape=(1, 8, 8), classes=range(10))
again.set_params(module__width=64, max_epochs=5).initialize().partial_fit(X_train, y_train)

# what takes a parameter of the others under another default
SPATClassifier("small_cnn", head="linear", module__dropout=0.2, weight_perturbation=AWP(0.01))
UDRAWPClassifier(weight_perturbation="awp", weight_perturbation__warmup=2, adversary__tau=0.1)
StandardClassifier(head=HypersphereHead(), head__s=5, augmentation=RandomCropFlip(padding=1))
ensemble = EnsembleCCE(["mlp", Net], mode="detection", adversary=TAMOO(weighting="moo"), verbose=1)
EntropyDetector(ensemble.fit(X_train, y_train)).fit(X_train).predict(X_test)
print(ensemble.estimators_[0].score(X_test, y_test))

# attacks, in every form in which a parameter may be given
FAB(robust, eps=[0.1] * 64, clip=(X.min(axis=0), X.max(axis=0)), target="least_likely")
CarliniWagner(robust, norm="linf", mask=X[0] > 0, n_steps=50, device="cpu")
DRA(robust, proportion=0.2, clip=None, objective=lambda logits, y: logits[:, 0])
X_adv = PGD(robust, eps=0.1, norm=2).fit(X_train).transform(X_test)
X_adv, info = SquareAttack(robust, max_queries=500).generate(X_test, y_test, return_info=True)
print(info["n_queries"].mean(), X_adv.shape)
EOT(robust, attack=PGD(eps=0.1, n_steps=5), n_draws=4).fit(X_train).generate(X_test)
BPDA(robust, attack=attack, backward="identity", eps=0.1)

# within scikit-learn
pipe = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, y)
print(AutoAttack(pipe, eps=0.1, clip=(0, 1), version="fast").evaluate(rows, y))
search = GridSearchCV(
    TRADESClassifier(random_state=0),
    {"adversary__eps": [0.05, 0.1], "beta": [1, 6]},
    scoring=make_adversarial_scorer(attack),
)
search.fit(X_train, y_train)
print(search.best_score_, search.best_params_)
print(robust_accuracy(robust, X_test, y_test, attack).low)
report = robustness_report(robust, X_test, y_test, eps=0.1)
print(report.to_frame(), robustness_report(robust, X_test, y_test, output_dict=True)["rows"])
