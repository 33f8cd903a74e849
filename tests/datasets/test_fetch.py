import gzip
import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets

import robustsk.datasets
from robustsk.datasets import _base as base
from robustsk.datasets import fetch_cifar10, fetch_cifar100, fetch_mnist, get_data_home

MNIST_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR10_NAMES = [f"class {number}" for number in range(10)]


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    """Keep the tests away from the network and from the user's own data."""

    def refuse(root, download=False, **kwargs):
        raise RuntimeError("no network in tests")

    for name in ("MNIST", "CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, refuse)
    monkeypatch.setenv("ROBUSTSK_DATA", str(tmp_path / "default_home"))


def idx(array, element_type=8):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, element_type, array.ndim, *array.shape) + (
        array.tobytes()
    )


def mnist_arrays(part):
    rng = np.random.RandomState(len(part))
    n = {"train": 12, "test": 5}[part]
    images = rng.randint(256, size=(n, 28, 28)).astype(np.uint8)
    images[0, 0, :2] = 0, 255
    return images, rng.randint(10, size=n).astype(np.uint8)


def write_mnist(folder, parts=("train", "test"), gz=False, dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for name, array in zip(MNIST_FILES[part], mnist_arrays(part), strict=True):
            name = name.replace("-idx", ".idx") if dotted else name
            data = idx(array)
            (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)
    return folder


def expected(images):
    return images.reshape(len(images), -1) / np.float32(255)


class Python2Pickler(pickle._Pickler):
    """Writes strings the way Python 2 did, as the published CIFAR files have them."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_python2_string(self, value):
        value = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch[bytes] = dispatch[str] = save_python2_string


def dump_python2(content):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue().replace(b"numpy._core", b"numpy.core")


def dump_python3(content):
    return pickle.dumps(content)


def cifar_batch(seed, n, n_classes=10):
    rng = np.random.RandomState(seed)
    return rng.randint(256, size=(n, 3072)).astype(np.uint8), rng.randint(n_classes, size=n)


def write_cifar10(folder, dump=dump_python2):
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for seed, name in enumerate(names):
        images, labels = cifar_batch(seed, 2 + seed)
        batch = {"batch_label": name, "labels": labels.tolist(), "data": images, "filenames": []}
        (folder / name).write_bytes(dump(batch))
    (folder / "batches.meta").write_bytes(dump({"label_names": CIFAR10_NAMES}))
    return folder


def write_cifar100(folder):
    folder.mkdir(parents=True)
    for seed, name in enumerate(["train", "test"]):
        images, labels = cifar_batch(seed, 4 + seed, n_classes=100)
        batch = {
            "fine_labels": labels.tolist(),
            "coarse_labels": (labels // 5).tolist(),
            "data": images,
        }
        (folder / name).write_bytes(dump_python2(batch))
    names = [f"thing {number}" for number in range(100)]
    (folder / "meta").write_bytes(
        dump_python2({"fine_label_names": names, "coarse_label_names": names[:20]})
    )
    return folder


class TestDataHome:
    def test_default_comes_from_the_environment(self, tmp_path):
        assert get_data_home() == str(tmp_path / "default_home")
        assert (tmp_path / "default_home").is_dir()

    @pytest.mark.parametrize("value", [None, ""])
    def test_default_without_the_variable(self, monkeypatch, tmp_path, value):
        if value is None:
            monkeypatch.delenv("ROBUSTSK_DATA")
        else:
            monkeypatch.setenv("ROBUSTSK_DATA", value)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        assert get_data_home() == str(tmp_path / "robustsk_data")

    def test_given_folder_is_created(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("USERPROFILE", str(tmp_path))
        assert get_data_home("~/a/b") == str(tmp_path / "a" / "b")
        assert (tmp_path / "a" / "b").is_dir()
        assert get_data_home(tmp_path / "a" / "b") == str(tmp_path / "a" / "b")


def test_all_names_exist():
    assert sorted(robustsk.datasets.__all__) == robustsk.datasets.__all__
    assert all(callable(getattr(robustsk.datasets, name)) for name in robustsk.datasets.__all__)


class TestMNIST:
    @pytest.mark.parametrize("gz", [False, True])
    @pytest.mark.parametrize("subfolder", ["", "MNIST/raw", "raw"])
    def test_values(self, tmp_path, gz, subfolder):
        write_mnist(tmp_path / "data" / subfolder, gz=gz)
        for part in ("train", "test"):
            images, labels = mnist_arrays(part)
            bunch = fetch_mnist(data_home=tmp_path / "data", subset=part)
            assert bunch.data.shape == (len(images), 1, 28, 28)
            assert bunch.data.dtype == np.float32
            assert (bunch.data.min(), bunch.data.max()) == (0, 1)
            np.testing.assert_array_equal(bunch.data.reshape(len(images), -1), expected(images))
            assert bunch.target.dtype == np.int64
            np.testing.assert_array_equal(bunch.target, labels)
            assert bunch.target_names.tolist() == list("0123456789")
            assert "MNIST" in bunch.DESCR

    def test_default_data_home(self, tmp_path):
        write_mnist(tmp_path / "default_home")
        assert fetch_mnist().data.shape == (12, 1, 28, 28)

    def test_all_is_train_then_test(self, tmp_path):
        write_mnist(tmp_path, gz=True)
        X, y = fetch_mnist(data_home=str(tmp_path), subset="all", return_X_y=True, as_flat=True)
        (train, train_labels), (test, test_labels) = mnist_arrays("train"), mnist_arrays("test")
        np.testing.assert_array_equal(X, expected(np.concatenate([train, test])))
        np.testing.assert_array_equal(y, np.concatenate([train_labels, test_labels]))

    def test_names_with_a_dot(self, tmp_path):
        write_mnist(tmp_path, dotted=True)
        assert len(fetch_mnist(data_home=tmp_path).data) == 12

    def test_only_the_files_of_the_subset_are_needed(self, tmp_path):
        write_mnist(tmp_path, parts=["test"])
        assert len(fetch_mnist(data_home=tmp_path, subset="test").data) == 5
        with pytest.raises(OSError, match="train-images-idx3-ubyte"):
            fetch_mnist(data_home=tmp_path, subset="all", download_if_missing=False)

    def test_gzip_content_under_a_plain_name(self, tmp_path):
        write_mnist(tmp_path)
        path = tmp_path / "train-images-idx3-ubyte"
        path.write_bytes(gzip.compress(path.read_bytes()))
        assert len(fetch_mnist(data_home=tmp_path).data) == 12

    def test_unknown_subset(self, tmp_path):
        with pytest.raises(ValueError, match="subset must be 'train', 'test' or 'all', got 'val'"):
            fetch_mnist(data_home=tmp_path, subset="val")


class TestDamagedMNIST:
    def check(self, folder, file, data, match):
        write_mnist(folder)
        (folder / file).write_bytes(data)
        with pytest.raises(ValueError, match=match):
            fetch_mnist(data_home=folder)

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"", "starts with nothing"),
            (b"<html>", "should start with the bytes 00 00 08 03, but starts with 3c 68 74 6d"),
            (idx(np.zeros(12, np.uint8)), "should start with the bytes 00 00 08 03"),
            (idx(np.zeros((1, 2, 2), ">f4"), element_type=13), "00 00 0d 03"),
            (b"\0\0\x08\x03\0\0", "is not an idx file"),
            (idx(mnist_arrays("train")[0])[:-1], "announces 12 x 28 x 28 = 9408 bytes"),
            (idx(mnist_arrays("train")[0]) + b"\0", "holds 9409"),
            (gzip.compress(idx(mnist_arrays("train")[0]))[:-20], "damaged gzip file"),
            (idx(mnist_arrays("test")[0]), "5 images, but .* holds 12 labels"),
        ],
    )
    def test_images(self, tmp_path, data, match):
        self.check(tmp_path, "train-images-idx3-ubyte", data, match)

    def test_labels_of_another_data_set(self, tmp_path):
        data = idx(np.arange(12, dtype=np.uint8))
        self.check(tmp_path, "train-labels-idx1-ubyte", data, "labels in .* go from 0 to 11")

    def test_parts_of_different_size(self, tmp_path):
        write_mnist(tmp_path)
        images = np.zeros((5, 14, 14), np.uint8)
        (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(images))
        with pytest.raises(ValueError, match="28 x 28 and 14 x 14"):
            fetch_mnist(data_home=tmp_path, subset="all")
        assert fetch_mnist(data_home=tmp_path, subset="test").data.shape == (5, 1, 14, 14)


class TestMissing:
    @pytest.mark.parametrize(
        ("fetch", "subfolder", "file"),
        [
            (fetch_mnist, os.path.join("MNIST", "raw"), "train-images-idx3-ubyte"),
            (fetch_cifar10, "cifar-10-batches-py", "data_batch_1, data_batch_2"),
            (fetch_cifar100, "cifar-100-python", "train, meta"),
        ],
    )
    def test_message_says_where_what_and_how(self, tmp_path, fetch, subfolder, file):
        home = tmp_path / "nothing"
        with pytest.raises(OSError) as caught:
            fetch(data_home=home, download_if_missing=False)
        message = str(caught.value)
        assert str(home / subfolder) in message
        assert file in message
        assert f"{fetch.__name__}(data_home=..., download_if_missing=True)" in message
        assert not home.exists()

    def test_message_names_what_a_folder_lacks(self, tmp_path):
        write_cifar10(tmp_path / "cifar-10-batches-py")
        (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
        with pytest.raises(OSError, match="lacks data_batch_3\n"):
            fetch_cifar10(data_home=tmp_path, download_if_missing=False)

    def test_failed_download(self, tmp_path):
        with pytest.raises(
            OSError, match=r"could not be downloaded .*no network in tests"
        ) as caught:
            fetch_mnist(data_home=tmp_path / "new")
        assert isinstance(caught.value.__cause__, RuntimeError)

    @pytest.mark.parametrize(
        ("fetch", "name", "write"),
        [
            (fetch_mnist, "MNIST", lambda root: write_mnist(root / "MNIST" / "raw")),
            (fetch_cifar10, "CIFAR10", lambda root: write_cifar10(root / "cifar-10-batches-py")),
            (fetch_cifar100, "CIFAR100", lambda root: write_cifar100(root / "cifar-100-python")),
        ],
    )
    def test_download_happens_once_and_only_if_needed(
        self, tmp_path, monkeypatch, fetch, name, write
    ):
        calls = []

        def download(root, download=False):
            assert download
            calls.append(root)
            write(Path(root))

        monkeypatch.setattr(torchvision.datasets, name, download)
        home = tmp_path / "new"
        first = fetch(data_home=home)
        second = fetch(data_home=home)
        assert calls == [str(home)]
        np.testing.assert_array_equal(first.data, second.data)

    def test_download_that_leaves_no_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torchvision.datasets, "MNIST", lambda root, download: None)
        with pytest.raises(OSError, match="MNIST was not found"):
            fetch_mnist(data_home=tmp_path)


class TestCIFAR:
    @pytest.mark.parametrize("dump", [dump_python2, dump_python3])
    @pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
    def test_cifar10(self, tmp_path, dump, subfolder):
        write_cifar10(tmp_path / "data" / subfolder, dump)
        batches = [cifar_batch(seed, 2 + seed) for seed in range(6)]
        for subset, used in [("train", batches[:5]), ("test", batches[5:]), ("all", batches)]:
            bunch = fetch_cifar10(data_home=tmp_path / "data", subset=subset)
            images = np.concatenate([images for images, _ in used])
            assert bunch.data.shape == (len(images), 3, 32, 32)
            assert bunch.data.dtype == np.float32
            # The rows of the file are the red, the green, then the blue plane, row by row.
            np.testing.assert_array_equal(bunch.data.reshape(len(images), -1), expected(images))
            assert bunch.target.dtype == np.int64
            np.testing.assert_array_equal(bunch.target, np.concatenate([y for _, y in used]))
            assert bunch.target_names.tolist() == CIFAR10_NAMES
            assert "CIFAR-10" in bunch.DESCR

    @pytest.mark.parametrize("subfolder", ["", "cifar-100-python"])
    def test_cifar100_has_the_fine_labels(self, tmp_path, subfolder):
        write_cifar100(tmp_path / "data" / subfolder)
        bunch = fetch_cifar100(data_home=tmp_path / "data")
        images, labels = cifar_batch(0, 4, n_classes=100)
        np.testing.assert_array_equal(bunch.data.reshape(4, -1), expected(images))
        np.testing.assert_array_equal(bunch.target, labels)
        assert bunch.target_names[7] == "thing 7"
        X, y = fetch_cifar100(
            data_home=tmp_path / "data", subset="test", return_X_y=True, as_flat=True
        )
        assert X.shape == (5, 3072)
        assert y.shape == (5,)

    def test_same_as_torchvision(self, tmp_path, monkeypatch):
        monkeypatch.undo()

        # torchvision compares checksums, which files of a test cannot have.
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
        write_cifar10(tmp_path / "cifar-10-batches-py")
        reference = torchvision.datasets.CIFAR10(tmp_path, train=True)
        X, y = fetch_cifar10(data_home=tmp_path, return_X_y=True)
        np.testing.assert_array_equal(
            X, reference.data.transpose(0, 3, 1, 2).astype(np.float32) / 255
        )
        assert y.tolist() == reference.targets

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (b"not a pickle", "is not a file of the Python version"),
            (b"", "is not a file of the Python version"),
            (dump_python2([1, 2]), "is not a file of the Python version"),
            (dump_python2({"fine_labels": [1]}), "'labels', but has \\['fine_labels'\\]"),
            (dump_python2({"labels": [1]}), "has: NoneType"),
            (
                dump_python2({"labels": [1], "data": np.zeros((1, 12), np.uint8)}),
                r"\(1, 3072\) .* has: uint8 array of shape \(1, 12\)",
            ),
            (
                dump_python2({"labels": [1], "data": np.zeros((2, 3072), np.uint8)}),
                r"shape \(2, 3072\)",
            ),
        ],
    )
    def test_damaged_batch(self, tmp_path, data, match):
        write_cifar10(tmp_path / "c")
        (tmp_path / "c" / "data_batch_2").write_bytes(data)
        with pytest.raises(ValueError, match=match):
            fetch_cifar10(data_home=tmp_path / "c")

    def test_pickle_that_would_run_code_is_refused(self, tmp_path):
        class Attack:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "attacked"),)

        write_cifar10(tmp_path / "c")
        (tmp_path / "c" / "test_batch").write_bytes(pickle.dumps({"labels": Attack()}))
        with pytest.raises(ValueError, match="mkdir, which is not data"):
            fetch_cifar10(data_home=tmp_path / "c", subset="test")
        assert not (tmp_path / "attacked").exists()


class TestMemoryMap:
    def copies(self, folder):
        return sorted(folder.glob("*.npy"))

    @pytest.mark.parametrize("as_flat", [False, True])
    @pytest.mark.parametrize("subset", ["train", "test", "all"])
    def test_equals_the_array_and_is_read_only(self, tmp_path, as_flat, subset):
        write_mnist(tmp_path)
        given = {"data_home": tmp_path, "subset": subset, "as_flat": as_flat}
        mapped = fetch_mnist(**given, memory_map=True)
        plain = fetch_mnist(**given)
        assert isinstance(mapped.data, np.memmap)
        assert not isinstance(plain.data, np.memmap)
        assert mapped.data.dtype == np.float32
        assert not mapped.data.flags.writeable
        np.testing.assert_array_equal(mapped.data, plain.data)
        np.testing.assert_array_equal(mapped.target, plain.target)

    def test_cifar(self, tmp_path):
        write_cifar10(tmp_path / "cifar-10-batches-py")
        X, y = fetch_cifar10(data_home=tmp_path, memory_map=True, return_X_y=True)
        X_plain, y_plain = fetch_cifar10(data_home=tmp_path, return_X_y=True)
        np.testing.assert_array_equal(X, X_plain)
        np.testing.assert_array_equal(y, y_plain)
        assert len(self.copies(tmp_path / "cifar-10-batches-py")) == 1

    def test_written_in_blocks(self, tmp_path, monkeypatch):
        monkeypatch.setattr(base, "_BLOCK_ROWS", 5)
        self.test_equals_the_array_and_is_read_only(tmp_path, False, "all")

    def test_copy_is_reused(self, tmp_path, monkeypatch):
        write_mnist(tmp_path)
        fetch_mnist(data_home=tmp_path, memory_map=True)
        (copy,) = self.copies(tmp_path)
        monkeypatch.setattr(base, "_write_npy", None)
        mapped = fetch_mnist(data_home=tmp_path, memory_map=True)
        assert Path(mapped.data.filename) == copy
        assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []

    def test_plain_and_gzipped_files_share_the_copy(self, tmp_path):
        write_mnist(tmp_path)
        fetch_mnist(data_home=tmp_path, memory_map=True)
        for path in tmp_path.glob("*-ubyte"):
            path.unlink()
        write_mnist(tmp_path, gz=True)
        fetch_mnist(data_home=tmp_path, memory_map=True)
        assert len(self.copies(tmp_path)) == 1

    def test_changed_data_is_not_served_from_the_old_copy(self, tmp_path):
        write_mnist(tmp_path)
        before = fetch_mnist(data_home=tmp_path, memory_map=True)
        images = 255 - mnist_arrays("train")[0]
        (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
        after = fetch_mnist(data_home=tmp_path, memory_map=True)
        np.testing.assert_array_equal(after.data.reshape(12, -1), expected(images))
        assert not np.array_equal(before.data, after.data)

    @pytest.mark.parametrize("damage", ["short", "shape", "dtype", "empty"])
    def test_unfit_copy_is_replaced(self, tmp_path, damage):
        write_mnist(tmp_path)
        fetch_mnist(data_home=tmp_path, memory_map=True)
        (copy,) = self.copies(tmp_path)
        if damage == "short":
            copy.write_bytes(copy.read_bytes()[:-10])
        elif damage == "shape":
            np.save(copy, np.zeros((2, 2), np.float32))
        elif damage == "dtype":
            np.save(copy, np.zeros((12, 1, 28, 28)))
        else:
            copy.write_bytes(b"")
        mapped = fetch_mnist(data_home=tmp_path, memory_map=True)
        np.testing.assert_array_equal(mapped.data, fetch_mnist(data_home=tmp_path).data)
        assert self.copies(tmp_path) == [copy]

    def test_failure_while_writing_leaves_nothing(self, tmp_path, monkeypatch):
        def fail(stream, parts, shape):
            stream.write(b"half")
            raise OSError(28, "No space left on device")

        write_mnist(tmp_path / "data")
        monkeypatch.setattr(base, "_write_npy", fail)
        with pytest.raises(OSError, match="No space left"):
            fetch_mnist(data_home=tmp_path / "data", memory_map=True)
        assert sorted(path.name for path in (tmp_path / "data").iterdir()) == sorted(
            MNIST_FILES["train"] + MNIST_FILES["test"]
        )

    @pytest.fixture
    def read_only(self, tmp_path):
        if os.name == "nt":
            pytest.skip("Windows has no read-only folders")
        folder = write_mnist(tmp_path / "read_only")
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)

    def test_read_only_folder_has_its_copy_in_the_default_home(self, tmp_path, read_only):
        before = sorted(read_only.iterdir())
        first = fetch_mnist(data_home=read_only, memory_map=True)
        assert Path(first.data.filename).parent == tmp_path / "default_home"
        assert sorted(read_only.iterdir()) == before
        second = fetch_mnist(data_home=read_only, memory_map=True)
        assert second.data.filename == first.data.filename
        np.testing.assert_array_equal(second.data, fetch_mnist(data_home=read_only).data)

    def test_nowhere_to_write(self, tmp_path, read_only):
        default = tmp_path / "default_home"
        default.mkdir()
        default.chmod(0o555)
        with pytest.raises(OSError, match="memory_map=True needs a folder") as caught:
            fetch_mnist(data_home=read_only, memory_map=True)
        default.chmod(0o755)
        assert str(read_only) in str(caught.value)
        assert str(default) in str(caught.value)
        assert "ROBUSTSK_DATA" in str(caught.value)
