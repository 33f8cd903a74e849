"""Where data sets are kept, and how pixels become float32 arrays."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

DATA_HOME_VARIABLE = "ROBUSTSK_DATA"

_BLOCK_ROWS = 4096


def get_data_home(data_home: str | os.PathLike | None = None) -> str:
    """Return the folder in which robustsk keeps downloaded data sets, and create it.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder to use. With None, it is the folder named by the environment variable
        ``ROBUSTSK_DATA`` or, where that is not set, ``~/robustsk_data``. A leading ``~`` stands for
        the user's home folder.

    Returns
    -------
    data_home : str
        Path of the folder, which exists when the function returns.

    Raises
    ------
    OSError
        If the folder cannot be created.

    See Also
    --------
    sklearn.datasets.get_data_home : The same for the data sets of scikit-learn.

    Examples
    --------
    >>> import os, tempfile
    >>> from robustsk.datasets import get_data_home
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = get_data_home(os.path.join(folder, "data"))
    ...     os.path.isdir(path)
    True
    """
    path = data_home_path(data_home)
    path.mkdir(parents=True, exist_ok=True)
    return str(path)


def data_home_path(data_home: str | os.PathLike | None = None) -> Path:
    """Return the path :func:`get_data_home` stands for, without creating it."""
    if data_home is None:
        # An empty variable counts as not set: it would otherwise mean the working directory.
        data_home = os.environ.get(DATA_HOME_VARIABLE) or os.path.join("~", "robustsk_data")
    return Path(data_home).expanduser()


def pixels_to_float(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Join uint8 image arrays into one float32 array in [0, 1].

    Parameters
    ----------
    parts : sequence of ndarray of uint8, each of shape (n_i, c, h, w)
        Images; all parts have the same c, h and w.

    Returns
    -------
    images : ndarray of float32, shape (sum of n_i, c, h, w)
        The pixel values divided by 255.
    """
    images = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=np.float32)
    start = 0
    for part in parts:
        stop = start + len(part)
        np.divide(part, np.float32(255), out=images[start:stop])
        start = stop
    return images


def pixels_to_memmap(
    parts: Sequence[np.ndarray], *, stem: str, folder: str | os.PathLike
) -> np.ndarray:
    """Return what :func:`pixels_to_float` returns, as a memory-mapped file.

    The file is named after a hash of the pixels, so a file made from other data is never mistaken
    for this one. It is looked for, and otherwise written, in `folder` or, where that cannot be
    written to, in the default data home.

    Parameters
    ----------
    parts : sequence of ndarray of uint8, each of shape (n_i, c, h, w)
        Images; all parts have the same c, h and w.
    stem : str
        What the file name starts with.
    folder : str or path-like
        The folder that is tried first.

    Returns
    -------
    images : memmap of float32, shape (sum of n_i, c, h, w)
        Read-only.

    Raises
    ------
    OSError
        If neither folder can be written to, or the disk is full.
    """
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part))
    name = f"{stem}-float32-{digest.hexdigest()}.npy"

    folders = [Path(folder)]
    if data_home_path() != folders[0]:
        folders.append(data_home_path())
    for candidate in folders:
        images = _open_memmap(candidate / name, shape)
        if images is not None:
            return images

    refusals = []
    for number, candidate in enumerate(folders):
        # A reader must never see a half-written file, also when several processes start at once:
        # each writes a file of its own and then renames it.
        temporary = candidate / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            if number > 0:
                candidate.mkdir(parents=True, exist_ok=True)
            _refuse_read_only(candidate)
            stream = open(temporary, "xb")  # noqa: SIM115 - closed by the with below
        except OSError as error:
            refusals.append(f"  {candidate}: {error.strerror or error}")
            continue
        try:
            with stream:
                _write_npy(stream, parts, shape)
            os.replace(temporary, candidate / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return np.load(candidate / name, mmap_mode="r")

    raise OSError(
        "memory_map=True needs a folder in which the float32 copy of the images can be kept, and "
        "none of these can be written to:\n"
        + "\n".join(refusals)
        + f"\nSet the environment variable {DATA_HOME_VARIABLE} to a folder you can write to, or "
        "use memory_map=False."
    )


def _open_memmap(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map an existing ``.npy`` file, or return None where it is missing or unfit."""
    try:
        images = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if images.shape != shape or images.dtype != np.float32:
        return None
    return images


def _refuse_read_only(folder: Path) -> None:
    """Raise PermissionError for a folder in which nobody is meant to write."""
    # The superuser may write everywhere, so that opening a file would succeed; a folder without any
    # write permission was made read-only on purpose, and stays as it is.
    mode = folder.stat().st_mode
    if not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(None, "the folder is read-only")


def _write_npy(stream: BinaryIO, parts: Sequence[np.ndarray], shape: tuple[int, ...]) -> None:
    """Write the float32 images block by block, so that they never fill the memory."""
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(np.float32)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(stream, header)
    for part in parts:
        for start in range(0, len(part), _BLOCK_ROWS):
            stream.write(pixels_to_float([part[start : start + _BLOCK_ROWS]]).tobytes())
