"""LitData's chunks and WebDataset's shards against the image folder that they were made of."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest
import torch
from data.fake_store import fake_store
from data.shards import CLASSES, add, write_folder, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from runs.stops import Network, Plan, Stop, differences, load, result, train
from shared import printed_config, truncate
from torch import nn

from lightning_overlock.cli.main import main
from lightning_overlock.data import ImageFolderDataModule, StreamingDataModule
from lightning_overlock.data.litdata_chunks import LitDataChunks
from lightning_overlock.data.loading import Key
from lightning_overlock.data.tar_shards import TarShards
from lightning_overlock.errors import InputError
from lightning_overlock.runs.layout import LAST
from lightning_overlock.tasks import ClassificationTask

SMALL = {"image_size": 16, "batch_size": 2, "num_workers": 0}
KINDS = ["chunks", "shards"]
TWO_NODES = Path(__file__).with_name("two_nodes.py")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same images as a folder, as chunks and as shards."""
    root = tmp_path_factory.mktemp("streaming")
    folder = write_folder(root / "folder")
    (folder / "train" / "cat" / "empty.png").touch()
    arguments = ["--output", str(root / "chunks"), "--chunk_mb", "0.004", "--num_workers", "2"]
    assert main(["data", "optimize", str(folder), *arguments, "--data.max_left_out", "0.2"]) == 0
    (folder / "train" / "cat" / "empty.png").unlink()
    write_shards(root / "shards", folder)
    return root


@pytest.fixture
def copies(made, tmp_path):
    """Copies that a test may break."""
    for kind in KINDS:
        shutil.copytree(made / kind, tmp_path / kind)
    return tmp_path


def items(source):
    return [source[Key(2, index)] for index in range(len(source))]


def message(error):
    text = str(error.value)
    assert len(text.splitlines()) <= 3
    return text


# The same as from the folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_and_labels_are_those_of_the_folder(made, kind, split, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    expected = ImageFolderDataModule(str(made / "folder"), **SMALL)
    found = StreamingDataModule(str(made / kind), **SMALL)
    assert found.class_names == expected.class_names == CLASSES
    pairs = zip(items(found.source(split)), items(expected.source(split)), strict=True)
    for (image, label), (other, other_label) in pairs:
        assert torch.equal(image, other)
        assert label == other_label


@pytest.mark.parametrize("kind", KINDS)
def test_batches_come_in_the_order_of_the_folder(made, kind):
    loaders = [
        module(str(made / name), **SMALL).train_dataloader()
        for module, name in ((StreamingDataModule, kind), (ImageFolderDataModule, "folder"))
    ]
    for loader in loaders:
        loader.batch_sampler.sampler.set_epoch(4)
    for found, expected in zip(*loaders, strict=True):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_workers_read_what_the_process_reads(made, kind):
    alone = StreamingDataModule(str(made / kind), **SMALL)
    items(alone.source("train"))  # opens files that a forked worker would share
    several = StreamingDataModule(str(made / kind), **{**SMALL, "num_workers": 2})
    several._records = alone._records
    pairs = list(zip(several.train_dataloader(), alone.train_dataloader(), strict=True))
    several.teardown("")
    assert len(pairs) == 7
    for found, expected in pairs:
        assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_named_by_shard_and_file(made, kind):
    names = [name for _, name in items(StreamingDataModule(str(made / kind)).source("predict"))]
    assert len(set(names)) == 9
    first = {"chunks": "val/chunk-0-0.bin/cat/0.png", "shards": "set-validation-0000.tar/00000.png"}
    assert names[0] == f"{made / kind}/{first[kind]}"


def test_items_of_another_kind_are_described(made):
    records = LitDataChunks(f"{made / 'chunks'}/val")
    records.set_classes(CLASSES)
    for item, described in (({"image": b""}, "(dict)"), ((b"", 1), "(bytes, int)")):
        records._opened = os.getpid(), [item] * 9
        with pytest.raises(InputError) as error:
            records.read(0)
        assert f"chunk-0-0.bin: item 0 is {described}" in message(error)


def test_stored_bytes_are_those_of_the_files(made):
    records = LitDataChunks(f"{made / 'chunks'}/val")
    records.set_classes(CLASSES)
    files = sorted((made / "folder" / "val").glob("*/*"))
    for index, file in enumerate(files):
        name, content, label = records.read(index)
        assert name.endswith(f"{file.parent.name}/{file.name}")
        assert content == file.read_bytes()
        assert CLASSES[label] == file.parent.name


def test_optimize_counts_what_is_no_image(made, tmp_path, capsys):
    folder = shutil.copytree(made / "folder", tmp_path / "folder")
    (folder / "train" / "dog" / "page.png").write_text("<html>")
    arguments = ["data", "optimize", str(folder), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--data.max_left_out", "0"]) == 2
    assert "1 that cannot be opened (dog/page.png)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_optimize_writes_over_nothing(made, capsys):
    arguments = ["data", "optimize", str(made / "folder"), "--output", str(made / "chunks")]
    assert main(arguments) == 2
    assert "there is something already" in capsys.readouterr().err


@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_extra_is_named(made, missing, monkeypatch, capsys):
    if missing:
        monkeypatch.setattr("lightning_overlock.errors.find_spec", lambda name: None)
        with pytest.raises(InputError) as error:
            StreamingDataModule(str(made / "chunks"))
        assert "pip install 'lightning-overlock[streaming]'" in message(error)
        arguments = ["data", "optimize", str(made / "folder"), "--output", "out"]
        assert main(arguments) == 2
        assert "pip install 'lightning-overlock[streaming]'" in capsys.readouterr().err
    # Shards need nothing that is not there.
    assert len(StreamingDataModule(str(made / "shards")).source("val")) == 9


def test_the_recipe_of_imagenet_takes_it_by_name(made, capsys):
    root = str(made / "shards")
    found = printed_config(
        capsys, "--config", "imagenet", "--data", "StreamingDataModule", "--data.root", root
    )["data"]
    assert found["class_path"].endswith("StreamingDataModule")
    assert found["init_args"]["root"] == root
    assert found["init_args"]["auto_augment"] == "rand-m9-mstd0.5-inc1"


# Continuing


class Task(ClassificationTask):
    def build_model(self, num_classes):
        layers = nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 3)
        return Network(nn.Flatten(), *layers)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's advice for such small runs
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_amid_an_epoch_ends_as_one_that_was_not(
    made, kind, tmp_path, monkeypatch
):
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    monkeypatch.setattr("runs.stops.Task", Task)
    monkeypatch.setattr(
        "runs.stops.Points", lambda batches: StreamingDataModule(str(made / kind), **SMALL)
    )
    plan = Plan(epochs=2, batches=7)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole", plan)
    for stop in (Stop("signal", 4), Stop("steps", 10)):
        train(tmp_path / "stopped", plan, stop)
        position = load(tmp_path / "stopped" / LAST)["global_step"]
        assert position % 7 > 0  # amid an epoch
    train(tmp_path / "stopped", plan)
    found, expected = (result(tmp_path / name) for name in ("stopped", "whole"))
    assert not list(differences(found, expected))


# What is broken or missing


@pytest.mark.parametrize("breaking", ["missing", "short", "garbage"])
def test_a_broken_chunk_is_named(copies, breaking):
    chunk = copies / "chunks" / "train" / "chunk-0-1.bin"
    if breaking == "missing":
        chunk.unlink()
    elif breaking == "short":
        truncate(chunk)
    else:
        chunk.write_bytes(b"\xff" * chunk.stat().st_size)
    with pytest.raises(InputError) as error:
        items(StreamingDataModule(str(copies / "chunks"), **SMALL).source("train"))
    assert str(chunk) in message(error)


def test_a_chunk_that_goes_missing_in_training_is_named(copies):
    data = StreamingDataModule(str(copies / "chunks"), **SMALL)
    chunk = copies / "chunks" / "train" / "chunk-1-0.bin"
    chunk.unlink()
    with pytest.raises(InputError) as error:
        list(data.train_dataloader())
    assert str(chunk) in message(error)


@pytest.mark.parametrize("gone", ["train/index.json", "val/index.json", "classes.txt"])
def test_a_missing_index_or_list_of_classes_is_named(copies, gone):
    (copies / "chunks" / gone).unlink()
    with pytest.raises(InputError, match=gone.split("/")[0].removesuffix(".txt")) as error:
        StreamingDataModule(str(copies / "chunks"))
    assert "expected" in message(error)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "b", "b"]])
def test_names_that_do_not_fit_are_refused(made, names):
    for kind in KINDS:
        with pytest.raises(InputError) as error:
            items(StreamingDataModule(str(made / kind), names, **SMALL).source("train"))
        assert "expected" in message(error)


@pytest.mark.parametrize("index", ["[]", "{", '{"chunks": [{}], "config": {}}'])
def test_a_file_that_is_no_index_is_named(copies, index):
    (copies / "chunks" / "train" / "index.json").write_text(index)
    with pytest.raises(InputError, match=r"train/index\.json: no index of LitData"):
        StreamingDataModule(str(copies / "chunks"))


@pytest.mark.parametrize("when", ["before", "afterwards"])
def test_a_broken_shard_is_named(copies, when):
    shard = copies / "shards" / "set-train-0002.tar"
    data = StreamingDataModule(str(copies / "shards"), **SMALL) if when == "afterwards" else None
    truncate(shard)
    with pytest.raises(InputError) as error:
        items((data or StreamingDataModule(str(copies / "shards"), **SMALL)).source("train"))
    assert str(shard) in message(error)


def test_a_shard_that_goes_missing_is_named(copies):
    data = StreamingDataModule(str(copies / "shards"), **SMALL)
    shard = copies / "shards" / "set-train-0002.tar"
    shard.unlink()
    with pytest.raises(InputError) as error:
        list(data.train_dataloader())
    assert str(shard) in message(error)


def test_a_folder_without_shards_is_refused(tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"data\.root") as error:
            StreamingDataModule(str(root))
        assert "expected train/ and val/" in message(error)


# Any layout of shards

KEYS = st.text("abc0123-_ü", min_size=1, max_size=6).filter(lambda key: not key.startswith("__"))
LABELLED = st.sampled_from(["cls", "json", "both", "neither"])
SAMPLES = st.lists(
    st.tuples(
        KEYS, st.integers(0, 6), LABELLED, st.sampled_from(["jpg", "png", "WEBP", "", "two"])
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda sample: sample[0],
)


def write_samples(path, samples, folder, backwards):
    """Write a shard and return its samples with both an image and a label, in their order."""
    expected = []
    with tarfile.open(path, "w") as archive:
        add(archive, "__meta__.json", b"{}")
        add(archive, "._0001.jpg", b"of another system")
        for place, (key, label, labelled, kind) in enumerate(samples):
            content = f"{path.name} {place}".encode()
            images = ["jpg", "png"] if kind == "two" else [kind] * bool(kind)
            files = [(f"{key}.{suffix}", content) for suffix in images]
            if labelled in {"cls", "both"}:
                files.append((f"{key}.cls", f"{label}\n".encode()))
            if labelled in {"json", "both"}:
                other = label if labelled == "json" else 99  # the file of its own counts
                files.append((f"{key}.json", json.dumps({"label": other}).encode()))
            for name, data in reversed(files) if backwards else files:
                add(archive, folder + name, data)
            if len(images) == 1 and labelled != "neither":
                expected.append((f"{path}/{folder}{key}.{kind}", content, label))
    return expected


@settings(deadline=None, max_examples=40)
@given(st.lists(SAMPLES, min_size=1, max_size=4), st.sampled_from(["", "./", "in/"]), st.booleans())
def test_every_sample_is_there_once_in_its_order(layout, folder, backwards):
    with tempfile.TemporaryDirectory() as root:
        paths = [Path(root, f"{number:03d}.tar") for number in range(len(layout))]
        parts = [
            write_samples(path, samples, folder, backwards)
            for path, samples in zip(paths, layout, strict=True)
        ]
        expected = [sample for part in parts for sample in part]
        if not expected:
            with pytest.raises(InputError, match="no images with labels"):
                TarShards(paths, "train")
            return
        for _ in range(2):  # the second time as the index was kept
            shards = TarShards(paths, "train")
            shards.set_classes([str(number) for number in range(7)])
            assert [shards.read(index) for index in range(len(shards))] == expected
            told = [(labelled, kind) for samples in layout for _, _, labelled, kind in samples]
            there = [pair for pair in told if pair != ("neither", "")]
            assert len(shards) + shards.left_out.total == len(there)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10239))
def test_a_shard_that_was_cut_off_anywhere_is_named_or_whole(size):
    with tempfile.TemporaryDirectory() as root:
        path = Path(root, "000.tar")
        samples = [(str(number), number, "cls", "jpg") for number in range(3)]
        expected = write_samples(path, samples, "", False)
        path.write_bytes(path.read_bytes()[:size])
        try:
            shards = TarShards([path], "train")
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017 - not every cut raises: in its padding it is whole
            return
        shards.set_classes(["a", "b", "c"])
        assert [shards.read(index) for index in range(len(shards))] == expected


@pytest.mark.parametrize("labels", [["cat", "eel", "cat"], ["2", "0", "2"]])
def test_shards_name_their_classes_where_nobody_else_does(tmp_path, labels):
    for split in ("train", "valid"):
        (tmp_path / split).mkdir()
        with tarfile.open(tmp_path / split / "0.tar", "w") as archive:
            for number, label in enumerate(labels):
                add(archive, f"{number}.jpg", b"")
                add(archive, f"{number}.cls", label.encode())
    data = StreamingDataModule(str(tmp_path))
    assert data.class_names == (["cat", "eel"] if labels[0] == "cat" else ["0", "1", "2"])
    found = [data.class_names[label] for label in data.source("train").labels]
    assert found == labels


def test_shards_that_have_changed_are_read_anew(copies):
    root = copies / "shards"
    assert len(StreamingDataModule(str(root)).source("val")) == 9
    last = sorted(root.glob("*validation*"))[-1]
    with tarfile.open(last, "a") as archive:
        add(archive, "more.png", b"")
        add(archive, "more.cls", b"1")
    assert len(StreamingDataModule(str(root)).source("val")) == 10
    assert sorted(path.name for path in root.glob(".*")) == [".train.index.npz", ".val.index.npz"]


# Stores

# Of Google's library, which does without.
without_grpc = pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning")


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    files = [path for path in (made / "chunks").rglob("*") if path.is_file()]
    objects = {
        f"bucket/set/{path.relative_to(made / 'chunks')}": path.read_bytes() for path in files
    }
    with fake_store(objects) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        for name, value in {
            "AWS_ENDPOINT_URL": address,
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "STORAGE_EMULATOR_HOST": address,
            "GOOGLE_CLOUD_PROJECT": "project",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            "litdata.utilities.dataset_utilities._LITDATA_CACHE_DIR", str(tmp_path / "cache")
        )
        yield server


@without_grpc
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_store_gives_what_the_folder_gives(made, store, tmp_path, scheme):
    data = StreamingDataModule(f"{scheme}://bucket/set", **SMALL)
    assert data.class_names == CLASSES
    expected = ImageFolderDataModule(str(made / "folder"), **SMALL)
    source = data.source("val")
    source[Key(0, 0)]  # asks for the index
    before = store.read
    pairs = zip(items(source), items(expected.source("val")), strict=True)
    for (image, label), (other, other_label) in pairs:
        assert torch.equal(image, other)
        assert label == other_label
    # Nothing but the bytes of the images is read, nothing but the index kept.
    size = sum(path.stat().st_size for path in (made / "folder" / "val").glob("*/*"))
    assert store.read - before < size + 9 * 100
    kept = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [name for name in kept if name.endswith(".bin")]


@without_grpc
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_what_a_store_lacks_is_named(store, scheme):
    data = StreamingDataModule(f"{scheme}://bucket/set", **SMALL)
    del store.objects["bucket/set/train/chunk-0-0.bin"]
    with pytest.raises(InputError, match=f"{scheme}://bucket/set/train/chunk-0-0.bin") as error:
        list(data.train_dataloader())
    message(error)
    with pytest.raises(InputError, match=f"{scheme}://bucket/other/train has no index"):
        StreamingDataModule(f"{scheme}://bucket/other")


@pytest.mark.slow
def test_optimize_writes_to_a_store(made, store, monkeypatch, capsys):
    # It speaks https alone; boto3 takes its place.
    monkeypatch.setattr("litdata.streaming.downloader._OBSTORE_AVAILABLE", False)
    before = {key: store.objects[key] for key in store.objects}
    arguments = ["data", "optimize", str(made / "folder"), "--output", "s3://bucket/new"]
    assert main([*arguments, "--chunk_mb", "0.004", "--num_workers", "2"]) == 0
    for key, content in before.items():
        if not key.endswith("index.json"):
            assert store.objects[key.replace("/set/", "/new/")] == content
    assert main(arguments) == 2
    assert "index of 'train' already" in capsys.readouterr().err


# Two nodes


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.slow
def test_two_nodes_do_together_what_one_process_does(made, tmp_path):
    tests = str(TWO_NODES.parents[1])
    plain = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": tests}
    for nodes in (1, 2):
        # As torchrun sets them on each node.
        together = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "TORCHELASTIC_RUN_ID": "run",
            "WORLD_SIZE": str(nodes),
            "LOCAL_WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
        }
        started = [
            subprocess.Popen(
                [sys.executable, str(TWO_NODES), str(made / "chunks"), str(tmp_path), str(nodes)],
                env={**plain, **together, "RANK": str(node), "GROUP_RANK": str(node)},
            )
            for node in range(nodes)
        ]
        assert [process.wait(timeout=400) for process in started] == [0] * nodes
    one, two = (json.loads((tmp_path / f"{nodes}.json").read_text()) for nodes in (1, 2))
    assert one["metrics"].keys() == two["metrics"].keys()
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-4)
    # Every image of the evaluation once, in order, also of shares that are uneven.
    assert two["names"] == one["names"]
    assert len(set(two["names"])) == len(two["names"]) == 9


def test_evaluation_by_two_processes_reads_every_image_once(made):
    for kind in KINDS:
        expected = items(StreamingDataModule(str(made / kind), **SMALL).source("val"))
        found = []
        for rank in range(2):
            data = StreamingDataModule(str(made / kind), **SMALL)
            loader = data.val_dataloader()
            loader.batch_sampler.rank, loader.batch_sampler.world_size = rank, 2
            found += [image for images, _ in loader for image in images]
        assert torch.equal(torch.stack(found), torch.stack([image for image, _ in expected]))
