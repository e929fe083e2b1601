"""Small stand-ins for torchvision's data sets, in their real layouts, made here."""

import bz2
import gzip
import hashlib
import json
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import torch
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


def _jpegs(folder, names, start=0):
    for seed, name in enumerate(names, start):
        write_jpeg(folder / name, seed)


def _idx(path, array):
    kind = {"uint8": 8, "int32": 12}[array.dtype.name]
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_caltech101(root, monkeypatch):
    folder = root / "caltech101/101_ObjectCategories"
    for name in ("BACKGROUND_Google", "ant", "bonsai"):
        _jpegs(folder / name, [f"image_{n:04d}.jpg" for n in range(1, 9)])


def write_caltech256(root, monkeypatch):
    for label, name in enumerate(("001.ak47", "002.flag"), 1):
        _jpegs(
            root / "caltech256/256_ObjectCategories" / name,
            [f"{label:03d}_{n:04d}.jpg" for n in range(1, 9)],
        )


def write_country211(root, monkeypatch):
    for part in ("train", "valid", "test"):
        for name in ("AD", "AE"):
            _jpegs(root / "country211" / part / name, ["1.jpg", "2.jpg"])


def write_dtd(root, monkeypatch):
    folder = root / "dtd/dtd"
    (folder / "labels").mkdir(parents=True)
    for place, part in enumerate(("train", "val", "test")):
        names = [f"{kind}/{kind}_{part}{n}.jpg" for kind in ("dotted", "banded") for n in range(2)]
        _jpegs(folder / "images", names, 10 * place)
        (folder / f"labels/{part}1.txt").write_text("\n".join(names) + "\n")


def write_emnist(root, monkeypatch):
    for part, count in (("train", 4), ("test", 2)):
        labels = np.tile(np.arange(47, dtype=np.uint8), count)
        folder = root / "EMNIST/raw"
        _idx(
            folder / f"emnist-balanced-{part}-images-idx3-ubyte", pixels(count, len(labels), 28, 28)
        )
        _idx(folder / f"emnist-balanced-{part}-labels-idx1-ubyte", labels)


def write_fer2013(root, monkeypatch):
    (root / "fer2013").mkdir()
    lines = ["emotion,pixels,Usage"]
    for usage in ("Training", "Training", "PublicTest", "PrivateTest"):
        for emotion in range(7):
            values = " ".join(map(str, pixels(len(lines), 48 * 48)))
            lines.append(f"{emotion},{values},{usage}")
    path = root / "fer2013/fer2013.csv"
    path.write_text("\n".join(lines))
    resources = {**datasets.FER2013._RESOURCES, "fer": ("fer2013.csv", md5(path))}
    monkeypatch.setattr(datasets.FER2013, "_RESOURCES", resources)


def write_aircraft(root, monkeypatch):
    folder = root / "fgvc-aircraft-2013b/data"
    for place, part in enumerate(("train", "val", "test")):
        _jpegs(folder / "images", [f"{part}{n}.jpg" for n in range(4)], 10 * place)
        lines = [f"{part}{n} {'A 300' if n % 2 else 'Boeing 7'}" for n in range(4)]
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")
    (folder / "variants.txt").write_text("Boeing 7\nA 300\n")


def write_food(root, monkeypatch):
    (root / "food-101/meta").mkdir(parents=True)
    for place, part in enumerate(("train", "test")):
        names = {kind: [f"{kind}/{part}{n}" for n in range(4)] for kind in ("ramen", "pho")}
        _jpegs(
            root / "food-101/images",
            [f"{name}.jpg" for some in names.values() for name in some],
            20 * place,
        )
        (root / f"food-101/meta/{part}.json").write_text(json.dumps(names))


def write_gtsrb(root, monkeypatch):
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(4):
        for label in ("00000", "00001"):
            path = root / f"gtsrb/GTSRB/Training/{label}/{number}.ppm"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(number, 20, 20, 3)).save(path)
        path = root / f"gtsrb/GTSRB/Final_Test/Images/{number}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(9 + number, 20, 20, 3)).save(path)
        lines.append(f"{number}.ppm;20;20;1;1;19;19;{number % 2}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(lines))


def write_inaturalist(root, monkeypatch):
    for part, start in (("2021_train", 0), ("2021_valid", 20)):
        for label, name in enumerate(("Animalia_A_B_C_D_E_f", "Plantae_G_H_I_J_K_l")):
            _jpegs(root / part / f"{label:05d}_{name}", [f"{n}.jpg" for n in range(4)], start)


def write_imagenet(root, monkeypatch):
    classes = {"n02012849": ("crane",), "n03126707": ("crane",), "n01440764": ("tench", "Tinca")}
    torch.save((classes, []), root / "meta.bin")
    for part, start in (("train", 0), ("val", 20)):
        for wnid in classes:
            _jpegs(root / part / wnid, [f"{n}.JPEG" for n in range(4)], start)


def write_qmnist(root, monkeypatch):
    for part, count in (("train", 4), ("test", 2)):
        labels = np.zeros((10 * count, 8), np.int32)
        labels[:, 0], labels[:, 1:] = np.tile(np.arange(10), count), 4
        folder = root / "QMNIST/raw"
        _idx(folder / f"qmnist-{part}-images-idx3-ubyte", pixels(count, 10 * count, 28, 28))
        _idx(folder / f"qmnist-{part}-labels-idx2-int", labels)


def write_sst2(root, monkeypatch):
    for part in ("train", "valid", "test"):
        for name in ("negative", "positive"):
            _jpegs(root / "rendered-sst2" / part / name, ["1.png", "2.png"])


def write_semeion(root, monkeypatch):
    one_hot = np.tile(np.eye(10, dtype=int), (8, 1))
    rows = np.concatenate([pixels(0, 80, 256) % 2, one_hot], axis=1)
    np.savetxt(root / "semeion.data", rows, fmt="%d")
    monkeypatch.setattr(datasets.SEMEION, "md5_checksum", md5(root / "semeion.data"))


def write_stl10(root, monkeypatch):
    folder = root / datasets.STL10.base_folder
    folder.mkdir()
    (folder / "class_names.txt").write_text("\n".join("abcdefghij"))
    for attribute in ("train_list", "test_list"):
        sums = []
        for name, _ in getattr(datasets.STL10, attribute):
            values = pixels(3, 20, 3 * 96 * 96) if "_X" in name else np.tile(np.arange(1, 11), 2)
            (folder / name).write_bytes(values.astype(np.uint8).tobytes())
            sums.append([name, md5(folder / name)])
        monkeypatch.setattr(datasets.STL10, attribute, sums)


def write_sun397(root, monkeypatch):
    names = ("/a/abbey", "/b/bakery/shop")
    for name in names:
        _jpegs(root / f"SUN397{name}", [f"sun_{n}.jpg" for n in (3, 1, 4, 2, 6, 5, 8, 7)])
    (root / "SUN397/ClassName.txt").write_text("\n".join(names) + "\n")


def write_svhn(root, monkeypatch):
    parts = dict(datasets.SVHN.split_list)
    for part in ("train", "test"):
        url, name, _ = parts[part]
        labels = np.tile(np.arange(1, 11), 3)[:, None]  # 10 is the digit 0
        savemat(root / name, {"X": pixels(len(part), 32, 32, 3, 30), "y": labels})
        parts[part] = [url, name, md5(root / name)]
    monkeypatch.setattr(datasets.SVHN, "split_list", parts)


def write_cars(root, monkeypatch):
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    names = np.array(["Audi TT", "BMW M3"], dtype=object)
    savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    kind = np.dtype([("fname", object), ("class", object)])
    for part, target in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        files = [f"{n:05d}.jpg" for n in range(4)]
        _jpegs(folder / f"cars_{part}", files, len(part))
        rows = np.array([(file, n % 2 + 1) for n, file in enumerate(files)], dtype=kind)
        savemat(folder / target, {"annotations": rows})


def write_usps(root, monkeypatch):
    for name, count in (("usps.bz2", 4), ("usps.t.bz2", 2)):
        values = pixels(count, 10 * count, 256) / 127.5 - 1
        rows = [
            f"{n % 10 + 1} " + " ".join(f"{i}:{v:.4f}" for i, v in enumerate(row, 1))
            for n, row in enumerate(values)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(rows).encode()))


# By torchvision's name: those that have no shipped configuration
OTHERS = {
    "Caltech101": write_caltech101,
    "Caltech256": write_caltech256,
    "Country211": write_country211,
    "DTD": write_dtd,
    "EMNIST": write_emnist,
    "FER2013": write_fer2013,
    "FGVCAircraft": write_aircraft,
    "Food101": write_food,
    "GTSRB": write_gtsrb,
    "INaturalist": write_inaturalist,
    "ImageNet": write_imagenet,
    "QMNIST": write_qmnist,
    "RenderedSST2": write_sst2,
    "SEMEION": write_semeion,
    "STL10": write_stl10,
    "SUN397": write_sun397,
    "SVHN": write_svhn,
    "StanfordCars": write_cars,
    "USPS": write_usps,
}

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
