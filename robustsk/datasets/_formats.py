"""The formats of the files of MNIST and CIFAR, read into arrays."""

from __future__ import annotations

import gzip
import pickle
import zlib
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def _read_idx(path: Path, n_dimensions: int) -> np.ndarray:
    """Read an idx file of unsigned bytes, plain or gzipped."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":  # the mark of gzip; the name of the file may say otherwise
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} is a damaged gzip file ({error}). Get the file again."
            ) from error
    # Two zero bytes, the code of the element type (8 is unsigned byte), the number of dimensions.
    magic = bytes([0, 0, 8, n_dimensions])
    header_size = 4 + 4 * n_dimensions
    if content[:4] != magic or len(content) < header_size:
        raise ValueError(
            f"{path} is not an idx file of unsigned bytes with {n_dimensions} dimension(s): it "
            f"should start with the bytes {magic.hex(' ')}, but starts with "
            f"{content[:4].hex(' ') or 'nothing'}. Get the file again, or check that it was not "
            "given the name of another one."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", n_dimensions, offset=4))
    if len(content) - header_size != prod(shape):
        raise ValueError(
            f"{path} announces {' x '.join(map(str, shape))} = {prod(shape)} bytes of data but "
            f"holds {len(content) - header_size}. Get the file again."
        )
    return np.frombuffer(content, np.uint8, offset=header_size).reshape(shape)


def read_mnist_part(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels in a pair of idx files, of images and of labels."""
    image_path, label_path = paths
    images = _read_idx(image_path, 3)
    labels = _read_idx(label_path, 1)
    if len(images) != len(labels):
        raise ValueError(
            f"{image_path} holds {len(images)} images, but {label_path} holds {len(labels)} "
            "labels. The two files must belong together."
        )
    return images[:, None], labels.astype(np.int64)


def _array_helpers() -> dict[str, Any]:
    """Return the functions with which numpy rebuilds arrays and scalars from a pickle."""
    # Asking numpy for them works for every numpy; the module they live in was renamed in 2.0.
    array = np.zeros(1, np.uint8)
    functions = (
        array.__reduce__()[0],
        array.__reduce_ex__(5)[0],
        np.int64(0).__reduce__()[0],
    )
    return {function.__name__: function for function in functions}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler for files that hold nothing but arrays, numbers, strings, lists and dicts.

    A pickle from elsewhere can name any function to be called while it is read; only those that
    numpy needs for its arrays are accepted here.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module == "_codecs" and name == "encode":  # bytes, in pickles of protocol 2
            return super().find_class(module, name)
        if module.split(".")[0] == "numpy" and name in _array_helpers():
            return _array_helpers()[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")


def _unpickle(stream: BinaryIO) -> dict[str, Any]:
    # The published files were written by Python 2, whose strings come as bytes.
    content = _ArrayUnpickler(stream, encoding="bytes").load()
    return {_text(key): value for key, value in content.items()}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _read_cifar_file(path: Path, *keys: str) -> Any:
    """Return the value of the first of the keys that a CIFAR file has, and all its content."""
    try:
        with path.open("rb") as stream:
            content = _unpickle(stream)
    except OSError:
        raise
    except Exception as error:
        # A file that is no pickle can make the unpickler fail in any way.
        raise ValueError(
            f"{path} is not a file of the Python version of CIFAR ({error}). Get the file again."
        ) from error
    for key in keys:
        if key in content:
            return content[key], content
    raise ValueError(
        f"{path} is not a file of the Python version of CIFAR that is wanted here: it should have "
        f"the key {' or '.join(map(repr, keys))}, but has {sorted(content)}."
    )


def _read_cifar_batch(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    labels, content = _read_cifar_file(path, label_key)
    pixels = content.get("data")
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape != (len(labels), 3 * 32 * 32)
    ):
        given = (
            f"{pixels.dtype} array of shape {pixels.shape}"
            if isinstance(pixels, np.ndarray)
            else type(pixels).__name__
        )
        raise ValueError(
            f"{path} should have, under the key 'data', a uint8 array of shape ({len(labels)}, "
            f"3072) for its {len(labels)} labels, but has: {given}. Get the file again."
        )
    return pixels.reshape(-1, 3, 32, 32), np.asarray(labels, dtype=np.int64)


def cifar_part_reader(
    label_key: str,
) -> Callable[[Sequence[Path]], tuple[np.ndarray, np.ndarray]]:
    """Return a function that reads the images in CIFAR files, and their labels under a key."""

    def read_part(paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = zip(*(_read_cifar_batch(path, label_key) for path in paths), strict=True)
        return np.concatenate(images), np.concatenate(labels)

    return read_part


def cifar_names_reader(key: str) -> Callable[[Sequence[Path]], list[str]]:
    """Return a function that reads the names of classes that a CIFAR file has under a key."""

    def read_names(paths: Sequence[Path]) -> list[str]:
        names, _ = _read_cifar_file(paths[0], key)
        return [_text(name) for name in names]

    return read_names
