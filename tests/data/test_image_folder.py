"""Own images in folders, made by these tests."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from shared import truncate
from timm.data import create_transform, resolve_model_data_config

from lightning_overlock.data import ImageFolderDataModule
from lightning_overlock.data.images import find_images
from lightning_overlock.data.loading import Key, seeded
from lightning_overlock.data.timm_transforms import keep_one_bit
from lightning_overlock.errors import InputError

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "eel": (30, 30, 200)}


def write_image(path: Path, colour: tuple[int, int, int], seed: int = 0) -> None:
    noise = np.random.default_rng(seed).integers(-25, 26, size=(40, 48, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in COLOURS.items():
            for number in range(count):
                path = tmp_path / "data" / split / name / f"{number}.png"
                write_image(path, colour, seed=number)
    return tmp_path / "data"


@pytest.mark.parametrize("policy", ["rand-m10-inc1", "rand-m10", "original", "augmix-m10-w2"])
def test_the_strongest_posterisation_leaves_an_image(policy, monkeypatch):
    transform = create_transform(64, is_training=True, auto_augment=policy)
    step = next(
        t
        for t in keep_one_bit(transform).transforms
        if hasattr(t, "ops" if "-" in policy else "policy")
    )
    operations = step.ops if "-" in policy else [op for pair in step.policy for op in pair]
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    found = [op for op in operations if op.name.startswith("Posterize")]
    for operation in found:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
        levels = np.unique(np.asarray(operation(image)))
        assert len(levels) >= 2
    assert found
    # The least number of bits that timm asks for
    assert np.unique(np.asarray(found[0].aug_fn(image, 0))).tolist() == [0, 128]


def folder(root: Path, **options) -> ImageFolderDataModule:
    return ImageFolderDataModule(
        str(root), **{"batch_size": 4, "num_workers": 0, "image_size": 32, **options}
    )


# What is read.


def test_classes_are_the_sorted_folders_and_labels_their_places(root):
    data = folder(root)
    assert data.class_names == ["cat", "dog", "eel"]
    images, labels = zip(*data.val_dataloader(), strict=True)
    assert torch.cat(labels).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    # Each class has its own channel brightest.
    assert torch.equal(torch.cat(images).mean(dim=(2, 3)).argmax(dim=1), torch.cat(labels))
    assert torch.cat(images).dtype == torch.float32
    assert torch.cat(labels).dtype == torch.int64


def test_images_lie_in_subfolders_too_but_hidden_ones_do_not_count(root):
    write_image(root / "train/cat/more/deep/9.JPG", COLOURS["cat"])
    (root / "train/cat/._0.png").write_bytes(b"a file system's own")
    (root / "train/.cache").mkdir()
    (root / "train/cat/notes.txt").write_text("no image")
    assert len(folder(root, max_left_out=0.2).source("train")) == 19
    assert find_images(root / "train/cat").files == [
        *(f"{number}.png" for number in range(6)),
        "more/deep/9.JPG",
    ]


def test_evaluation_uses_the_models_own_data_config(root):
    model = timm.create_model("test_vit", pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    data = folder(root, image_size=None)
    config = resolve_model_data_config(model)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(data_config=config))
    image, label = data.source("val")[Key(0, 4)]
    expected = create_transform(**config)(Image.open(root / "val/dog/1.png").convert("RGB"))
    assert config["mean"] == (0.1, 0.2, 0.3)
    assert label == 1
    assert image.shape == (3, 160, 160) == config["input_size"]
    assert torch.equal(image, expected)


def test_arguments_take_the_place_of_the_models_data_config(root):
    image = Image.open(root / "val/dog/1.png").convert("RGB")
    for options in (
        {"crop_pct": 0.5},
        {"crop_mode": "squash"},
        {"interpolation": "nearest"},
        {"image_size": (24, 40)},
    ):
        given = {"image_size": (32, 32), **options}
        expected = create_transform(
            (3, *given.pop("image_size")),
            **{"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center", **given},
        )
        assert torch.equal(folder(root, **options).source("val")[Key(0, 4)][0], expected(image)), (
            options
        )


def test_training_is_timms_augmentation_seeded_by_seed_epoch_and_index(root, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "9")
    recipe = {
        "scale": (0.3, 0.9),
        "ratio": (0.9, 1.2),
        "hflip": 0.4,
        "vflip": 0.3,
        "color_jitter": 0.2,
        "auto_augment": "3a-mstd0.5",
        "re_prob": 0.5,
        "re_mode": "pixel",
        "re_count": 2,
    }
    source = folder(root, train_interpolation="bicubic", **recipe).source("train")
    expected = create_transform(32, is_training=True, interpolation="bicubic", **recipe)
    image = Image.open(root / "train/cat/2.png").convert("RGB")
    drawn = []
    for epoch in range(5):
        with seeded(9, epoch, 2):
            drawn.append(expected(image))
        assert torch.equal(source[Key(epoch, 2)][0], drawn[-1])
    assert len({tuple(d.flatten().tolist()) for d in drawn}) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.9, 1.0)},
        {"ratio": (1.0, 1.0)},
        {"hflip": 0.0},
        {"vflip": 1.0},
        {"color_jitter": 0.0},
        {"auto_augment": "rand-m9-mstd0.5-inc1"},
        {"train_interpolation": "nearest"},
        {"re_prob": 1.0},
    ],
)
def test_every_training_option_changes_the_images(root, options):
    plain, other = folder(root).source("train"), folder(root, **options).source("train")
    assert any(
        not torch.equal(plain[Key(0, index)][0], other[Key(0, index)][0]) for index in range(8)
    )


@pytest.mark.parametrize("option", [{"re_mode": "const"}, {"re_count": 4}])
def test_every_option_of_random_erasing_changes_the_images(root, option):
    plain = folder(root, re_prob=1.0).source("train")
    other = folder(root, re_prob=1.0, **option).source("train")
    assert any(
        not torch.equal(plain[Key(0, index)][0], other[Key(0, index)][0]) for index in range(8)
    )


def test_batches_are_the_same_with_workers_and_without(root):
    recipe = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5}
    alone = list(folder(root, **recipe).train_dataloader())
    helped = list(folder(root, **recipe, num_workers=2).train_dataloader())
    assert len(alone) == 4
    for (images, labels), (images2, labels2) in zip(alone, helped, strict=True):
        assert torch.equal(images, images2)
        assert torch.equal(labels, labels2)


# Corrupt files.


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_stops_with_its_name(root, workers):
    truncate(root / "val/dog/1.png")
    loader = folder(root, num_workers=workers).val_dataloader()
    with pytest.raises(InputError) as caught:
        list(loader)
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{root}/val/dog/1.png: no intact image (")
    assert "skip_corrupt" in second


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_skipped_and_counted_on_request(root, workers):
    for path in ("val/dog/1.png", "val/eel/0.png"):
        truncate(root / path)
    asked = {"num_workers": workers, "skip_corrupt": True, "max_left_out": 0.5}
    with pytest.warns(UserWarning, match=r"2 unreadable image\(s\) skipped: .*dog/1.*eel/0"):
        batches = list(folder(root, **asked).val_dataloader())
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 1, 1, 2, 2]
    truncate(root / "train/cat/0.png")
    with pytest.warns(UserWarning, match=r"1 unreadable .*cat/0"):
        batches = list(folder(root, **asked).train_dataloader())
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 4]


def test_a_class_whose_images_are_mostly_unreadable_is_refused_while_they_are_read(root):
    for path in (root / "train/dog").iterdir():
        truncate(path)
    data = folder(root, num_workers=0, skip_corrupt=True, max_left_out=0.4)  # a third of all
    refused = pytest.raises(InputError, match=r"images of class 1 \(from 0\) would be left out")
    with pytest.warns(UserWarning, match="unreadable"), refused:  # those of the batches before
        list(data.train_dataloader())


def test_a_validation_on_the_training_s_images_is_told(root):
    shutil.rmtree(root / "val")
    (root / "val").symlink_to("train")
    with pytest.warns(UserWarning, match="the validation has the training's own images"):
        folder(root).setup("fit")


# Folders that are not as they should be.


def assert_refused(make, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert len(str(caught.value).splitlines()) <= 3
    for part in parts:
        assert part in str(caught.value)


def test_a_missing_root_says_so(tmp_path):
    assert_refused(lambda: folder(tmp_path / "nowhere"), "nowhere' is no folder", "train/ and val/")
    assert_refused(ImageFolderDataModule, "data.root is not given")


def test_a_missing_split_names_what_is_there(root):
    (root / "val").rename(root / "vall")
    assert_refused(
        lambda: folder(root), "no folder 'val'", "Did you mean 'vall'?", "found train/, vall/"
    )
    shutil.rmtree(root / "train")
    assert_refused(lambda: folder(root), "no folder 'train'", "found vall/")


def test_fewer_than_two_classes_say_so(root):
    shutil.rmtree(root / "train/cat")
    shutil.rmtree(root / "train/dog")
    assert_refused(lambda: folder(root), "holds 1 class folder", "found eel/", "at least two")
    (root / "train/eel").rename(root / "eel")
    write_image(root / "train/0.png", (0, 0, 0))
    assert_refused(lambda: folder(root), "holds 0 class folder", "found 0.png")


def test_classes_that_differ_between_splits_are_listed(root):
    (root / "val/dog").rename(root / "val/dogs")
    assert_refused(
        lambda: folder(root), "val has other classes", "missing: dog; not in train: dogs"
    )


def test_a_test_split_is_checked_like_the_others(root):
    shutil.copytree(root / "val", root / "test")
    shutil.rmtree(root / "test/eel")
    assert_refused(lambda: folder(root).setup("test"), "test has other classes", "missing: eel")
    folder(root).setup("fit")  # which has no need of it


def test_an_empty_class_says_what_its_folder_holds(root):
    for path in (root / "val/eel").iterdir():
        path.rename(path.with_suffix(".heic"))
    assert_refused(lambda: folder(root), "class 'eel' is empty", "found 0.heic, 1.heic", ".png")


def test_testing_needs_a_test_folder_and_uses_it(root):
    assert_refused(lambda: folder(root).test_dataloader(), "no folder 'test'", "train/, val/")
    shutil.copytree(root / "val", root / "test")
    write_image(root / "test/eel/3.png", COLOURS["eel"])
    assert sum(len(labels) for _, labels in folder(root).test_dataloader()) == 10


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"hflip": 1.5}, "hflip is 1.5; expected a probability"),
        ({"vflip": -1.0}, "vflip is -1.0"),
        ({"re_prob": 2.0}, "re_prob is 2.0"),
        ({"scale": (0.5, 0.1)}, "scale is 0.5, 0.1; expected 0 < smallest <= largest <= 1"),
        ({"scale": (0.5, 2.0)}, "scale is 0.5, 2.0"),
        ({"ratio": (0.0, 1.0)}, "ratio is 0.0, 1.0"),
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"image_size": 0}, "image_size is (0, 0)"),
        ({"auto_augment": "randaugment"}, "auto_augment is 'randaugment'"),
        ({"auto_augment": "lots"}, "auto_augment is 'lots'"),
    ],
)
def test_options_out_of_range_are_named(root, option, message):
    assert_refused(lambda: folder(root, **option), message)


# What is left out.


def told(capture, data: ImageFolderDataModule, stage: str) -> list[str]:
    with capture.at_level("INFO"):
        capture.clear()
        data.setup(stage)
        return [record.getMessage() for record in capture.records]


def test_jfif_and_other_formats_of_pillow_count(root):
    for path in sorted((root / "train/dog").iterdir())[1:]:
        Image.open(path).save(path.with_suffix(".jfif"), format="JPEG")
        path.unlink()
    assert len(folder(root).source("train")) == 18


def test_what_is_left_out_is_said_in_every_stage_and_too_much_is_an_error(root, caplog):
    (root / "train/cat/list.csv").touch()
    (root / "train/cat/0.txt").touch()  # the caption of 0.png
    (root / "train/@eaDir").mkdir()
    assert_refused(
        lambda: folder(root),
        "train/cat: 1 of 7 files would be left out: 1 with the suffix .csv",
        "data.max_left_out",
    )
    data = folder(root, max_left_out=0.2)
    assert told(caplog, data, "fit") == [
        "train: used 18 of 19 files, 1 left out: 1 with the suffix .csv (cat/list.csv); passed "
        "over 1 hidden or of the system (@eaDir), 1 with the suffix .txt beside an image of the "
        "same name (cat/0.txt)"
    ]
    assert told(caplog, data, "validate") == []
    (root / "val/dog/._0.png").touch()
    assert told(caplog, folder(root, max_left_out=0.2), "validate") == [
        "val: passed over 1 hidden or of the system (dog/._0.png)"
    ]
    shutil.copytree(root / "val", root / "new")
    (root / "new/x.heic").touch()
    assert told(caplog, folder(root, predict_dir=str(root / "new")), "predict")[0].startswith(
        "predict: used 9 of 10 files, 1 left out: 1 with the suffix .heic (x.heic); passed over 1"
    )


def test_images_beside_the_class_folders_belong_to_no_class(root, caplog):
    (root / "train/labels.csv").touch()
    write_image(root / "train/stray.png", (0, 0, 0))
    data = folder(root)
    assert len(data.source("train")) == 18
    assert told(caplog, data, "fit")[0].startswith(
        "train: used 18 of 19 files, 1 left out: 1 in no class's folder (stray.png); passed over 1"
    )
    for number in range(2):
        write_image(root / f"train/{number}.png", (0, 0, 0))
    assert_refused(lambda: folder(root), "3 of 21 files would be left out: 3 in no class's folder")


def test_system_folders_are_no_classes(root):
    for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints"):
        write_image(root / "train" / name / "0.png", (0, 0, 0))
    assert folder(root).class_names == ["cat", "dog", "eel"]


def test_classes_that_differ_in_case_or_composition_are_told(root, caplog):
    (root / "val/dog").rename(root / "val/Dog")
    assert_refused(
        lambda: folder(root), "missing: dog; not in train: Dog", "'dog' and 'Dog' differ"
    )
    (root / "val/Dog").rename(root / "val/dog")
    for split in ("train", "val"):
        shutil.copytree(root / split / "dog", root / split / "Dog")
    data = folder(root)
    assert data.class_names == ["Dog", "cat", "dog", "eel"]
    assert told(caplog, data, "fit") == ["'Dog' and 'dog' are two classes"]
    (root / "train/caf\u00e9").mkdir()  # one letter in train, a letter and an accent in val
    (root / "val/cafe\u0301").mkdir()
    assert_refused(lambda: folder(root), "differ in case or composition alone")


NAMES = [
    "3e8",
    "null",
    "no",
    "1_000",
    "~",
    "a b",
    "it's",
    '"q"',
    "[b]",
    "[b",
    "x" * 200,
    "\u05d0\u05d1",
    "\u0645\u0631",
    "\U0001f469\u200d\U0001f469",
    ":smile:",
    "$x$",
    "50%",
    "#1",
    "a,b;c",
    "-1",
    "{x}",
    "&",
    "*",
]


def test_class_folders_may_have_any_name(root):
    for split in ("train", "val"):
        shutil.rmtree(root / split)
        for number, name in enumerate(NAMES):
            write_image(root / split / name / "0.png", (number, 0, 0))
    data = folder(root, image_size=8, interpolation="nearest")
    assert data.class_names == sorted(NAMES)
    state = data.prediction_state()
    assert state == {"class_names": sorted(NAMES)}
    other = folder("nowhere", predict_dir=str(root / "val"))
    other.load_prediction_state(state)
    assert other.class_names == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"'a\nb'"),
        ("a\x1b[1m", r"a\x1b[1m"),
        ("caf\udce9", r"caf\udce9"),
        (" ", "is empty"),
    ],
)
def test_names_that_no_table_could_hold_are_refused_when_they_are_read(root, name, shown):
    for split in ("train", "val"):
        write_image(root / split / name / "0.png", (0, 0, 0))
    assert_refused(lambda: folder(root), "train: the name", shown)


def test_a_test_folder_without_classes_is_predicted_and_stops_no_training(root):
    write_image(root / "test/0.png", (0, 0, 0))
    write_image(root / "test/deep/1.png", (0, 0, 0))
    data = folder(root)
    data.setup("fit")
    data.setup("predict")
    names = [name for _, names in data.predict_dataloader() for name in names]
    assert names == [f"{root}/test/0.png", f"{root}/test/deep/1.png"]
    (root / "test/deep").rename(root / "test/.deep")
    assert_refused(lambda: data.setup("test"), "test holds no class folders", "cat, dog, eel")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_left_out": -0.1}, "data.max_left_out: found -0.1, expected a number from 0 to 1"),
        ({"max_left_out": 1.1}, "data.max_left_out: found 1.1"),
        ({"max_image_pixels": 0}, "data.max_image_pixels is 0; expected at least 1, or null"),
    ],
)
def test_shares_and_limits_have_their_ranges(root, option, message):
    assert_refused(lambda: folder(root, **option), message)


def test_large_images_are_refused_or_allowed_by_an_option(root):
    with pytest.raises(InputError, match="40 pixels are more than 1,919"):
        next(iter(folder(root, max_image_pixels=1919).val_dataloader()))
    assert len(list(folder(root, max_image_pixels=None).val_dataloader())) == 3


# Prediction.


def test_prediction_takes_any_folder_without_the_training_data(tmp_path):
    for name in ("b.png", "a.jpg", "sub/deep/c.PNG"):
        write_image(tmp_path / "new" / name, (90, 90, 90))
    data = folder("nowhere", predict_dir=str(tmp_path / "new"), batch_size=2)
    batches = list(data.predict_dataloader())
    assert [names for _, names in batches] == [
        [f"{tmp_path}/new/a.jpg", f"{tmp_path}/new/b.png"],
        [f"{tmp_path}/new/sub/deep/c.PNG"],
    ]
    assert batches[0][0].shape == (2, 3, 32, 32)


def test_prediction_without_a_folder_takes_test_or_val(root):
    names = [name for _, names in folder(root).predict_dataloader() for name in names]
    assert names[0] == f"{root}/val/cat/0.png"
    assert len(names) == 9
    shutil.copytree(root / "val", root / "test")
    assert next(iter(folder(root).predict_dataloader()))[1][0] == f"{root}/test/cat/0.png"


def test_training_data_are_still_there_with_a_prediction_folder(root):
    data = folder(root, predict_dir=str(root / "val/cat"))
    assert data.class_names == ["cat", "dog", "eel"]
    assert len(data.source("predict")) == 3
    assert len(data.source("val")) == 9


def test_a_prediction_folder_without_images_says_so(tmp_path):
    (tmp_path / "empty").mkdir()

    def refused(name: str, *parts: str) -> None:
        assert_refused(lambda: folder("", predict_dir=str(tmp_path / name)), "predict_dir", *parts)

    refused("empty", "no images", "an empty folder")
    refused("gone", "is not there")
    assert_refused(lambda: folder("", predict_dir=""), "data.predict_dir: '' is not there")
    (tmp_path / "empty/notes.md").write_text("")
    refused("empty", "found notes.md", ".jpg")


# With a trainer.


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(3, 3)
        self.sizes: set[tuple[int, ...]] = set()

    @property
    def data_config(self):
        return {
            "input_size": (3, 36, 36),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
        }

    def training_step(self, batch):
        images, labels = batch
        self.sizes.add(tuple(images.shape[1:]))
        return torch.nn.functional.cross_entropy(self.model(images.mean((2, 3))), labels)

    validation_step = training_step

    def predict_step(self, batch):
        images, names = batch
        return list(zip(names, self.model(images.mean((2, 3))).argmax(1).tolist(), strict=True))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_trains_and_predicts_with_workers(root, tmp_path):
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    model, data = Classifier(), folder(root, image_size=None, num_workers=1)
    trainer.fit(model, datamodule=data)
    assert model.sizes == {(3, 36, 36)}
    predictions = trainer.predict(model, datamodule=data)
    assert [name for batch in predictions for name, _ in batch] == [
        f"{root}/val/{name}/{number}.png" for name in COLOURS for number in range(3)
    ]
