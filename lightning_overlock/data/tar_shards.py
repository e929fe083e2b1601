"""Images in tar files as WebDataset writes them: an index made once gives them in any order."""

import contextlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray

from lightning_overlock.data.images import image_suffixes, is_systems, some
from lightning_overlock.data.left_out import LeftOut
from lightning_overlock.errors import InputError, printable

# Where the label of a sample lies: a file of its own, or a field of its json.
LABEL_FILE = "cls"
LABEL_FIELDS = ("label", "cls")
# Written beside the shards, one for each split.
INDEX_FILE = ".{split}.index.npz"
INDEX_VERSION = 1


class Place(NamedTuple):
    """Where a file lies in a shard, in bytes."""

    offset: int
    size: int


class Sample(NamedTuple):
    """An image in a shard.

    Attributes:
        name: Its file's name.
        place: Where it lies.
        label: What the shard says of its class: a number or a name.
    """

    name: str
    place: Place
    label: str


class TarShards:
    """The samples of a split: an image each and, in `KEY.cls` or `KEY.json`, what it shows.

    The files of a sample have a name in common, up to the first dot. The index is kept beside the
    shards, where that folder can be written, and made anew when a shard has changed.

    Args:
        shards: The tar files, in their order.
        split: The split's name, for that of the index.

    Attributes:
        folder: Where the shards lie.
        shards: The tar files.
        words: (N,) bytes, what the shards say of the class of each sample.
        labels: (N,) the same as places among the classes, once these are known.
        left_out: Samples that lack an image or a label, and other files.

    Raises:
        InputError: A shard is broken, or none has a sample.
    """

    kind = "shards"

    def __init__(self, shards: Sequence[Path], split: str) -> None:
        self.shards = [str(shard) for shard in shards]
        self.folder = str(shards[0].parent)
        index = _read_index(shards, split)
        if not len(index["offset"]):
            raise InputError(
                f"{printable(self.folder)}: no images with labels in {some(self.shards)}\n"
                "expected samples KEY.jpg (png, webp) with KEY.cls or KEY.json, whose field "
                "'label' is the class"
            )
        self.shard, self.offset, self.size = (index[name] for name in ("shard", "offset", "size"))
        # Bytes in one array, see `ImageFiles`.
        self.names, self.words = index["name"], index["label"]
        self.labels: NDArray[np.int64] | None = None
        self.left_out = LeftOut("samples")
        for reason, (count, first) in json.loads(str(index["left_out"])).items():
            self.left_out.add(reason, first, count)

    def __len__(self) -> int:
        return len(self.offset)

    def set_classes(self, class_names: Sequence[str]) -> None:
        """Find the label of each sample.

        Raises:
            InputError: A sample is of no class.
        """
        self.labels = labels_of(self.words, class_names, self.folder)

    def read(self, index: int) -> tuple[str, bytes, int]:
        """Return the name, the encoded bytes and the label of an image.

        Raises:
            InputError: The shard is gone or has become shorter.
        """
        shard, size = self.shards[self.shard[index]], int(self.size[index])
        try:
            with open(shard, "rb") as file:  # noqa: PTH123 - once for each image
                file.seek(int(self.offset[index]))
                content = file.read(size)
        except OSError as error:
            raise InputError(f"{printable(shard)}: {error.strerror}\nexpected a shard") from error
        if len(content) < size:
            raise InputError(
                f"{printable(shard)}: this shard ends before its sample number {index}\n"
                "expected it as it was when its index was made"
            )
        assert self.labels is not None  # the classes are known before any image is read
        return f"{shard}/{os.fsdecode(self.names[index])}", content, int(self.labels[index])


def class_names_of(words: NDArray[np.bytes_], source: str) -> list[str]:
    """Return the classes where nobody has named them: the words in the shards, or the numbers.

    Args:
        words: (N,) what the shards say of the class of each training image.
        source: Where they are from, for messages.

    Raises:
        InputError: There are fewer than two classes, or a number below zero.
    """
    found = [os.fsdecode(word) for word in np.unique(words).tolist()]
    numbers = _numbers(found)
    if numbers is not None:
        found = [str(number) for number in range(max(numbers) + 1)]
    if len(found) < 2 or (numbers is not None and min(numbers) < 0):
        raise InputError(
            f"{printable(source)}: the shards have the class(es) {some(found)}\n"
            "expected at least two, numbered from 0 or named"
        )
    return found


def labels_of(
    words: NDArray[np.bytes_], class_names: Sequence[str], source: str
) -> NDArray[np.int64]:
    """Return (N,) labels, places in `class_names`.

    Args:
        words: (N,) what the shards say of the class of each image: its number, or its name.
        class_names: The classes.
        source: Where the words are from, for messages.

    Raises:
        InputError: A word is no class.
    """
    unique, inverse = np.unique(words, return_inverse=True)
    found = [os.fsdecode(word) for word in unique.tolist()]
    places: dict[str, int] = {name: place for place, name in enumerate(class_names)}
    if (numbers := _numbers(found)) is not None:
        places = {
            word: number
            for word, number in zip(found, numbers, strict=True)
            if 0 <= number < len(class_names)
        }
    if unknown := [word for word in found if word not in places]:
        raise InputError(
            f"{printable(source)}: the label(s) {some(unknown)} are none of the "
            f"{len(class_names)} classes {some(list(class_names))}\n"
            "expected their numbers, from 0, or their names (data.class_names)"
        )
    return np.array([places[word] for word in found], dtype=np.int64)[inverse]


def _numbers(words: Sequence[str]) -> list[int] | None:
    """Return words as whole numbers, None where one is none."""
    try:
        return [int(word) for word in words]
    except ValueError:
        return None


def _read_index(shards: Sequence[Path], split: str) -> dict[str, NDArray[Any]]:
    """Return the index of shards: as it was kept, or a new one."""
    path = shards[0].parent / INDEX_FILE.format(split=split)
    try:
        stats = [shard.stat() for shard in shards]
    except OSError as error:
        raise InputError(f"{printable(error.filename)}: {error.strerror}") from error
    state = [
        [s.name, stat.st_size, stat.st_mtime_ns] for s, stat in zip(shards, stats, strict=True)
    ]
    made_of = np.array(json.dumps([INDEX_VERSION, state]))
    with contextlib.suppress(OSError, ValueError, KeyError), np.load(path) as kept:
        if kept["made_of"] == made_of:
            return {name: kept[name] for name in kept.files}
    rank_zero_info(f"{split}: reading the headers of {len(shards):,} shard(s) in {path.parent}")
    left_out = LeftOut("samples")
    found = [list(_samples(shard, left_out)) for shard in shards]
    samples = [sample for of_shard in found for sample in of_shard]
    counts = {reason: (n, left_out.first[reason]) for reason, n in left_out.counts.items()}
    index: dict[str, NDArray[Any]] = {
        "made_of": made_of,
        "shard": np.repeat(np.arange(len(found)), [len(of_shard) for of_shard in found]),
        "offset": np.array([sample.place.offset for sample in samples], dtype=np.int64),
        "size": np.array([sample.place.size for sample in samples], dtype=np.int64),
        "name": np.array([os.fsencode(sample.name) for sample in samples], dtype=np.bytes_),
        "label": np.array([os.fsencode(sample.label) for sample in samples], dtype=np.bytes_),
        "left_out": np.array(json.dumps(counts)),
    }
    _keep(index, path)
    return index


def _keep(index: dict[str, NDArray[Any]], path: Path) -> None:
    """Write an index whole, in the place of another process's; without one it is made again."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        try:
            with part.open("wb") as file:
                np.savez(file, **index)  # type: ignore[arg-type]
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _samples(shard: Path, left_out: LeftOut) -> Iterator[Sample]:
    """Yield the samples of a shard, in its order."""
    suffixes = image_suffixes()
    with _opened(shard) as archive:
        for key, files in _grouped(archive, shard).items():
            images = [kind for kind in files if f".{kind.lower()}" in suffixes]
            label = _label(archive, files, shard, key)
            where = f"{shard.name}/{key}"
            if len(images) != 1:
                left_out.add("with several images" if images else "without an image", where)
            elif label is None:
                left_out.add("without a label", where)
            else:
                yield Sample(f"{key}.{images[0]}", files[images[0]], label)


@contextlib.contextmanager
def _opened(shard: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(shard, "r:") as archive:
            yield archive
    except (tarfile.TarError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{printable(shard)}: this shard is broken ({reason})\n"
            "expected an uncompressed tar file as WebDataset writes it; copy it anew"
        ) from error


def _grouped(archive: tarfile.TarFile, shard: Path) -> dict[str, dict[str, Place]]:
    """Return the files of each sample by what follows its key: "jpg", "cls"."""
    groups: dict[str, dict[str, Place]] = {}
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        stem, _, kind = name.partition(".")
        # WebDataset's own notes are called __so__.
        if (
            not member.isreg()
            or is_systems(name)
            or (stem.startswith("__") and stem.endswith("__"))
        ):
            continue
        files = groups.setdefault(f"{folder}/{stem}" if folder else stem, {})
        if kind in files:
            raise InputError(
                f"{printable(shard)}: {printable(member.name)} is there twice\n"
                "expected a name of its own for every sample"
            )
        files[kind] = Place(member.offset_data, member.size)
    # tarfile takes whatever is no header for the end.
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"no header and no end after {archive.offset:,} bytes")
    return groups


def _label(archive: tarfile.TarFile, files: dict[str, Place], shard: Path, key: str) -> str | None:
    """Return what a sample says of its class, None where it says nothing."""
    kind = LABEL_FILE if LABEL_FILE in files else "json"
    if kind not in files:
        return None
    assert archive.fileobj is not None
    archive.fileobj.seek(files[kind].offset)
    content = archive.fileobj.read(files[kind].size)
    try:
        text = content.decode("utf-8").strip()
        if kind == LABEL_FILE:
            return text or None
        fields = json.loads(text)
        words = [fields[name] for name in LABEL_FIELDS if fields.get(name) is not None]
        return str(words[0]) if words else None
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{printable(shard)}: {printable(key)}.{kind} is no label ({error})\n"
            "expected text with the class's number or name, or json with it in 'label'"
        ) from error
