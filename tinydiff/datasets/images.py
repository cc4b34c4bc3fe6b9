"""Image sets by one door: `load("fashion-mnist")`, `load("cifar10")`, `load("digits")`, `load("my/folder", size=32)`.

All become `Images`: uint8 pixels, channels first, which may lie on the GPU as they are (Fashion-MNIST is 47 MB there),
so that no loader starves it. A batch becomes float32 in [-1, 1], k / 127.5 - 1, only when it is drawn.

A set is sought in `data/` (or the folder TINYDIFF_DATA), then where Debian's package puts it, then it is downloaded to
`data/downloads/`: with progress, by checksum, and under its own name only when it is whole.
"""

import gzip
import math
import os
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from tinydiff.datasets.digits import digits_test, digits_train
from tinydiff.progress import progress

SPLITS = ("train", "test")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
FASHION_HOME = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_FILES = {  # split -> (images, their MD5, labels, their MD5), as the home page gives them
    "train": (
        *("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        *("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    ),
    "test": (
        *("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        *("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}
FASHION_CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR_HOME = "https://www.cs.toronto.edu/~kriz/"
CIFAR_FILE, CIFAR_MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
CIFAR_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Images(Dataset):
    """Images and, where there are any, their labels. A data set for `td.fit`, and a sequence of batches for yourself.

    pixels: (n, c, h, w) uint8. y: (n,) int64 in 0 ... len(classes) - 1, or None. classes: their names.
    Raises ValueError for pixels or labels of another kind, number or range.
    """

    def __init__(
        self,
        pixels: Tensor,
        y: Tensor | None = None,
        classes: tuple[str, ...] = (),
    ) -> None:
        if pixels.ndim != 4 or pixels.dtype != torch.uint8:
            raise ValueError(f"pixels must be uint8 of shape (n, c, h, w); got {pixels.dtype}, {tuple(pixels.shape)}")
        if y is not None:
            y = y.long()
            if y.shape != (len(pixels),):
                raise ValueError(f"y must hold one label for each of the {len(pixels)} images; got {tuple(y.shape)}")
            if len(y) and not (0 <= int(y.min()) and int(y.max()) < len(classes)):
                low, high = int(y.min()), int(y.max())
                raise ValueError(f"y must lie in 0 ... {len(classes) - 1}; got labels from {low} to {high}")
        self.pixels, self.y, self.classes = pixels, y, tuple(classes)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int | slice | Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """x0 in [-1, 1], or (x0, y) where there are labels: of one image, or of many."""
        x0 = self.pixels[i].float() / 127.5 - 1
        return x0 if self.y is None else (x0, self.y[i])

    def batch(self, i: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """The images of these numbers as td.fit wants them, on the device where the pixels lie."""
        drawn = self[i.to(self.pixels.device)]
        return {"x0": drawn} if self.y is None else dict(zip(("x0", "y"), drawn, strict=True))

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    @property
    def x0(self) -> Float[Tensor, "n c h w"]:
        """All images as float32 in [-1, 1]: four times the memory."""
        return self.pixels.float() / 127.5 - 1

    def to(self, device: torch.device | str) -> "Images":
        """The same set with pixels and labels on this device."""
        return Images(self.pixels.to(device), None if self.y is None else self.y.to(device), self.classes)

    def first(self, n: int) -> "Images":
        """The first n images."""
        if not 0 < n <= len(self):
            raise ValueError(f"n must lie in 1 ... {len(self)}; got {n}")
        return Images(self.pixels[:n], None if self.y is None else self.y[:n], self.classes)


# ---- by name -------------------------------------------------------------------------------------


def load(name: str | Path, split: str = "train", size: int | None = None, download: bool = True) -> Images:
    """An image set by its name, or by the folder that it lies in.

    Args:
        name: "fashion-mnist" (60,000 and 10,000 of 1 x 28 x 28), "fashion-mnist-10k" (the first 5,000 of each of
            its halves, which ship with the course), "cifar10" (50,000 and 10,000 of 3 x 32 x 32), "digits" (1,437 and
            360 of 1 x 8 x 8, to the nearest of 256 levels), or a folder of images: its sub-folders are classes, and
            `train` and `test` in it are splits.
        split: "train" or "test". A folder without `train` and `test` is all "train".
        size: side in pixels. A folder's images are scaled to it and cropped to a square, and it must be given; the
            named sets may be set in a larger frame of their background (28 to 32 for networks that halve often).
        download: False to raise FileNotFoundError in place of fetching.

    Raises ValueError for an unknown name, split or size and for a file that is damaged; FileNotFoundError for a set
    that is not here.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if isinstance(name, str) and name in NAMED:
        return _framed(NAMED[name](split, download), size)
    if Path(name).is_dir():
        return folder(name, split, size)
    raise ValueError(f"name must be one of {', '.join(NAMED)}, or a folder that is there; got {str(name)!r}")


def data_folder() -> Path:
    """`data/` of the checkout, or the folder that TINYDIFF_DATA names."""
    return Path(os.environ.get("TINYDIFF_DATA") or Path(__file__).resolve().parents[2] / "data")


def _fashion(split: str, download: bool) -> Images:
    images, images_md5, labels, labels_md5 = FASHION_FILES[split]
    places = [data_folder() / "fashion-mnist", data_folder() / "downloads" / "fashion-mnist", DEBIAN]
    for place in places:
        if (place / images).is_file() and (place / labels).is_file():
            return _idx_pair(place / images, place / labels, FASHION_CLASSES)
    if not download:
        listed = ", ".join(map(str, places))
        raise FileNotFoundError(f"Fashion-MNIST is in none of {listed}; download=True fetches it (30 MB)")
    home = os.environ.get("TINYDIFF_FASHION_HOME", FASHION_HOME)
    return _idx_pair(
        fetch(home + images, images_md5, places[1]), fetch(home + labels, labels_md5, places[1]), FASHION_CLASSES
    )


def _fashion_part(split: str, download: bool) -> Images:
    place = data_folder() / "fashion-mnist-10k"
    images, _, labels, _ = FASHION_FILES[split]
    return _idx_pair(place / images, place / labels, FASHION_CLASSES)


def _cifar10(split: str, download: bool) -> Images:
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] if split == "train" else ["test_batch.bin"]
    places = [data_folder() / "cifar10", data_folder() / "downloads" / "cifar10"]
    for place in (p / sub for p in places for sub in ("", "cifar-10-batches-bin")):
        if all((place / name).is_file() for name in names):
            return cifar_files([place / name for name in names])
    packed = next((p / CIFAR_FILE for p in places if (p / CIFAR_FILE).is_file()), None)
    if packed is None and not download:
        raise FileNotFoundError(f"CIFAR-10 is in none of {places[0]}, {places[1]}; download=True fetches it (160 MB)")
    packed = packed or fetch(os.environ.get("TINYDIFF_CIFAR_HOME", CIFAR_HOME) + CIFAR_FILE, CIFAR_MD5, places[1])
    try:
        with tarfile.open(packed) as tar:  # read in memory: nothing is unpacked that could be half there
            return _cifar([tar.extractfile(f"cifar-10-batches-bin/{name}").read() for name in names], packed)
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{packed} is damaged ({error}): delete it, and it is fetched again") from error


def _digits(split: str, download: bool) -> Images:
    part = digits_train() if split == "train" else digits_test()
    return Images(((part.x0 + 1) * 127.5).round().to(torch.uint8), part.y, tuple("0123456789"))


NAMED: dict[str, Callable[[str, bool], Images]] = {
    "fashion-mnist": _fashion,
    "fashion-mnist-10k": _fashion_part,
    "cifar10": _cifar10,
    "digits": _digits,
}


def _framed(images: Images, size: int | None) -> Images:
    side = images.pixels.shape[-1]
    if size is None or size == side:
        return images
    if size < side or (size - side) % 2:
        raise ValueError(f"size must be {side}, or larger by an even number; got {size}")
    edge = (size - side) // 2
    # grey images stand on 0, their paper; photographs have no paper, so their edge is repeated
    mode = "constant" if images.pixels.shape[1] == 1 else "replicate"
    framed = torch.nn.functional.pad(images.pixels.float(), (edge,) * 4, mode=mode).to(torch.uint8)
    return Images(framed, images.y, images.classes)


# ---- files ---------------------------------------------------------------------------------------


def fetch(url: str, md5: str, place: Path) -> Path:
    """The file of this address, downloaded into `place` unless it is there; checked, and then renamed into place.

    Raises ValueError for another checksum (nothing is left in place), OSError where it cannot be reached.
    """
    import pooch

    name = url.rsplit("/", 1)[-1]
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        return Path(pooch.retrieve(url, f"md5:{md5}", fname=name, path=place, progressbar=True))
    except ValueError as error:
        raise ValueError(f"{url} is not the file that it should be (MD5 {md5}); nothing was kept: {error}") from error
    finally:
        logger.setLevel(level)


def read_idx(path: str | Path) -> UInt8[Tensor, "..."]:
    """The bytes of an IDX file, gzipped or not: (n, h, w) for images, (n,) for labels (LeCun's format of MNIST).

    Raises FileNotFoundError, or ValueError for a file that is cut short or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        zero, kind, ndim = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
    except (OSError, EOFError, struct.error, gzip.zlib.error) as error:
        raise ValueError(f"{path} is damaged, or no IDX file: {error}") from error
    if (zero, kind) != (0, 8):
        raise ValueError(f"{path} is no IDX file of bytes: it begins with {raw[:4].hex()}, not 000008")
    if len(raw) != 4 + 4 * ndim + math.prod(shape):
        raise ValueError(f"{path} is damaged: {len(raw) - 4 - 4 * ndim} bytes for an array of shape {shape}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * ndim).reshape(shape)


def _idx_pair(images: Path, labels: Path, classes: tuple[str, ...]) -> Images:
    pixels, y = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or y.shape != (len(pixels),):
        raise ValueError(f"{images} and {labels} do not go together: their shapes are {pixels.shape} and {y.shape}")
    return _from_file(images, pixels[:, None], y, classes)


def cifar_files(paths: list[Path]) -> Images:
    """CIFAR-10's binary files: rows of 1 label and 3 x 32 x 32 bytes (Krizhevsky 2009). ValueError if damaged."""
    return _cifar([Path(path).read_bytes() for path in paths], paths[0])


def _cifar(files: list[bytes], path: Path) -> Images:
    for raw in files:
        if not raw or len(raw) % 3073:
            raise ValueError(f"{path} is damaged: {len(raw)} bytes are not a number of rows of 3073")
    rows = torch.cat([torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 3073) for raw in files])
    return _from_file(path, rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0], CIFAR_CLASSES)


def _from_file(path: Path, *parts: Any) -> Images:
    try:
        return Images(*parts)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def folder(path: str | Path, split: str = "train", size: int | None = None) -> Images:
    """The images of a folder, in the order of their names; sub-folders are classes. RGB, or grey if all are grey.

    Each is scaled so that its shorter side is `size` (by PIL's box-filtered Lanczos), and its middle square is kept.
    Raises ValueError where there are none, for a file that is no image, and where size is missing.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    root = Path(path)
    if size is None or size < 1:
        raise ValueError(f"size must be given for a folder of images: their side in pixels, at least 1; got {size}")
    halves = [s for s in SPLITS if (root / s).is_dir()]
    if halves and split not in halves or not halves and split != "train":
        raise ValueError(
            f"split must be {' or '.join(halves) or 'train: the folder has no test/ in it'}; got {split!r}"
        )
    root = root / split if halves else root
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"there are no images ({' '.join(SUFFIXES)}) in {root}")
    tops = [p.relative_to(root).parts[0] if p.parent != root else "" for p in files]
    classes = sorted(set(tops))
    if "" in classes and len(classes) > 1:
        stray = files[tops.index("")]
        raise ValueError(f"{root} has classes (folders), but {stray.name} lies in none of them")
    squares = []
    for file in progress(files, desc=f"reading {root.name}"):
        try:
            with Image.open(file) as image:
                image = ImageOps.exif_transpose(image)
                image = image.convert("L" if image.mode in ("1", "L") else "RGB")
                squares.append(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{file} is not an image that can be read: {error}") from error
    if any(s.mode == "RGB" for s in squares):
        squares = [s.convert("RGB") for s in squares]
    pixels = torch.stack([torch.from_numpy(np.array(s)).view(size, size, -1).permute(2, 0, 1) for s in squares])
    y = None if classes == [""] else torch.tensor([classes.index(top) for top in tops])
    return Images(pixels, y, () if y is None else tuple(classes))
