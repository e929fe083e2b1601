"""`lightning data optimize`: a folder of images as LitData's chunks, which a store can hold."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lightning_overlock.data.image_folder import ImageFolderDataModule, class_folders
from lightning_overlock.data.images import ImageFiles, open_image
from lightning_overlock.data.left_out import LeftOut, refuse_if_too_many
from lightning_overlock.data.litdata_chunks import INDEX_FILE, Item, fetch_text, put_text
from lightning_overlock.data.loading import CorruptImage, default_num_workers
from lightning_overlock.data.streaming import CLASSES_FILE
from lightning_overlock.errors import InputError, printable

READERS = 16  # it is the disk that is waited for
MEGABYTE = 2**20


def run(
    root: Path, output: str, chunk_mb: float, num_workers: int | None, max_left_out: float
) -> None:
    """Write the splits of an image folder as LitData's chunks, and say how to train on them.

    Args:
        root: The image folder, as `ImageFolderDataModule` reads it.
        output: A folder, or an s3:// or gs:// address.
        chunk_mb: Size of a chunk in MB.
        num_workers: Processes that write; None: one fewer than the cores.
        max_left_out: Largest share of a class's files that may be left out.

    Raises:
        InputError: There is nothing to write, too much would be left out, or the output cannot be
            written.
    """
    from litdata import optimize

    data = ImageFolderDataModule(str(root), max_left_out=max_left_out)
    splits = ["train", "val"]
    if (root / "test").is_dir() and class_folders(root / "test"):
        splits.append("test")
    for split in splits:
        if fetch_text(f"{output}/{split}/{INDEX_FILE}") is not None:
            raise InputError(
                f"--output {printable(output)}: there is an index of '{split}' already.\n"
                "Expected an address where nothing is."
            )
    images = {}
    for split in splits:
        source = data.source(split)  # type: ignore[arg-type]
        if told := data.examine(split):  # type: ignore[arg-type]
            print(f"{split}: {told}")
        assert isinstance(source, ImageFiles)
        images[split] = _readable(source, split, max_left_out)
    put_text(f"{output}/{CLASSES_FILE}", "".join(f"{name}\n" for name in data.class_names))
    for split, items in images.items():
        optimize(
            _item,
            items,
            f"{output}/{split}",
            chunk_bytes=int(chunk_mb * MEGABYTE),
            num_workers=min(num_workers or default_num_workers(), len(items)),
            # The order of the folder, so that an epoch is the same in both.
            reorder_files=False,
            keep_data_ordered=True,
            start_method="fork",
            verbose=False,
        )
        print(f"{split}: {len(items):,} images in {printable(output)}/{split}")
    print(
        f"{len(data.class_names)} classes; train with --data StreamingDataModule "
        f"--data.root {printable(output)}"
    )


def _readable(source: ImageFiles, split: str, max_left_out: float) -> list[tuple[str, str, int]]:
    """Return (folder, file, label) of the files that begin as an image does.

    Raises:
        InputError: Too many do not.
    """
    folder = source.folder
    files = [os.fsdecode(file) for file in source.files.tolist()]

    def begins_well(file: str) -> bool:
        try:
            with open_image(Path(folder, file), source.max_pixels):
                return True
        except CorruptImage:
            return False

    with ThreadPoolExecutor(READERS) as pool:
        good = list(pool.map(begins_well, files))
    left_out = LeftOut("images")
    for file, well in zip(files, good, strict=True):
        if not well:
            left_out.add("that cannot be opened", file)
    refuse_if_too_many(printable(folder), left_out, len(files), max_left_out)
    if left_out.total:
        print(f"{split}: {left_out.summary(len(files))}")
    assert source.labels is not None
    labels: list[int] = source.labels.tolist()
    return [
        (folder, file, label) for file, label, well in zip(files, labels, good, strict=True) if well
    ]


def _item(place: tuple[str, str, int]) -> Item:
    """Return what is stored of an image; runs in LitData's processes."""
    folder, file, label = place
    return Path(folder, file).read_bytes(), label, printable(file)
