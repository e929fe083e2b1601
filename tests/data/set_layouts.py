"""Small stand-ins for torchvision's data sets, in their real layouts, made here."""

import gzip
import hashlib
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

IDX_KINDS = {"images-idx3": 3, "labels-idx1": 1}


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_jpeg(path, seed, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed, *size, 3)).save(path, format="JPEG")


def write_idx(folder, compressed=True, per_class=(4, 2)):
    """Four files of ten classes, as Fashion-MNIST's authors publish them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in zip(("train", "t10k"), per_class, strict=True):
        labels = np.tile(np.arange(10, dtype=np.uint8), count)
        arrays = {"images-idx3": pixels(count, len(labels), 28, 28), "labels-idx1": labels}
        for kind, array in arrays.items():
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            content = head + array.tobytes()
            path = folder / f"{part}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)


def write_cifar(root, monkeypatch, hundred=False):
    """Pickled batches; torchvision's list of checksums is made that of the stand-in."""
    constructor = datasets.CIFAR100 if hundred else datasets.CIFAR10
    classes = 100 if hundred else 10
    folder = root / constructor.base_folder
    folder.mkdir(parents=True)
    key = "fine_labels" if hundred else "labels"
    for attribute in ("train_list", "test_list"):
        sums = []
        for seed, (name, _) in enumerate(getattr(constructor, attribute)):
            labels = list(range(classes)) * (2 if attribute == "train_list" else 1)
            batch = {"data": pixels(seed, len(labels), 3072), key: labels}
            (folder / name).write_bytes(pickle.dumps(batch))
            sums.append([name, md5(folder / name)])
        monkeypatch.setattr(constructor, attribute, sums)
    meta = dict(constructor.meta)
    names = [f"class {number}" for number in range(classes)]
    (folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: names}))
    meta["md5"] = md5(folder / meta["filename"])
    monkeypatch.setattr(constructor, "meta", meta)


def write_imagenette(root, monkeypatch=None, size="160px"):
    folder = root / {"160px": "imagenette2-160", "full": "imagenette2"}[size]
    for part, count in (("train", 3), ("val", 1)):
        for wnid in datasets.Imagenette._WNID_TO_CLASS:
            for number in range(count):
                write_jpeg(folder / part / wnid / f"{wnid}_{number}.JPEG", number)


def write_flowers(root, monkeypatch):
    """Three flowers a class and part; torchvision's checksums are made those of the stand-in."""
    folder = root / "flowers-102"
    labels = np.tile(np.arange(1, 103), 3)
    for number in range(1, len(labels) + 1):
        write_jpeg(folder / "jpg" / f"image_{number:05d}.jpg", number)
    ids = np.arange(1, len(labels) + 1).reshape(3, 102)
    savemat(folder / "imagelabels.mat", {"labels": labels})
    savemat(folder / "setid.mat", {"trnid": ids[0], "valid": ids[1], "tstid": ids[2]})
    sums = dict(datasets.Flowers102._file_dict)
    for name in ("label", "setid"):
        file = sums[name][0]
        sums[name] = (file, md5(folder / file))
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", sums)


def write_pets(root, monkeypatch=None):
    folder = root / "oxford-iiit-pet"
    breeds = [f"{'Cat' if n % 2 else 'dog'}_breed_{n}" for n in range(1, 38)]
    (folder / "annotations/trimaps").mkdir(parents=True)
    for part, count in (("trainval", 3), ("test", 1)):
        lines = []
        for label, breed in enumerate(breeds, 1):
            for number in range(count):
                name = f"{breed}_{part}{number}"
                write_jpeg(folder / "images" / f"{name}.jpg", label)
                # 1 pet, 2 background, 3 border
                trimap = Image.fromarray(pixels(label, 40, 30) % 3 + 1)
                trimap.save(folder / "annotations/trimaps" / f"{name}.png")
                lines.append(f"{name} {label} {label % 2 + 1} 1")
        (folder / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def write_eurosat(root, monkeypatch=None):
    for name in ("AnnualCrop", "Forest", "River", "SeaLake"):
        for number in range(15):
            write_jpeg(root / f"eurosat/2750/{name}/{name}_{number}.jpg", number, (64, 64))


# By the name of the shipped configuration
WRITERS = {
    "cifar10": lambda root, patch: write_cifar(root, patch),
    "cifar100": lambda root, patch: write_cifar(root, patch, hundred=True),
    "eurosat": write_eurosat,
    "fashion_mnist": lambda root, _: write_idx(root / "FashionMNIST/raw"),
    "flowers102": write_flowers,
    "imagenette": write_imagenette,
    "pets": write_pets,
}


def pack(archive, folder, *names):
    """Put files or folders of a folder into an archive, and remove them."""
    paths = [
        path for name in names for path in [folder / name, *sorted((folder / name).rglob("*"))]
    ]
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in paths:
                file.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz") as file:
            for name in names:
                file.add(folder / name, name)
    for path in reversed(paths):
        path.rmdir() if path.is_dir() else path.unlink()


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*"))
