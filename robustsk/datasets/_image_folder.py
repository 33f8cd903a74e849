"""Images in one folder per class, on disk or in a tar file."""

from __future__ import annotations

import bisect
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple, TypedDict, overload

import numpy as np
from sklearn.utils import Bunch, check_scalar

from ._base import pixels_to_float

if TYPE_CHECKING:
    from typing_extensions import Unpack

_EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


class _Entry(NamedTuple):
    """An image file that has not been read yet."""

    label: str
    name: str
    open: Callable[[], BinaryIO]


class _FirstByName:
    """The images of one class: all, or the first `limit` in the order of their names.

    The order of the files in a tar file is arbitrary and it is read once, so which images are the
    first is known only at the end; no more than `limit` are held at any time.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.names: list[str] = []
        self.pixels: dict[str, np.ndarray] = {}

    def wants(self, name: str) -> bool:
        full = self.limit is not None and len(self.names) >= self.limit
        return not full or name <= self.names[-1]

    def add(self, name: str, pixels: np.ndarray) -> None:
        if name not in self.pixels:
            bisect.insort(self.names, name)
        # A name that occurs twice in a tar file was updated: the later one counts.
        self.pixels[name] = pixels
        if self.limit is not None and len(self.names) > self.limit:
            del self.pixels[self.names.pop()]


class _Options(TypedDict, total=False):
    """What :func:`load_image_folder` takes, for its overloads."""

    subset: str | None
    size: tuple[int, int] | None
    extensions: Sequence[str]
    max_per_class: int | None
    grayscale: bool


@overload
def load_image_folder(
    path: str | os.PathLike, *, return_X_y: Literal[False] = False, **options: Unpack[_Options]
) -> Bunch: ...


@overload
def load_image_folder(
    path: str | os.PathLike, *, return_X_y: Literal[True], **options: Unpack[_Options]
) -> tuple[np.ndarray, np.ndarray]: ...


def load_image_folder(
    path: str | os.PathLike,
    *,
    subset: str | None = None,
    size: tuple[int, int] | None = None,
    return_X_y: bool = False,
    extensions: Sequence[str] = _EXTENSIONS,
    max_per_class: int | None = None,
    grayscale: bool = False,
) -> Bunch | tuple[np.ndarray, np.ndarray]:
    """Load images from ``<path>/<class name>/<file>``, a folder or a tar file.

    Parameters
    ----------
    path : str or path-like
        A folder, or a tar file (``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz``). A tar file is
        read once from start to end and not extracted.
    subset : str, default=None
        The folder inside `path` that holds the class folders, such as "train" for
        ``train/<class name>/<file>``. May have several levels ("photos/train"). With None, the
        class folders are directly in `path`.
    size : tuple of int (height, width), default=None
        Resize all images to this size. With None, all images must have the same size.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    extensions : sequence of str, default=common image formats
        Endings of the names of image files, whatever the case of the letters; other files are
        left out, and so are files and class folders whose names begin with a dot.
    max_per_class : int, default=None
        Load only the first images of every class, in the order of their names.
    grayscale : bool, default=False
        Convert the images to one channel. With False they are converted to red, green and blue,
        also where they are grey. Transparency is dropped.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object with the following attributes.

        data : ndarray of float32, shape (n_samples, n_channels, height, width)
            The images, with values in [0, 1], ordered by class name, then by file name;
            `n_channels` is 3, or 1 with `grayscale`.
        target : ndarray of str, shape (n_samples,)
            The class of every image: the name of its folder.
        target_names : ndarray of str, shape (n_classes,)
            The class names in sorted order. Folders without images do not count.
        filenames : ndarray of str, shape (n_samples,)
            ``<class name>/<file>`` of every image.
        DESCR : str
            Description of what was loaded.
    (data, target) : tuple of ndarray, if `return_X_y`
        The arrays described above.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    ValueError
        If there are no images, their sizes differ and `size` is None, an image or the tar file
        cannot be read, or a parameter is out of its range.

    Notes
    -----
    Resizing is bilinear, with averaging where images become smaller. Orientation marks of cameras
    are not applied. Grey images with more than 8 bits per pixel are refused, because converting
    them would cut their values off.

    Examples
    --------
    >>> import os, tempfile
    >>> from PIL import Image
    >>> from robustsk.datasets import load_image_folder
    >>> with tempfile.TemporaryDirectory() as root:
    ...     for name, color in [("black", (0, 0, 0)), ("red", (255, 0, 0))]:
    ...         os.mkdir(os.path.join(root, name))
    ...         Image.new("RGB", (4, 4), color).save(os.path.join(root, name, "1.png"))
    ...     images = load_image_folder(root)
    >>> images.data.shape, images.target.tolist(), images.data[1, :, 0, 0].tolist()
    ((2, 3, 4, 4), ['black', 'red'], [1.0, 0.0, 0.0])
    """
    path = Path(path).expanduser()
    size = _check_size(size)
    endings = _check_extensions(extensions)
    if max_per_class is not None:
        check_scalar(max_per_class, "max_per_class", Integral, min_val=1)
    prefix = _clean_parts(subset or "")

    strays: set[str] = set()
    if path.is_dir():
        entries = _folder_entries(path, prefix, endings)
    elif path.is_file():
        entries = _tar_entries(path, prefix, endings, strays)
    else:
        raise FileNotFoundError(
            f"{path} does not exist. `path` must be a folder of class folders, or a tar file."
        )

    classes: dict[str, _FirstByName] = {}
    for entry in entries:
        kept = classes.setdefault(entry.label, _FirstByName(max_per_class))
        if kept.wants(entry.name):
            kept.add(entry.name, _read_pixels(entry, path, size, grayscale))
    if not classes:
        if path.is_dir():
            strays = _folder_strays(path, endings)
        raise ValueError(_nothing_found_message(path, prefix, endings, strays))

    pixels, target, filenames = [], [], []
    for label in sorted(classes):
        for name in classes[label].names:
            pixels.append(classes[label].pixels[name])
            target.append(label)
            filenames.append(f"{label}/{name}")
    _check_same_size(pixels, filenames)
    data = pixels_to_float([image[None] for image in pixels])
    target = np.array(target)
    if return_X_y:
        return data, target
    channels = "one channel" if grayscale else "the channels red, green and blue"
    return Bunch(
        data=data,
        target=target,
        target_names=np.array(sorted(classes)),
        filenames=np.array(filenames),
        DESCR=(
            f"{len(data)} images of {data.shape[2]} x {data.shape[3]} pixels (height x width) with "
            f"{channels}, of {len(classes)} classes, from {path.name}"
            + (f", {'/'.join(prefix)}" if prefix else "")
            + ". Values are in [0, 1]."
        ),
    )


def _check_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(isinstance(length, Integral) and length > 0 for length in size)
    ):
        raise ValueError(
            f"size must be two positive integers, (height, width), or None, got {size!r}."
        )
    return int(size[0]), int(size[1])


def _check_extensions(extensions: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(extensions, str):
        extensions = (extensions,)
    endings = tuple(f".{ending.lower().lstrip('.')}" for ending in extensions)
    if not endings or "." in endings:
        raise ValueError(
            f"extensions must be one or more endings of file names such as '.png', got "
            f"{extensions!r}."
        )
    return endings


def _clean_parts(name: str) -> tuple[str, ...]:
    """Return the levels of a path inside a folder or tar file, without any leading "./" or "/"."""
    return tuple(part for part in PurePosixPath(name).parts if part not in ("/", "."))


def _is_image(name: str, endings: tuple[str, ...]) -> bool:
    # Names that begin with a dot are left behind by operating systems; "._1.png" is no image.
    return name.lower().endswith(endings) and not name.startswith(".")


def _folder_entries(
    path: Path, prefix: tuple[str, ...], endings: tuple[str, ...]
) -> Iterator[_Entry]:
    root = path.joinpath(*prefix)
    if not root.is_dir():
        return
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        for name in sorted(os.listdir(folder)):
            file = folder / name
            if _is_image(name, endings) and file.is_file():
                yield _Entry(folder.name, name, lambda file=file: file.open("rb"))


def _folder_strays(path: Path, endings: tuple[str, ...]) -> set[str]:
    """Return the folders below `path` that do hold images."""
    return {
        Path(folder).relative_to(path).as_posix()
        for folder, _, names in os.walk(path)
        if any(_is_image(name, endings) for name in names)
    }


def _tar_entries(
    path: Path, prefix: tuple[str, ...], endings: tuple[str, ...], strays: set[str]
) -> Iterator[_Entry]:
    """Yield the images of a tar file, to be read at once; note folders of other images."""
    try:
        # "r|" never seeks back, which would decompress an .xz file from its start again.
        with tarfile.open(path, mode="r|*") as archive:
            for member in archive:
                parts = _clean_parts(member.name)
                if not parts or not _is_image(parts[-1], endings) or member.isdir():
                    continue
                if parts[: len(prefix)] != prefix or len(parts) != len(prefix) + 2:
                    strays.add("/".join(parts[:-1]) or ".")
                    continue
                label, name = parts[-2:]
                if label.startswith("."):
                    continue
                if not member.isfile():
                    raise ValueError(
                        f"{member.name} in {path} is a link, which cannot be followed in a tar "
                        "file that is read once. Extract the file and pass the folder."
                    )
                yield _Entry(
                    label, name, lambda archive=archive, member=member: archive.extractfile(member)
                )
            # tarfile takes a file that stops between two members for a complete one, which would
            # silently lose images. A complete one goes on with a block of zeros.
            if archive.fileobj.tell() < archive.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("unexpected end of file")
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        raise ValueError(
            f"{path} could not be read as a tar file ({error}). It must be a .tar, .tar.gz, "
            ".tar.bz2 or .tar.xz file, complete to its end."
        ) from error


def _read_pixels(
    entry: _Entry, path: Path, size: tuple[int, int] | None, grayscale: bool
) -> np.ndarray:
    """Return an image as a uint8 array of shape (channels, height, width)."""
    from PIL import Image

    with entry.open() as stream:
        try:
            with Image.open(stream) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"it has more than 8 bits per pixel (mode {image.mode})")
                image = image.convert("L" if grayscale else "RGB")
        except (OSError, ValueError, SyntaxError, EOFError, tarfile.TarError) as error:
            raise ValueError(
                f"{entry.label}/{entry.name} in {path} could not be read as an image: {error}. "
                "Replace or remove the file, or leave its ending out of `extensions`."
            ) from error
    if size is not None and image.size != size[::-1]:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if grayscale else pixels.transpose(2, 0, 1)


def _check_same_size(pixels: Sequence[np.ndarray], filenames: Sequence[str]) -> None:
    for image, filename in zip(pixels, filenames, strict=True):
        if image.shape != pixels[0].shape:
            raise ValueError(
                f"The images differ in size: {filenames[0]} has "
                f"{pixels[0].shape[1]} x {pixels[0].shape[2]} pixels (height x width), {filename} "
                f"has {image.shape[1]} x {image.shape[2]}. Pass size=(height, width) to resize all "
                "of them."
            )


def _nothing_found_message(
    path: Path, prefix: tuple[str, ...], endings: tuple[str, ...], strays: set[str]
) -> str:
    wanted = "/".join((*prefix, "<class name>", "<file>"))
    message = f"No images were found in {path} as {wanted}, with names ending in "
    message += f"{', '.join(endings)}."
    if not strays:
        return f"{message} There are none in other folders either."
    folders = sorted(strays)
    shown = ", ".join(folders[:5]) + (", ..." if len(folders) > 5 else "")
    message += f" There are images in: {shown}."
    parents = sorted({PurePosixPath(folder).parent.as_posix() for folder in folders} - {"."})
    if parents:
        message += f" If these are the class folders, pass subset={parents[0]!r}"
        message += f" (or {', '.join(map(repr, parents[1:4]))})." if parents[1:] else "."
    elif folders == ["."]:
        message += " Images must be in one folder per class, named after the class."
    elif prefix:
        message += " If these are the class folders, leave `subset` out."
    return message
