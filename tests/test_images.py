"""Image sets by one door: files that these tests make, what ships, and what goes wrong."""

import gzip
import hashlib
import http.server
import io
import struct
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tinydiff as td
from tinydiff.datasets import Images, images, load


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """A data folder with nothing in it, and no Debian package."""
    monkeypatch.setenv("TINYDIFF_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(images, "DEBIAN", tmp_path / "nowhere")
    return tmp_path / "data"


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def some(n: int = 12, seed: int = 0, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(256, size=(n, side, side), dtype=np.uint8), np.arange(n, dtype=np.uint8) % 10


def put_fashion(place: Path, split: str = "train", change=lambda name, raw: raw) -> tuple[np.ndarray, np.ndarray]:
    pixels, y = some()
    names = images.FASHION_FILES[split]
    place.mkdir(parents=True, exist_ok=True)
    for name, array in ((names[0], pixels), (names[2], y)):
        (place / name).write_bytes(change(name, gzip.compress(idx(array))))
    return pixels, y


# ---- Images --------------------------------------------------------------------------------------


def test_bytes_become_numbers_in_the_range():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x0 = Images(pixels).x0
    assert x0.shape == (1, 1, 16, 16) and x0.dtype == torch.float32
    torch.testing.assert_close(x0.flatten(), torch.arange(256) / 127.5 - 1)
    assert x0.min() == -1 and x0.max() == 1


def test_one_image_many_images_and_batches():
    pixels, y = torch.randint(256, (6, 3, 4, 4), dtype=torch.uint8), torch.arange(6) % 2
    data = Images(pixels, y, ("cat", "dog"))
    assert len(data) == 6
    x0, label = data[4]
    assert torch.equal(x0, data.x0[4]) and label == 0
    i = torch.tensor([5, 0, 5])
    assert torch.equal(data[i][0], data.x0[i]) and torch.equal(data.batch(i)["y"], y[i])
    assert set(Images(pixels).batch(i)) == {"x0"} and torch.equal(Images(pixels)[0], data.x0[0])
    assert torch.equal(data.first(2).pixels, pixels[:2]) and data.first(2).classes == ("cat", "dog")
    assert data.to("cpu").classes == data.classes
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    assert next(iter(loader))[0].shape == (3, 3, 4, 4)


def test_what_is_no_image_set_is_named():
    good = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"pixels must be uint8 of shape \(n, c, h, w\); got torch.float32"):
        Images(good.float())
    with pytest.raises(ValueError, match=r"got torch.uint8, \(3, 4, 4\)"):
        Images(good[:, 0])
    with pytest.raises(ValueError, match=r"y must hold one label for each of the 3 images; got \(2,\)"):
        Images(good, torch.zeros(2, dtype=torch.long), ("a",))
    for bad in ([0, 1, 2], [0, -1, 0]):
        with pytest.raises(ValueError, match=r"y must lie in 0 \.\.\. 1; got labels from"):
            Images(good, torch.tensor(bad), ("a", "b"))
    for n in (0, 4):
        with pytest.raises(ValueError, match=rf"n must lie in 1 \.\.\. 3; got {n}"):
            Images(good).first(n)


# ---- what ships ----------------------------------------------------------------------------------


def test_the_part_that_ships():
    for split in ("train", "test"):
        data = load("fashion-mnist-10k", split)
        assert data.pixels.shape == (5000, 1, 28, 28) and len(data.classes) == 10
        assert all(450 < n < 560 for n in data.y.bincount().tolist())
        assert (data.pixels == 0).double().mean() > 0.4  # paper
    trousers = load("fashion-mnist-10k").pixels[load("fashion-mnist-10k").y == 1].float().mean((0, 1))
    assert trousers[:, 10:18].mean() > 3 * trousers[:, :6].mean()  # the right way up: tall and narrow


def test_digits_by_the_same_door():
    data, known = load("digits", "test"), td.datasets.digits_test()
    assert torch.equal(data.y, known.y)
    torch.testing.assert_close(data.x0, known.x0, rtol=0, atol=0.5 / 127.5 + 1e-6)  # the nearest of 256 levels


# ---- where a set is found ------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["fashion-mnist", "downloads/fashion-mnist"])
def test_fashion_is_found_in_the_data_folder(place, empty):
    pixels, y = put_fashion(empty / place)
    data = load("fashion-mnist", download=False)
    assert np.array_equal(data.pixels[:, 0].numpy(), pixels) and data.y.tolist() == y.tolist()
    with pytest.raises(FileNotFoundError, match="Fashion-MNIST is in none of .*; download=True fetches it"):
        load("fashion-mnist", "test", download=False)


def test_fashion_is_found_where_debian_puts_it(empty, monkeypatch, tmp_path):
    monkeypatch.setattr(images, "DEBIAN", tmp_path / "debian")
    pixels, _ = put_fashion(tmp_path / "debian", "test")
    assert np.array_equal(load("fashion-mnist", "test", download=False).pixels[:, 0].numpy(), pixels)


def test_a_frame_of_paper(empty):
    pixels, _ = put_fashion(empty / "fashion-mnist")
    framed = load("fashion-mnist", size=32).pixels[:, 0].numpy()
    assert framed.shape == (12, 32, 32) and np.array_equal(framed[:, 2:30, 2:30], pixels)
    assert framed.sum() == pixels.sum()
    for size in (27, 31, 0):
        with pytest.raises(ValueError, match=f"size must be 28, or larger by an even number; got {size}"):
            load("fashion-mnist", size=size)


def test_names_and_splits_are_checked(empty):
    with pytest.raises(
        ValueError, match="name must be one of fashion-mnist, .*, or a folder that is there; got 'mnist'"
    ):
        load("mnist")
    with pytest.raises(ValueError, match="split must be one of train, test; got 'val'"):
        load("digits", "val")


# ---- damaged files -------------------------------------------------------------------------------

DAMAGE = {
    "cut short": (lambda name, raw: raw[: len(raw) // 2], "is damaged, or no IDX file"),
    "not gzip": (lambda name, raw: b"<html>not found</html>", "is damaged, or no IDX file"),
    "fewer rows": (lambda name, raw: gzip.compress(gzip.decompress(raw)[:-5]), "is damaged: .* bytes for an array"),
    "another kind": (
        lambda name, raw: gzip.compress(b"\0\0\x0d" + gzip.decompress(raw)[3:]),
        "is no IDX file of bytes",
    ),
    "fewer labels": (
        lambda name, raw: gzip.compress(idx(np.zeros(5))) if "labels" in name else raw,
        "do not go together",
    ),
    "a label out of range": (
        lambda name, raw: gzip.compress(idx(np.full(12, 10))) if "labels" in name else raw,
        r"is damaged: y must lie in 0 \.\.\. 9; got labels from 10 to 10",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage, empty):
    change, message = DAMAGE[damage]
    put_fashion(empty / "fashion-mnist", change=change)
    with pytest.raises(ValueError, match=message) as error:
        load("fashion-mnist")
    assert str(empty / "fashion-mnist") in str(error.value)


def test_an_idx_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        images.read_idx(tmp_path / "x.gz")


# ---- downloads -----------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A server on this machine, which counts what it is asked for."""
    root, asked = tmp_path / "server", []
    root.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            asked.append(self.path)

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(root)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield root, f"http://127.0.0.1:{httpd.server_port}/", asked
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_a_download_is_checked_kept_and_not_repeated(empty, server, monkeypatch, capfd):
    root, home, asked = server
    pixels, _ = put_fashion(root)
    a, _, b, _ = images.FASHION_FILES["train"]
    monkeypatch.setattr(images, "FASHION_FILES", {"train": (a, md5(root / a), b, md5(root / b))})
    monkeypatch.setenv("TINYDIFF_FASHION_HOME", home)
    for _ in range(2):
        assert np.array_equal(load("fashion-mnist").pixels[:, 0].numpy(), pixels)
    assert len(asked) == 2  # each file once
    assert sorted(p.name for p in (empty / "downloads" / "fashion-mnist").iterdir()) == sorted([a, b])
    assert "100%" in capfd.readouterr().err  # the bar


def test_a_corrupt_download_is_not_left_in_place(empty, server, monkeypatch):
    root, home, _ = server
    put_fashion(root)
    monkeypatch.setenv("TINYDIFF_FASHION_HOME", home)
    with pytest.raises(ValueError, match="is not the file that it should be .* nothing was kept"):
        load("fashion-mnist")
    assert [p for p in (empty / "downloads" / "fashion-mnist").rglob("*") if p.is_file()] == []


def test_a_home_that_cannot_be_reached(empty, monkeypatch):
    monkeypatch.setenv("TINYDIFF_FASHION_HOME", "http://127.0.0.1:9/")
    with pytest.raises(OSError):
        load("fashion-mnist")
    assert [p for p in empty.rglob("*") if p.is_file()] == []


# ---- CIFAR-10 ------------------------------------------------------------------------------------


def cifar_rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(10, size=n, dtype=np.uint8), rng.integers(256, size=(n, 3, 32, 32), dtype=np.uint8)


def put_cifar(place: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    place.mkdir(parents=True)
    parts = {f"data_batch_{k}.bin": cifar_rows(3, k) for k in range(1, 6)} | {"test_batch.bin": cifar_rows(4, 9)}
    for name, (y, pixels) in parts.items():
        (place / name).write_bytes(np.concatenate([y[:, None], pixels.reshape(len(y), -1)], axis=1).tobytes())
    return parts


def test_cifar_from_its_binary_files(empty):
    parts = put_cifar(empty / "cifar10" / "cifar-10-batches-bin")
    train, test = load("cifar10", download=False), load("cifar10", "test", download=False)
    assert train.pixels.shape == (15, 3, 32, 32) and test.pixels.shape == (4, 3, 32, 32)
    y, pixels = parts["data_batch_2.bin"]
    assert np.array_equal(train.pixels[3:6].numpy(), pixels) and train.y[3:6].tolist() == y.tolist()
    assert train.classes[3] == "cat"
    framed = load("cifar10", size=34).pixels
    assert torch.equal(framed[:, :, 0, 1:33], framed[:, :, 1, 1:33])  # its edge, repeated


def test_cifar_from_its_archive(empty, tmp_path):
    parts = put_cifar(tmp_path / "cifar-10-batches-bin")
    (empty / "downloads" / "cifar10").mkdir(parents=True)
    packed = empty / "downloads" / "cifar10" / images.CIFAR_FILE
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    assert np.array_equal(load("cifar10", "test").pixels.numpy(), parts["test_batch.bin"][1])
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(ValueError, match="is damaged .*: delete it, and it is fetched again"):
        load("cifar10")


def test_cifar_that_is_cut_short_or_has_a_bad_label(tmp_path):
    put_cifar(tmp_path / "c")
    path = tmp_path / "c" / "test_batch.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:-1])
    with pytest.raises(ValueError, match="test_batch.bin is damaged: 12291 bytes are not a number of rows of 3073"):
        images.cifar_files([path])
    path.write_bytes(b"\x0b" + raw[1:])
    with pytest.raises(ValueError, match=r"test_batch.bin is damaged: y must lie in 0 \.\.\. 9"):
        images.cifar_files([path])


def test_cifar_that_is_not_here(empty):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is in none of"):
        load("cifar10", download=False)


# ---- folders -------------------------------------------------------------------------------------


def put(path: Path, colour, size=(20, 10), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_a_folder_of_classes(tmp_path):
    put(tmp_path / "dog" / "1.png", (255, 0, 0)), put(tmp_path / "cat" / "2.jpg", (0, 255, 0), (7, 30))
    put(tmp_path / "cat" / "1.png", (0, 0, 255)), put(tmp_path / "cat" / ".hidden.png", 0, mode="L")
    data = load(tmp_path, size=8)
    assert data.classes == ("cat", "dog") and data.y.tolist() == [0, 0, 1] and data.pixels.shape == (3, 3, 8, 8)
    assert data.pixels[0, :, 4, 4].tolist() == [0, 0, 255] and data.pixels[2, :, 4, 4].tolist() == [255, 0, 0]


def test_a_folder_without_classes_and_one_of_grey_images(tmp_path):
    put(tmp_path / "a.png", 10, mode="L"), put(tmp_path / "b.png", 200, mode="L")
    data = load(str(tmp_path), size=4)
    assert data.y is None and data.pixels.shape == (2, 1, 4, 4) and data.pixels[1].unique().tolist() == [200]
    put(tmp_path / "c.png", (1, 2, 3))
    assert load(tmp_path, size=4).pixels.shape == (3, 3, 4, 4)


def test_the_middle_square_is_kept(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert load(tmp_path, size=10).pixels.min() == 255


def test_a_folder_with_splits(tmp_path):
    put(tmp_path / "train" / "a.png", (9, 9, 9)), put(tmp_path / "test" / "b.png", (5, 5, 5))
    assert load(tmp_path, "test", size=4).pixels.unique().tolist() == [5]
    assert load(tmp_path, "train", size=4).pixels.unique().tolist() == [9]


def test_what_is_wrong_with_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="size must be given for a folder of images"):
        load(tmp_path)
    with pytest.raises(ValueError, match="there are no images"):
        load(tmp_path, size=8)
    put(tmp_path / "dog" / "1.png", (255, 0, 0))
    with pytest.raises(ValueError, match="split must be train: the folder has no test/ in it; got 'test'"):
        load(tmp_path, "test", size=8)
    put(tmp_path / "stray.png", (255, 0, 0))
    with pytest.raises(ValueError, match=r"has classes \(folders\), but stray.png lies in none of them"):
        load(tmp_path, size=8)
    (tmp_path / "stray.png").unlink()
    whole = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(whole, "PNG")
    for raw in (b"not an image", whole.getvalue()[:60], b""):
        (tmp_path / "dog" / "2.png").write_bytes(raw)
        with pytest.raises(ValueError, match="2.png is not an image that can be read"):
            load(tmp_path, size=8)
