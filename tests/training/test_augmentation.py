"""Augmentations of batches of images."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

from robustsk import PGDATClassifier
from robustsk.training import Compose, Cutout, RandomCropFlip


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def numbered(n=200, channels=2, height=5, width=7):
    """Return images whose pixels are all different and above zero."""
    size = channels * height * width
    return (1 + torch.arange(n * size, dtype=torch.float64)).reshape(n, channels, height, width)


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("flip", [False, True])
def test_each_image_is_one_of_the_possible_windows(mode, flip):
    x = numbered()
    out = RandomCropFlip(padding=2, flip=flip, mode=mode)(x)
    found = set()
    for image, result in zip(x.numpy(), out.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode=mode)
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(
                padded[:, top : top + 5, left : left + 7][:, :, :: -1 if mirrored else 1], result
            )
        ]
        assert len(matches) == 1
        found.add(matches[0])
    assert len({m[:2] for m in found}) == 25  # every shift there is
    assert {m[2] for m in found} == ({False, True} if flip else {False})


def test_nothing_to_do():
    x = numbered()
    assert torch.equal(RandomCropFlip(padding=0, flip=False)(x), x)
    assert torch.equal(Cutout(length=0)(x), x)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_square_of_zeros(length):
    x = numbered(n=2000)
    out = Cutout(length, inside=False)(x)
    assert (x > 0).all()  # the batch that was given is not touched
    hole = (out == 0).numpy()
    assert (hole[:, 0] == hole[:, 1]).all()
    assert torch.equal(out[out != 0], x[out != 0])
    rows, columns = hole[:, 0].any(2), hole[:, 0].any(1)
    assert (hole[:, 0] == rows[:, :, None] & columns[:, None, :]).all()
    assert rows.sum(1).max() == columns.sum(1).max() == length
    assert rows.sum(1).min() >= 1  # the centre is inside
    assert hole[:, 0].any(0).all()  # no pixel is spared for ever
    if length == 1:
        assert np.abs(hole[:, 0].mean(0) - 1 / 35).max() < 0.02


@pytest.mark.parametrize("length", [1, 2, 5])
def test_square_inside(length):
    """As in the code of Rice et al.: any place where it fits, each as likely."""
    x = numbered(n=3000)
    out = Cutout(length)(x)
    hole = (out == 0).numpy()[:, 0]
    assert torch.equal(out[out != 0], x[out != 0])
    assert (hole.sum((1, 2)) == length**2).all()
    rows, columns = hole.any(2), hole.any(1)
    assert (hole == rows[:, :, None] & columns[:, None, :]).all()
    for side in (rows, columns):
        assert (side.sum(1) == length).all()
        n_places = side.shape[1] - length + 1
        share = np.bincount(side.argmax(1), minlength=n_places) / len(side)
        assert len(share) == n_places
        assert np.abs(share - 1 / n_places).max() < 0.04
    with pytest.raises(ValueError, match=r"length=6.*5 x 7.*inside=False"):
        Cutout(6)(x)


def test_seed_decides():
    x = numbered()
    augment = Compose([RandomCropFlip(padding=1), Cutout(2)])
    first = augment(x)
    torch.manual_seed(0)
    assert torch.equal(augment(x), first)
    assert not torch.equal(augment(x), first)


def test_modules_compose_as_modules_do():
    x = numbered()
    first = Compose([RandomCropFlip(padding=1), Cutout(2), torch.sqrt])(x)
    torch.manual_seed(0)
    assert torch.equal(nn.Sequential(RandomCropFlip(padding=1), Cutout(2))(x).sqrt(), first)
    copy = clone(RandomCropFlip(padding=3, flip=False))
    assert copy.get_params() == {"padding": 3, "flip": False, "mode": "constant"}
    assert repr(nn.Sequential(copy)[0]) == "RandomCropFlip(flip=False, padding=3)"


def test_in_training():
    rng = np.random.default_rng(0)
    X, y = rng.uniform(size=(24, 1, 8, 8)).astype(np.float32), np.arange(24) % 3

    def fit(augmentation):
        return PGDATClassifier(
            "mlp", module__hidden_sizes=(8,), max_epochs=2, batch_size=8, device="cpu",
            random_state=0, augmentation=augmentation,
        ).fit(X, y)  # fmt: skip

    augment = Compose([RandomCropFlip(padding=1), Cutout(3)])
    a, b, plain = fit(augment), fit(clone(augment)), fit(None)
    np.testing.assert_array_equal(a.predict_proba(X), b.predict_proba(X))
    sequential = fit(nn.Sequential(RandomCropFlip(padding=1), Cutout(3)))
    np.testing.assert_array_equal(a.predict_proba(X), clone(sequential).fit(X, y).predict_proba(X))
    assert not np.allclose(a.predict_proba(X), plain.predict_proba(X))
    clf = clone(plain).set_params(augmentation=Cutout(3), augmentation__length=5).fit(X, y)
    assert clf.augmentation_.length == 5


def test_errors():
    x = numbered()
    for augment in (RandomCropFlip(), Cutout()):
        with pytest.raises(ValueError, match=r"images.*\(20, 4\).*input_shape"):
            augment(torch.zeros(20, 4))
    with pytest.raises(ValueError, match=r"images.*input_shape"):
        PGDATClassifier(augmentation=Cutout(), max_epochs=1).fit(np.eye(20), np.arange(20) % 2)
    with pytest.raises(ValueError, match="padding"):
        RandomCropFlip(padding=-1)(x)
    with pytest.raises(ValueError, match="mode"):
        RandomCropFlip(mode="wrap")(x)
    with pytest.raises(ValueError, match="smaller than either"):
        RandomCropFlip(padding=5, mode="reflect")(x)
    with pytest.raises(ValueError, match="length"):
        Cutout(1.5)(x)
