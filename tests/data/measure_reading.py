"""Measures how fast images are read from a folder, from chunks and from shards on this machine.

python tests/data/measure_reading.py FOLDER [IMAGES] [WORKERS]

FOLDER must be empty or not there. Makes IMAGES (default: 4,000) JPEGs of 500 x 375 pixels, 65 kB
each, converts them with `lightning data optimize` and to WebDataset's shards of 1,000, and reads
each in a training's order with its augmentation (WORKERS, default: what the data module takes), and
once the bytes alone. All are read five times in turn; the first pass is thrown away, so that files
are in the system's cache, as far as it reaches.
"""

import statistics
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from shards import add

from lightning_overlock.cli.main import main as lightning
from lightning_overlock.data import ImageFolderDataModule, StreamingDataModule
from lightning_overlock.data.images import ImageFiles
from lightning_overlock.tables import markdown

PASSES = 5
CLASSES = 10
PER_SHARD = 1000


def write_images(folder, images):
    """Write JPEGs whose files are about as large as photographs' are."""
    random = np.random.default_rng(0)
    for number in range(images + 100):
        split, place = ("train", number) if number < images else ("val", number - images)
        path = folder / split / f"class{place % CLASSES}" / f"{place:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noise = random.integers(-12, 13, pixels.shape)
        image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        image.save(path, quality=90)


def write_shards(folder, root):
    """Write WebDataset's shards of the same images, in the same order."""
    root.mkdir(parents=True)
    for split in ("train", "val"):
        files = sorted((folder / split).glob("*/*"))
        for start in range(0, len(files), PER_SHARD):
            with tarfile.open(root / f"{split}-{start // PER_SHARD:04d}.tar", "w") as archive:
                for number, file in enumerate(files[start : start + PER_SHARD], start):
                    label = file.parent.name.removeprefix("class")
                    add(archive, f"{number:06d}.jpg", file.read_bytes())
                    add(archive, f"{number:06d}.cls", label.encode())


def with_augmentation(data):
    """Return images a second in training."""
    loader = data.train_dataloader()
    start = time.perf_counter()
    count = sum(len(images) for images, _ in loader)
    return count / (time.perf_counter() - start)


def bytes_alone(data):
    """Return images a second that are read in a shuffled order and not decoded, by one process."""
    source = data.source("train")
    order = np.random.default_rng(1).permutation(len(source)).tolist()
    start = time.perf_counter()
    for place in order:
        if isinstance(source, ImageFiles):
            Path(source.folder, source.files[place].decode()).read_bytes()
        else:
            source.records.read(place)
    return len(order) / (time.perf_counter() - start)


def main(root, images=4000, workers=None):
    """Print a table of images a second: the median of the passes, and the slowest and fastest."""
    folder = root / "folder"
    write_images(folder, images)
    assert lightning(["data", "optimize", str(folder), "--output", str(root / "chunks")]) == 0
    write_shards(folder, root / "shards")
    options = {"image_size": 224, "batch_size": 64, "num_workers": workers}
    sources = {
        "image folder": ImageFolderDataModule(str(folder), **options),
        "LitData's chunks": StreamingDataModule(str(root / "chunks"), **options),
        "WebDataset's shards": StreamingDataModule(str(root / "shards"), **options),
    }
    measures = {"images/s, augmented": with_augmentation, "images/s, bytes alone": bytes_alone}
    found = {(name, what): [] for name in sources for what in measures}
    for number in range(PASSES):
        for what, measure in measures.items():
            for name, data in sources.items():
                speed = measure(data)
                if number:
                    found[name, what].append(speed)
    for data in sources.values():
        data.teardown("")
    print(
        markdown(
            [
                {"read from": name, **{what: _told(found[name, what]) for what in measures}}
                for name in sources
            ]
        )
    )


def _told(speeds):
    return f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
