"""A small image folder, and the same images in WebDataset's shards."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ["cat", "dog", "eel"]
# Splits as hub repositories call them in the names of their shards.
CALLED = {"train": "train", "val": "validation"}


def write_folder(root, train=5, val=3, side=24):
    """Write images of three classes; nine of the validation are shared unevenly by two."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(CLASSES):
            for number in range(count):
                path = root / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                random = np.random.default_rng((label, number, count))
                pixels = random.integers(0, 256, (side, side + 4, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    return root


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_shards(root, folder, per_shard=4):
    """Write the images of a folder, in its order, as shards called like those on the hub."""
    root.mkdir(parents=True)
    for split, called in CALLED.items():
        files = sorted((folder / split).glob("*/*"))
        for start in range(0, len(files), per_shard):
            with tarfile.open(root / f"set-{called}-{start // per_shard:04d}.tar", "w") as archive:
                for number, file in enumerate(files[start : start + per_shard], start):
                    label = CLASSES.index(Path(file).parent.name)
                    add(archive, f"{number:05d}.png", file.read_bytes())
                    add(archive, f"{number:05d}.cls", str(label).encode())
                    add(archive, f"{number:05d}.json", b'{"label": 99}')
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return root
