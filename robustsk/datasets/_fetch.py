"""MNIST, CIFAR-10 and CIFAR-100: found on disk or downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import numpy as np
from sklearn.utils import Bunch

from ._base import (
    DATA_HOME_VARIABLE,
    data_home_path,
    get_data_home,
    pixels_to_float,
    pixels_to_memmap,
)
from ._formats import cifar_names_reader, cifar_part_reader, read_mnist_part

if TYPE_CHECKING:
    from typing_extensions import Unpack

_SUBSETS = ("train", "test", "all")


@dataclass(frozen=True)
class _DataSet:
    """What the common code has to know about one data set.

    Attributes
    ----------
    name, title : str
        Short name, which is also that of the fetcher, and name for people.
    torchvision_class : str
        The class of ``torchvision.datasets`` that downloads it.
    subfolders : tuple of str
        Folders below the data home in which the files may lie; "" is the data home.
    files : dict of str to tuple of str
        File names of the "train" and the "test" part.
    shared_files : tuple of str
        File names needed for either part.
    variants : callable
        Gives, for a file name, the names it may have on disk.
    read_part : callable
        Reads the files of one part: paths to (uint8 images, int64 labels).
    read_names : callable
        Reads the shared files: paths to the list of class names.
    files_note : str
        What to tell people about the file names.
    descr : str
        Description of the data set.
    """

    name: str
    title: str
    torchvision_class: str
    subfolders: tuple[str, ...]
    files: dict[str, tuple[str, ...]]
    shared_files: tuple[str, ...]
    variants: Callable[[str], tuple[str, ...]]
    read_part: Callable[[Sequence[Path]], tuple[np.ndarray, np.ndarray]]
    read_names: Callable[[Sequence[Path]], list[str]]
    files_note: str
    descr: str


class _Options(TypedDict, total=False):
    """What all of these functions take, for their overloads."""

    data_home: str | os.PathLike | None
    subset: str
    download_if_missing: bool
    memory_map: bool
    as_flat: bool


def _fetch(
    dataset: _DataSet,
    *,
    data_home: str | os.PathLike | None,
    subset: str,
    return_X_y: bool,
    download_if_missing: bool,
    memory_map: bool,
    as_flat: bool,
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    if subset not in _SUBSETS:
        raise ValueError(f"subset must be 'train', 'test' or 'all', got {subset!r}.")
    part_names = ("train", "test") if subset == "all" else (subset,)
    needed = [name for part in part_names for name in dataset.files[part]]
    needed += dataset.shared_files

    home = data_home_path(data_home)
    found = _find(dataset, home, needed)
    if found is None and download_if_missing:
        _download(dataset, home, needed)
        found = _find(dataset, home, needed)
    if found is None:
        raise OSError(_missing_message(dataset, home, needed, "was not found"))
    folder, paths = found

    images, labels = [], []
    for part in part_names:
        part_images, part_labels = dataset.read_part([paths[name] for name in dataset.files[part]])
        images.append(part_images)
        labels.append(part_labels)
    if len({part.shape[1:] for part in images}) > 1:
        raise ValueError(
            f"The train and test images of {dataset.title} in {folder} differ in size: "
            + " and ".join(" x ".join(map(str, part.shape[2:])) for part in images)
            + " pixels. Read them one by one, with subset='train' and subset='test'."
        )
    target = np.concatenate(labels)
    target_names = np.array(dataset.read_names([paths[name] for name in dataset.shared_files]))
    if len(target) and not 0 <= target.min() <= target.max() < len(target_names):
        raise ValueError(
            f"The labels in {folder} go from {target.min()} to {target.max()}, but {dataset.title} "
            f"has the {len(target_names)} classes 0 to {len(target_names) - 1}. These seem to be "
            "the files of another data set."
        )

    if memory_map:
        data = pixels_to_memmap(images, stem=f"{dataset.name}-{subset}", folder=folder)
    else:
        data = pixels_to_float(images)
    if as_flat:
        data = data.reshape(len(data), prod(data.shape[1:]))
    if return_X_y:
        return data, target
    return Bunch(data=data, target=target, target_names=target_names, DESCR=dataset.descr)


def _candidates(dataset: _DataSet, home: Path) -> list[Path]:
    return [home / subfolder for subfolder in dataset.subfolders]


def _look(dataset: _DataSet, folder: Path, needed: Sequence[str]) -> dict[str, Path]:
    """Return those of the needed files that lie in the folder, by name."""
    found = {}
    for name in needed:
        for variant in dataset.variants(name):
            if (folder / variant).is_file():
                found[name] = folder / variant
                break
    return found


def _find(
    dataset: _DataSet, home: Path, needed: Sequence[str]
) -> tuple[Path, dict[str, Path]] | None:
    """Return the first folder that holds all needed files, and their paths by name."""
    for folder in _candidates(dataset, home):
        paths = _look(dataset, folder, needed)
        if len(paths) == len(needed):
            return folder, paths
    return None


def _download(dataset: _DataSet, home: Path, needed: Sequence[str]) -> None:
    import torchvision.datasets

    try:
        get_data_home(home)
        getattr(torchvision.datasets, dataset.torchvision_class)(str(home), download=True)
    except Exception as error:
        # No network, a full disk, a server that answers with something else, an archive cut short:
        # these come as errors of many types, and all mean the same to the caller.
        problem = f"was not found and could not be downloaded ({type(error).__name__}: {error})"
        raise OSError(_missing_message(dataset, home, needed, problem)) from error


def _missing_message(dataset: _DataSet, home: Path, needed: Sequence[str], problem: str) -> str:
    lines = [f"{dataset.title} {problem}.", "Folders looked in:"]
    for folder in _candidates(dataset, home):
        if not folder.is_dir():
            lines.append(f"  {folder}: no such folder")
            continue
        found = _look(dataset, folder, needed)
        missing = [name for name in needed if name not in found]
        if not found:
            lines.append(f"  {folder}: none of the files")
        else:
            lines.append(f"  {folder}: lacks {', '.join(missing)}")
    lines += [
        f"Files needed, all in one of these folders: {', '.join(needed)}{dataset.files_note}.",
        f"Call fetch_{dataset.name}(data_home=..., download_if_missing=True) where there is a "
        "network connection, or put the files into one of these folders by hand. Without "
        f"`data_home`, the folder is that of the environment variable {DATA_HOME_VARIABLE} or "
        "~/robustsk_data.",
    ]
    return "\n".join(lines)


# --- MNIST -----------------------------------------------------------------------------------


def _mnist_variants(name: str) -> tuple[str, ...]:
    # Some copies in circulation have a dot in place of the hyphen before "idx".
    dotted = name.replace("-idx", ".idx")
    return (name, f"{name}.gz", dotted, f"{dotted}.gz")


_MNIST = _DataSet(
    name="mnist",
    title="MNIST",
    torchvision_class="MNIST",
    subfolders=("", "MNIST/raw", "raw"),
    files={
        "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    },
    shared_files=(),
    variants=_mnist_variants,
    read_part=read_mnist_part,
    read_names=lambda paths: [str(digit) for digit in range(10)],
    files_note=" (each as it is or with .gz at the end)",
    descr="""\
MNIST: handwritten digits

60 000 training and 10 000 test images of 28 x 28 grey pixels, of the digits 0 to 9. Pixel values
are divided by 255, so that they are in [0, 1]; 0 is the background.

Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86(11), 1998.
""",
)


@overload
def fetch_mnist(*, return_X_y: Literal[False] = False, **options: Unpack[_Options]) -> Bunch: ...


@overload
def fetch_mnist(
    *, return_X_y: Literal[True], **options: Unpack[_Options]
) -> tuple[np.ndarray, np.ndarray]: ...


def fetch_mnist(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    return_X_y: bool = False,
    download_if_missing: bool = True,
    memory_map: bool = False,
    as_flat: bool = False,
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the MNIST digits, downloading them if necessary.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder of the data; see :func:`get_data_home` for the default. The files
        ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
        ``t10k-labels-idx1-ubyte``, plain or with ``.gz``, may lie in the folder itself, or in
        ``MNIST/raw`` below it, where torchvision keeps them.
    subset : {"train", "test", "all"}, default="train"
        The part to load; "all" is the training set followed by the test set.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    download_if_missing : bool, default=True
        Download missing files with torchvision. If False, missing files raise an OSError.
    memory_map : bool, default=False
        Keep the images in a file and load only what is used of them. See Notes.
    as_flat : bool, default=False
        Return each image as a row of 784 values.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the following attributes.

        data : ndarray of float32, shape (n_samples, 1, 28, 28), or (n_samples, 784) with `as_flat`
            The images, in the order of the files, with values in [0, 1]. There are 60 000 in the
            training set and 10 000 in the test set. A read-only memmap with `memory_map`.
        target : ndarray of int64, shape (n_samples,)
            The digits, 0 to 9.
        target_names : ndarray of str, shape (10,)
            Names of the classes.
        DESCR : str
            Description of the data set.
    (data, target) : tuple of ndarray, if `return_X_y`
        The arrays described above.

    Raises
    ------
    OSError
        If files are missing and are not, or cannot be, downloaded; or if `memory_map` finds no
        folder that it can write to.
    ValueError
        If `subset` is unknown or a file is damaged or of another format.

    Notes
    -----
    With ``memory_map=True`` the float32 images are written once to a ``.npy`` file next to the
    data or, where that folder is read-only, in the default data home, and mapped from there. The
    name of the file holds a hash of the pixels: changed data gets a new file.

    Examples
    --------
    >>> from robustsk.datasets import fetch_mnist
    >>> X, y = fetch_mnist(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (10000, 1, 28, 28)
    """
    return _fetch(
        _MNIST,
        data_home=data_home,
        subset=subset,
        return_X_y=return_X_y,
        download_if_missing=download_if_missing,
        memory_map=memory_map,
        as_flat=as_flat,
    )


# --- CIFAR -----------------------------------------------------------------------------------


_CIFAR10 = _DataSet(
    name="cifar10",
    title="CIFAR-10",
    torchvision_class="CIFAR10",
    subfolders=("", "cifar-10-batches-py"),
    files={
        "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
        "test": ("test_batch",),
    },
    shared_files=("batches.meta",),
    variants=lambda name: (name,),
    read_part=cifar_part_reader("labels"),
    read_names=cifar_names_reader("label_names"),
    files_note=" (the content of cifar-10-python.tar.gz)",
    descr="""\
CIFAR-10: small photographs of ten kinds of things

50 000 training and 10 000 test images of 32 x 32 pixels with the channels red, green and blue, of
10 classes of equal size. Pixel values are divided by 255, so that they are in [0, 1].

A. Krizhevsky, "Learning multiple layers of features from tiny images", technical report,
University of Toronto, 2009.
""",
)

_CIFAR100 = _DataSet(
    name="cifar100",
    title="CIFAR-100",
    torchvision_class="CIFAR100",
    subfolders=("", "cifar-100-python"),
    files={"train": ("train",), "test": ("test",)},
    shared_files=("meta",),
    variants=lambda name: (name,),
    read_part=cifar_part_reader("fine_labels"),
    read_names=cifar_names_reader("fine_label_names"),
    files_note=" (the content of cifar-100-python.tar.gz)",
    descr="""\
CIFAR-100: small photographs of a hundred kinds of things

50 000 training and 10 000 test images of 32 x 32 pixels with the channels red, green and blue, of
100 classes of equal size (the "fine" labels). Pixel values are divided by 255, so that they are in
[0, 1].

A. Krizhevsky, "Learning multiple layers of features from tiny images", technical report,
University of Toronto, 2009.
""",
)


@overload
def fetch_cifar10(*, return_X_y: Literal[False] = False, **options: Unpack[_Options]) -> Bunch: ...


@overload
def fetch_cifar10(
    *, return_X_y: Literal[True], **options: Unpack[_Options]
) -> tuple[np.ndarray, np.ndarray]: ...


def fetch_cifar10(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    return_X_y: bool = False,
    download_if_missing: bool = True,
    memory_map: bool = False,
    as_flat: bool = False,
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the CIFAR-10 images, downloading them if necessary.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder of the data; see :func:`get_data_home` for the default. The files of the Python
        version (``data_batch_1`` to ``data_batch_5``, ``test_batch``, ``batches.meta``) may lie in
        the folder itself, or in ``cifar-10-batches-py`` below it, where torchvision keeps them.
        Files in this format with other content are accepted too.
    subset : {"train", "test", "all"}, default="train"
        The part to load; "all" is the training set followed by the test set.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    download_if_missing : bool, default=True
        Download missing files with torchvision. If False, missing files raise an OSError.
    memory_map : bool, default=False
        Keep the images in a file and load only what is used of them. See Notes.
    as_flat : bool, default=False
        Return each image as a row of 3072 values: the red, the green, then the blue channel.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the following attributes.

        data : ndarray of float32, shape (n_samples, 3, 32, 32), or (n_samples, 3072) with `as_flat`
            The images, in the order of the files, with values in [0, 1]. There are 50 000 in the
            training set and 10 000 in the test set. A read-only memmap with `memory_map`.
        target : ndarray of int64, shape (n_samples,)
            The classes, 0 to 9.
        target_names : ndarray of str, shape (10,)
            Names of the classes.
        DESCR : str
            Description of the data set.
    (data, target) : tuple of ndarray, if `return_X_y`
        The arrays described above.

    Raises
    ------
    OSError
        If files are missing and are not, or cannot be, downloaded; or if `memory_map` finds no
        folder that it can write to.
    ValueError
        If `subset` is unknown or a file is damaged or of another format.

    Notes
    -----
    With ``memory_map=True`` the float32 images, 614 MB for the training set, are written once to a
    ``.npy`` file next to the data or, where that folder is read-only, in the default data home,
    and mapped from there. The name of the file holds a hash of the pixels: changed data gets a new
    file.

    The files are pickles. They are read by an unpickler that accepts arrays and plain values only.

    Examples
    --------
    >>> from robustsk.datasets import fetch_cifar10
    >>> X, y = fetch_cifar10(memory_map=True, return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (50000, 3, 32, 32)
    """
    return _fetch(
        _CIFAR10,
        data_home=data_home,
        subset=subset,
        return_X_y=return_X_y,
        download_if_missing=download_if_missing,
        memory_map=memory_map,
        as_flat=as_flat,
    )


@overload
def fetch_cifar100(*, return_X_y: Literal[False] = False, **options: Unpack[_Options]) -> Bunch: ...


@overload
def fetch_cifar100(
    *, return_X_y: Literal[True], **options: Unpack[_Options]
) -> tuple[np.ndarray, np.ndarray]: ...


def fetch_cifar100(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    return_X_y: bool = False,
    download_if_missing: bool = True,
    memory_map: bool = False,
    as_flat: bool = False,
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load the CIFAR-100 images with their 100 fine labels, downloading them if necessary.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder of the data; see :func:`get_data_home` for the default. The files of the Python
        version (``train``, ``test``, ``meta``) may lie in the folder itself, or in
        ``cifar-100-python`` below it, where torchvision keeps them. Files in this format with
        other content are accepted too.
    subset : {"train", "test", "all"}, default="train"
        The part to load; "all" is the training set followed by the test set.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    download_if_missing : bool, default=True
        Download missing files with torchvision. If False, missing files raise an OSError.
    memory_map : bool, default=False
        Keep the images in a file and load only what is used of them. See Notes.
    as_flat : bool, default=False
        Return each image as a row of 3072 values: the red, the green, then the blue channel.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the following attributes.

        data : ndarray of float32, shape (n_samples, 3, 32, 32), or (n_samples, 3072) with `as_flat`
            The images, in the order of the files, with values in [0, 1]. There are 50 000 in the
            training set and 10 000 in the test set. A read-only memmap with `memory_map`.
        target : ndarray of int64, shape (n_samples,)
            The classes, 0 to 99.
        target_names : ndarray of str, shape (100,)
            Names of the classes.
        DESCR : str
            Description of the data set.
    (data, target) : tuple of ndarray, if `return_X_y`
        The arrays described above.

    Raises
    ------
    OSError
        If files are missing and are not, or cannot be, downloaded; or if `memory_map` finds no
        folder that it can write to.
    ValueError
        If `subset` is unknown or a file is damaged or of another format.

    Notes
    -----
    With ``memory_map=True`` the float32 images, 614 MB for the training set, are written once to a
    ``.npy`` file next to the data or, where that folder is read-only, in the default data home,
    and mapped from there. The name of the file holds a hash of the pixels: changed data gets a new
    file.

    The files are pickles. They are read by an unpickler that accepts arrays and plain values only.

    Examples
    --------
    >>> from robustsk.datasets import fetch_cifar100
    >>> X, y = fetch_cifar100(subset="test", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (10000, 3, 32, 32)
    """
    return _fetch(
        _CIFAR100,
        data_home=data_home,
        subset=subset,
        return_X_y=return_X_y,
        download_if_missing=download_if_missing,
        memory_map=memory_map,
        as_flat=as_flat,
    )
