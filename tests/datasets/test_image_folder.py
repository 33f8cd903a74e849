import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from robustsk.datasets import load_image_folder

RNG = np.random.RandomState(0)
# Written in this order, which is neither that of the names nor that of the classes.
IMAGES = {
    f"{label}/{name}": RNG.randint(256, size=(6, 5, 3)).astype(np.uint8)
    for label, name in [
        ("dog", "2.png"),
        ("cat", "10.PNG"),
        ("dog", "1.png"),
        ("cat", "07.png"),
        ("ant", "a.bmp"),
        ("cat", "08.png"),
    ]
}
SORTED = ["ant/a.bmp", "cat/07.png", "cat/08.png", "cat/10.PNG", "dog/1.png", "dog/2.png"]


def encode(pixels, file_format="PNG"):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, file_format)
    return stream.getvalue()


def content(prefix=""):
    return {
        prefix + name: encode(pixels, "BMP" if name.endswith("bmp") else "PNG")
        for name, pixels in IMAGES.items()
    }


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(params=["folder", "tar"])
def write(request, tmp_path):
    """Write files to a folder or to a tar file, and return its path."""
    if request.param == "folder":
        return lambda files: write_folder(tmp_path / "images", files)
    return lambda files: write_tar(tmp_path / "images.tar", files)


def test_values_labels_and_order(write):
    bunch = load_image_folder(write(content()))
    assert bunch.filenames.tolist() == SORTED
    assert bunch.target.tolist() == [name.split("/")[0] for name in SORTED]
    assert bunch.target_names.tolist() == ["ant", "cat", "dog"]
    assert bunch.data.dtype == np.float32
    assert bunch.data.shape == (6, 3, 6, 5)
    expected = np.stack([IMAGES[name].transpose(2, 0, 1) for name in SORTED]) / np.float32(255)
    np.testing.assert_array_equal(bunch.data, expected)
    assert "6 images of 6 x 5 pixels" in bunch.DESCR


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tar.bz2", "w:bz2"), ("a.tar.xz", "w:xz")],
)
def test_tar_equals_folder(tmp_path, name, mode):
    folder = write_folder(tmp_path / "images", content())
    archive = write_tar(tmp_path / name, content(prefix="./"), mode)
    X, y = load_image_folder(folder, return_X_y=True)
    X_tar, y_tar = load_image_folder(str(archive), return_X_y=True)
    np.testing.assert_array_equal(X, X_tar)
    np.testing.assert_array_equal(y, y_tar)


def test_tar_with_folder_members(tmp_path):
    write_folder(tmp_path / "images", content("train/"))
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "images", arcname=".")
    bunch = load_image_folder(tmp_path / "images.tar.gz", subset="train")
    assert bunch.filenames.tolist() == SORTED


@pytest.mark.parametrize("prefix", ["train/", "photos/train/"])
def test_subset_names_the_folder_of_the_classes(write, prefix):
    files = content(prefix) | {"test/cat/1.png": encode(np.zeros((9, 9, 3), np.uint8))}
    bunch = load_image_folder(write(files), subset=prefix)
    assert bunch.filenames.tolist() == SORTED


@pytest.mark.parametrize("subset", [None, "tset"])
def test_wrong_subset_names_the_folders_that_hold_images(write, subset):
    path = write(content("train/"))
    with pytest.raises(ValueError, match=r"images in: train/ant, .*pass subset='train'\."):
        load_image_folder(path, subset=subset)


def test_subset_that_is_not_needed(write):
    with pytest.raises(ValueError, match="leave `subset` out"):
        load_image_folder(write(content()), subset="train")


def test_images_without_class_folders(write):
    with pytest.raises(ValueError, match="one folder per class"):
        load_image_folder(write({"1.png": encode(IMAGES["dog/1.png"])}))


def test_nothing_found(tmp_path, write):
    with pytest.raises(ValueError, match="No images were found"):
        load_image_folder(write({"cat/readme.txt": b"text"}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="No images were found"):
        load_image_folder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_image_folder(tmp_path / "missing")


def test_other_files_and_hidden_names_are_left_out(write):
    noise = b"not an image"
    files = content() | {
        "readme.png": noise,
        "cat/notes.txt": noise,
        "cat/._07.png": noise,
        ".cache/1.png": noise,
        "cat/deeper/1.png": noise,
        "empty/readme.md": noise,
    }
    bunch = load_image_folder(write(files))
    assert bunch.filenames.tolist() == SORTED
    assert bunch.target_names.tolist() == ["ant", "cat", "dog"]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_max_per_class_takes_the_first_names(write, limit):
    bunch = load_image_folder(write(content()), max_per_class=limit)
    everything = load_image_folder(write(content()))
    kept = [name for name in SORTED if name.startswith("ant")]
    kept += [name for name in SORTED if name.startswith("cat")][:limit]
    kept += [name for name in SORTED if name.startswith("dog")][:limit]
    assert bunch.filenames.tolist() == kept
    np.testing.assert_array_equal(bunch.data, everything.data[[SORTED.index(n) for n in kept]])


@pytest.mark.parametrize("extensions", [(".bmp",), ["BMP"], "bmp"])
def test_extensions(write, extensions):
    bunch = load_image_folder(write(content()), extensions=extensions)
    assert bunch.filenames.tolist() == ["ant/a.bmp"]


def test_mixed_sizes_are_refused_unless_resized(write):
    path = write(content() | {"dog/0.png": encode(np.full((8, 4, 3), 255, np.uint8))})
    with pytest.raises(ValueError, match=r"6 x 5 pixels .*dog/0\.png has 8 x 4.*size="):
        load_image_folder(path)
    bunch = load_image_folder(path, size=(3, 7))
    assert bunch.data.shape == (7, 3, 3, 7)
    np.testing.assert_array_equal(bunch.data[bunch.filenames == "dog/0.png"], 1)
    # The images that are not kept do not have to fit.
    assert load_image_folder(path, max_per_class=1, extensions=["bmp"]).data.shape == (1, 3, 6, 5)


def test_size_is_height_and_width(write):
    half = np.zeros((4, 8, 3), np.uint8)
    half[:, 4:] = 255
    bunch = load_image_folder(write({"a/1.png": encode(half)}), size=(1, 2))
    np.testing.assert_allclose(bunch.data[0, :, 0], [[0, 1]] * 3, atol=0.15)


def test_one_size_for_all_leaves_the_pixels_alone(write):
    path = write(content())
    X, _ = load_image_folder(path, return_X_y=True)
    X_sized, _ = load_image_folder(path, return_X_y=True, size=(6, 5))
    np.testing.assert_array_equal(X, X_sized)


def test_grey_and_colour(write):
    path = write(
        {
            "a/grey.png": encode(np.full((2, 2), 51, np.uint8)),
            "b/alpha.png": encode(np.full((2, 2, 4), [51, 51, 51, 7], np.uint8)),
            "c/color.png": encode(np.full((2, 2, 3), [255, 0, 0], np.uint8)),
        }
    )
    colour = load_image_folder(path)
    assert colour.data.shape == (3, 3, 2, 2)
    np.testing.assert_allclose(colour.data[:, :, 0, 0], [[0.2] * 3, [0.2] * 3, [1, 0, 0]])
    grey = load_image_folder(path, grayscale=True)
    assert grey.data.shape == (3, 1, 2, 2)
    np.testing.assert_allclose(grey.data[:, 0, 0, 0], [0.2, 0.2, 76 / 255])


def test_deep_grey_is_refused(write):
    path = write({"a/1.png": encode(np.full((2, 2), 60_000, np.uint16))})
    with pytest.raises(ValueError, match="more than 8 bits"):
        load_image_folder(path)


@pytest.mark.parametrize("data", [b"not an image", encode(IMAGES["dog/1.png"])[:60], b""])
def test_broken_image_is_named(write, data):
    path = write(content() | {"cat/09.png": data})
    with pytest.raises(ValueError, match=r"cat/09\.png in .* could not be read as an image"):
        load_image_folder(path)


def test_files_that_are_no_tar(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"something else" * 100)
    with pytest.raises(ValueError, match="could not be read as a tar file"):
        load_image_folder(tmp_path / "a.tar")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.9])
def test_compressed_or_plain_tar_cut_short(tmp_path, mode, fraction):
    # Noise, which compression leaves as long as it is, so that every cut is within an image.
    files = {
        f"cat/{number}.png": encode(RNG.randint(256, size=(64, 64, 3)).astype(np.uint8))
        for number in range(3)
    }
    path = write_tar(tmp_path / "a.tar", files, mode)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    with pytest.raises(ValueError, match="could not be read"):
        load_image_folder(path)


@pytest.mark.parametrize("n_bytes", [1024, 2048, 2048 + 341, 2048 + 512 + 100, 6 * 1024])
def test_plain_tar_cut_between_images(tmp_path, n_bytes):
    # Every image takes a block of 512 bytes for its header and one for its content.
    path = write_tar(tmp_path / "a.tar", content())
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match="could not be read"):
        load_image_folder(path)


def test_links_in_a_tar_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("cat/1.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../dog/1.png"
        archive.addfile(link)
    with pytest.raises(ValueError, match="is a link"):
        load_image_folder(tmp_path / "a.tar")


def test_later_member_of_the_same_name_counts(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for value in (0, 255):
            data = encode(np.full((2, 2, 3), value, np.uint8))
            member = tarfile.TarInfo("cat/1.png")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    X, _ = load_image_folder(tmp_path / "a.tar", max_per_class=1, return_X_y=True)
    np.testing.assert_array_equal(X, np.ones((1, 3, 2, 2)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 8),
        ("size", (8,)),
        ("size", (0, 8)),
        ("size", (8.5, 8)),
        ("max_per_class", 0),
        ("extensions", ()),
        ("extensions", ("",)),
    ],
)
def test_bad_parameters(write, name, value):
    with pytest.raises(ValueError, match=name):
        load_image_folder(write(content()), **{name: value})
