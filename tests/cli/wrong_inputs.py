"""Wrong inputs as people type them, with a part of the answer that each must get.

A case is (command line, part of the answer). `{name}` is a file or folder of `make_files`.
"""

import json
import math
import os
import re
import sys
import types
import typing

import numpy as np
from PIL import Image

from lightning_overlock import tasks
from lightning_overlock.cli.parser import RANGES

QUICK = "fit --config quickstart"
FOLDER = (
    "fit --model ClassificationTask --data ImageFolderDataModule --data.num_workers=0"
    " --data.batch_size=2"
)
SHARDS = "fit --model ClassificationTask --data StreamingDataModule --data.num_workers=0"
MASKS = (
    "fit --config segmentation_quickstart --data SegmentationFolderDataModule"
    " --model.class_weights=null --data.batch_size=1 --data.crop_size=64 --data.num_workers=0"
)
BOXES = (
    "fit --config detection_quickstart --data CocoDataModule --data.num_workers=0"
    " --data.batch_size=1"
)


def make_files(root):
    """Return files and folders of every kind by name."""
    random = np.random.default_rng(0)

    def picture(path, size=(48, 48)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)

    def text(name, content):
        (root / name).write_text(content)

    text("empty", "")
    text("empty.yaml", "")
    text("broken.yaml", "trainer: [\n")
    text("list.yaml", "- a\n- b\n")
    text("words.yaml", "just words\n")
    text("twice.yaml", "ema: {decay: 0.9}\nema: {decay: 0.8}\n")
    text("number_name.yaml", "name: 1_000\n")
    text("tab.yaml", "trainer:\n\tmax_epochs: 1\n")
    text("unknown.yaml", "trainer: {max_epoch: 1}\n")
    text("text.txt", "some words\n")
    (root / "binary").write_bytes(bytes(range(256)) * 8)
    (root / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    (root / "folder").mkdir()
    (root / "folder.yaml").mkdir()
    (root / "dangling.yaml").symlink_to(root / "nowhere")
    picture(root / "picture.png")
    (root / "picture.yaml").write_bytes((root / "picture.png").read_bytes())
    (root / "cut.zip").write_bytes(b"PK\x03\x04" + bytes(40))
    # Class folders: good ones, and what may be wrong with them.
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for index in range(4):
                picture(root / "classes" / split / name / f"{index}.png")
    for name, keep in (("no_train", "val"), ("no_val", "train")):
        for label in ("cat", "dog"):
            picture(root / name / keep / label / "0.png")
    for split in ("train", "val"):
        picture(root / "flat" / split / "0.png")
        picture(root / "one_class" / split / "cat" / "0.png")
        for label in ("cat", "dog"):
            picture(root / "other_classes" / split / (label if split == "train" else "x") / "0.png")
            (root / "no_images" / split / label).mkdir(parents=True)
            (root / "no_images" / split / label / "notes.txt").write_text("none")
    (root / "empty_folder").mkdir()
    _boxes(root, picture)
    _masks(root, picture)
    return {path.name.replace(".", "_"): path for path in root.iterdir()}


def _boxes(root, picture):
    for index in range(3):
        picture(root / "boxes" / f"{index}.png", (64, 64))
    images = [dict(id=i, file_name=f"{i}.png", width=64, height=64) for i in range(3)]
    objects = [
        dict(id=i, image_id=i, category_id=1, bbox=[4, 4, 20, 20], area=400, iscrowd=0,
             segmentation=[[4, 4, 24, 4, 24, 24, 4, 24]])
        for i in range(3)
    ]  # fmt: skip
    good = dict(images=images, annotations=objects, categories=[dict(id=1, name="box")])

    def write(name, **changes):
        (root / f"{name}.json").write_text(json.dumps(good | changes))

    write("good")
    write("no_images_key", images=None)
    write("no_annotations", annotations=[])
    write("no_categories", categories=[])
    write("text_categories", categories="box")
    write("missing_file", images=[images[0] | {"file_name": "nowhere.png"}, *images[1:]])
    write("other_size", images=[image | {"width": 32} for image in images])
    write("normalised", annotations=[o | {"bbox": [0.1, 0.1, 0.3, 0.3]} for o in objects])
    write("unknown_category", annotations=[o | {"category_id": 9} for o in objects])
    boxes = [{key: o[key] for key in o if key != "segmentation"} for o in objects]
    write("box_of_three", annotations=[o | {"bbox": [1, 2, 3]} for o in boxes])
    write("box_of_text", annotations=[o | {"bbox": "abcd"} for o in boxes])
    write("no_masks", annotations=[{k: v for k, v in o.items() if k != "segmentation"}
                                   for o in objects])  # fmt: skip
    (root / "list.json").write_text("[1, 2]")
    (root / "broken.json").write_text('{"images": [')
    (root / "empty.json").write_text("")
    (root / "null.json").write_text("null")


def _masks(root, picture):
    for name, values in (("masks", (0, 1)), ("masks_high", (0, 200)), ("masks_255", (0, 255))):
        for split in ("train", "val"):
            for index in range(2):
                picture(root / name / "images" / split / f"{index}.png", (64, 64))
                labels = np.full((64, 64), values[0], np.uint8)
                labels[:20] = values[1]
                path = root / name / "labels" / split / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(labels).save(path)
        (root / name / "classes.txt").write_text("ground\nthing\n")
    for split in ("train", "val"):
        picture(root / "masks_unpaired" / "images" / split / "0.png")
        (root / "masks_unpaired" / "labels" / split).mkdir(parents=True)
        picture(root / "masks_sizes" / "images" / split / "0.png", (64, 64))
        path = root / "masks_sizes" / "labels" / split / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)
        (root / "masks_sizes/classes.txt").write_text("ground\nthing\n")
        (root / "masks_unpaired/classes.txt").write_text("ground\nthing\n")


# Numbers ------------------------------------------------------------------------------------------


def beyond(limits):
    """Return a number below a range and one above it, as typed."""
    low = limits.low if limits.open == "low" else limits.low - 1
    high = limits.high if limits.open == "high" else limits.high + 1
    return [f"{low:.0f}", "inf" if math.isinf(high) else f"{high:.0f}"]


def _is_of(hint, *kinds):
    if typing.get_origin(hint) in {typing.Union, types.UnionType}:
        return any(_is_of(part, *kinds) for part in typing.get_args(hint))
    return typing.get_origin(hint) in kinds


def _number_cases():
    lines = {
        "ClassificationTask": QUICK,
        "SegmentationTask": "fit --config segmentation_quickstart",
        "DetectionTask": "fit --config detection_quickstart",
    }
    base = tasks.base.BaseTask
    for name, line in lines.items():
        task = getattr(tasks, name)
        hints = typing.get_type_hints(base.__init__) | typing.get_type_hints(task.__init__)
        for option, limits in task.ranges.items():
            if name != "ClassificationTask" and option in base.ranges:
                continue
            for value in beyond(limits):
                pair = f"[{value},{value}]" if _is_of(hints[option], tuple) else f"[{value}]"
                several = _is_of(hints[option], list, tuple)
                yield f"{line} --model.{option}={pair if several else value}", f"model.{option}"
    for group, ranges in RANGES.items():
        for option, limits in ranges.items():
            full = f"{group}.{option}".lstrip(".")
            for value in beyond(limits):
                yield f"{QUICK} --{full}={value}", option


DATA_NUMBERS = {
    QUICK: {"batch_size": (0, -1, "2.5", "many"), "num_workers": (-1,), "image_size": (7, -32)},
    "fit --config cluttered": {
        "batch_size": (0,), "clutter": (-1,), "train_images": (0, -5), "eval_images": (0,),
    },
    "fit --config cued": {
        "batch_size": (0,), "digits": (1, 5), "train_images": (0,), "eval_images": (-1,),
    },
    f"{FOLDER} --data.root={{classes}}": {
        "batch_size": (0,), "num_workers": (-2,), "image_size": (0, -8), "crop_pct": (0, 1.5, -1),
        "scale": ("[0,1]", "[0.5,2]", "[0.9,0.1]", "[1]"), "ratio": ("[0,1]", "[2,1]"),
        "hflip": (-0.1, 1.1), "vflip": (-1, 2), "color_jitter": (-0.1,), "re_prob": (-0.5, 1.5),
        "re_count": (0, -1), "max_left_out": (-0.1, 1.5), "max_image_pixels": (0, -1),
        "interpolation": ("cubic",), "crop_mode": ("middle",), "re_mode": ("noise",),
        "auto_augment": ("foo",),
    },
    f"{MASKS} --data.root={{masks}}": {
        "batch_size": (0,), "num_workers": (-2,), "crop_size": (0, -1), "resize": ("[0,64]",),
        "ratio": ("[0,1]", "[2,1]"), "largest_share": (0, 1.5), "hflip": (-1, 2),
    },
    f"{BOXES} --data.train_json={{good_json}} --data.train_images={{boxes}}"
    " --data.val_json={good_json} --data.val_images={boxes}": {
        "batch_size": (0,), "hflip": (-0.1, 1.1), "num_workers": (-1,),
    },
    "fit --config detection_quickstart": {
        "scenes.canvas": (8,), "scenes.digits": ("[0,2]", "[3,1]"), "scenes.texture": (2,),
        "scenes.seed": (-1,), "hflip": (3,), "batch_size": (0,),
    },
}  # fmt: skip


def _data_number_cases():
    for line, options in DATA_NUMBERS.items():
        for option, values in options.items():
            for value in values:
                yield f"{line} --data.{option}={value}", option.rpartition(".")[2]


# Names and values ---------------------------------------------------------------------------------

WORDS = [
    ("fitt", "Did you mean 'fit'?"),
    ("train", "no command of this name"),
    ("--config quickstart", "no command of this name"),
    ("configs quickstart", "takes no arguments"),
    ("fit", "fit needs --data, --model."),
    ("fit --config", "found no value"),
    ("fit --config quickstrat", "Did you mean 'quickstart'?"),
    ("fit --config quickstart.yaml", "does not exist"),
    ("fit --config overlock_t", "its class is not chosen"),
    ("fit --model ClassificationTask", "fit needs --data"),
    ("fit --data DigitsDataModule", "fit needs --model"),
    ("fit --config finetune --data.root=x", "found no trained weights"),
    (f"{QUICK} stray", "unexpected word"),
    (f"{QUICK} --model.lr", "found no value"),
    (f"{QUICK} --model.lr --data.batch_size=2", "found no value"),
    (f"{QUICK} --model.lr abc", "found abc, expected float"),
    (f"{QUICK} --model.lr=", "model.lr"),
    (f"{QUICK} --model.lr=[1]", "model.lr"),
    (f"{QUICK} --model.lr=true", "model.lr"),
    (f"{QUICK} --model.lr=1,5", "model.lr"),
    (f"{QUICK} --model.betas=0.9", "model.betas"),
    (f"{QUICK} --model.betas=[0.9]", "model.betas"),
    (f"{QUICK} --model.schedule=linear", "expected cosine or multistep or poly"),
    (f"{QUICK} --model.schedule=multistep", "milestones"),
    (f"{QUICK} --model.milestones=[1]", "milestones"),
    (f"{QUICK} --model.pretrained=maybe", "model.pretrained"),
    (f"{QUICK} --model.backbone=resnt18", "Did you mean 'resnet18'?"),
    (f"{QUICK} --model.backbone_args.drop_path_rate=7", "drop_path_rate: found 7"),
    (f"{QUICK} --model.backbone_args.drop_path_rate=-0.1", "drop_path_rate: found -0.1"),
    (f"{QUICK} --model.backbone_args.drop_path_rate=1", "drop_path_rate: found 1"),
    (f"{QUICK} --model.backbone_args.drop_rate=2", "drop_rate: found 2"),
    (f"{QUICK} --model.backbone_args.gat=false", "gat"),
    (f"{QUICK} --model.backbone_args.num_classes=5", "num_classes"),
    (f"{QUICK} --model.backbone_args=5", "model.backbone_args"),
    (f"{QUICK} --model.drop_path_rate=0.1", "'--model.backbone_args.drop_path_rate'"),
    (f"{QUICK} --model.gat=false", "'--model.backbone_args.gate'"),
    (f"{QUICK} --model.max_epochs=2", "'--trainer.max_epochs'"),
    (f"{QUICK} --model.batch_size=2", "'--data.batch_size'"),
    (f"{QUICK} --model.decay=0.9", "'--ema.decay'"),
    (f"{QUICK} --epochs=2", "'--trainer.max_epochs'"),
    (f"{QUICK} --lr=2", "'--model.lr'"),
    (f"{QUICK} --batch-size=2", "'--data.batch_size'"),
    (f"{QUICK} --ema_decay=0.9", "'--ema.decay'"),
    (f"{QUICK} --seed=1", "'--seed_everything'"),
    (f"{QUICK} --data.batchsize=2", "'--data.batch_size'"),
    (f"{QUICK} --trainer.max_epoch=1", "'--trainer.max_epochs'"),
    (f"{QUICK} --model.bakbone=resnet18", "'--model.backbone'"),
    (f"{QUICK} --modell.lr=1", "'--model.lr'"),
    (f"{QUICK} --model=ClasificationTask", "Did you mean 'ClassificationTask'?"),
    (f"{QUICK} --model=no.such.module", "no class of this name"),
    (f"{QUICK} --model=torch.nn.Linear", "no class of this name"),
    (f"{QUICK} --data=DigitDataModule", "Did you mean 'DigitsDataModule'?"),
    (f"{QUICK} --model.help=Foo", "no class of this name"),
    (f"{QUICK} --data.help=Foo", "no class of this name"),
    (f"{QUICK} --model.class_names=[a,b]", "model.class_names"),
    (f"{QUICK} --name=a/b", "without slashes"),
    (f"{QUICK} --name=..", "expected a plain folder name"),
    (f"{QUICK} --name=", "--name"),
    (f"{QUICK} --trainer.logger=CSVLoger", "Did you mean 'CSVLogger'?"),
    (f"{QUICK} --trainer.logger=CSVLogger", "needs save_dir"),
    (f"{QUICK} --trainer.logger=CometLogger", "comet"),
    (f"{QUICK} --trainer.callbacks+=EarlyStoping", "Did you mean 'EarlyStopping'?"),
    (f"{QUICK} --trainer.callbacks+=EarlyStopping --trainer.callbacks.moniter=a", "'moniter'"),
    (f"{QUICK} --trainer.callbacks+=EarlyStopping", "needs monitor"),
    (f"{QUICK} --trainer.accelerator=gpuu", "invalid accelerator"),
    (f"{QUICK} --trainer.strategy=dpp", "invalid strategy"),
    (f"{QUICK} --trainer.precision=8", "trainer.precision"),
    (f"{QUICK} --trainer.devices=0", "devices"),
    (f"{QUICK} --trainer.devices=many", "devices"),
    (f"{QUICK} --trainer.max_time=soon", "expected a duration"),
    (f"{QUICK} --trainer.max_epochs=2.5", "trainer.max_epochs"),
    (f"{QUICK} --trainer.max_epochs=many", "trainer.max_epochs"),
    (f"{QUICK} --trainer.limit_train_batches=1.5", "limit_train_batches"),
    (f"{QUICK} --trainer.gradient_clip_algorithm=nom", "gradient_clip_algorithm"),
    (f"{QUICK} --trainer.profiler=fast", "profiler"),
    (f"{QUICK} --trainer.default_root_dir=here", "--trainer.default_root_dir"),
    (f"{QUICK} --seed_everything=abc", "seed_everything"),
    (f"{QUICK} --ema.warmup=true", "ema.warmup"),
    (f"{QUICK} --ema.decay=half", "ema.decay"),
    (f"{QUICK} --data.batch_size=2000", "fewer than one batch"),
    (f"{QUICK} --data.image_size=16 --model.backbone=test_overlock", "at least 32x32"),
    (f"{QUICK} --ckpt_path last", "has no"),
    (f"{QUICK} --ckpt_path best", "has no"),
    ("fit --ckpt_path last", "so no run to continue"),
    (f"{QUICK} --model.backbone=null", "found null, expected str"),
    (f"{QUICK} --model.lr=null", "found null, expected float"),
    (f"{QUICK} --data.batch_size=null", "found null, expected int"),
    (f"{QUICK} --model.compile=null", "found null, expected bool"),
    (f"{QUICK} --model.backbone=[a]", "found ['a'], expected str"),
    (f"{QUICK} --model.lr=1e-3s", "found 1e-3s"),
    (f"{QUICK} --trainer.limit_train_batches=50%", "limit_train_batches"),
    (f"{QUICK} --ema.decay -inf", "found -inf"),
    (f"{QUICK} --trainer.max_time -00:00:00:02", "expected a duration"),
    (f"{QUICK} --trainer.max_time=2s", "expected a duration"),
    (f"{QUICK} --trainer.max_time=00:00:02", "expected a duration"),
    (f"{QUICK} --trainer.max_time={{{{}}}}", "expected a duration"),
    (f"{QUICK} --trainer.max_time=00:00:00:00", "above 0"),
    (f"{QUICK} --trainer.max_steps=0", "expected at least 1, or -1"),
    (f"{QUICK} --trainer.max_epochs=0", "expected at least 1, or -1"),
    (f"{QUICK} --trainer.val_check_interval=1000", "val_check_interval"),
    (f"{QUICK} --trainer.barebones=true", "trainer.barebones"),
    (f"{QUICK} --name -x", "no hyphen in front"),
    ("fit --config=~/nowhere.yaml", "nowhere.yaml: this file does not exist"),
]  # fmt: skip


# Files --------------------------------------------------------------------------------------------

CONFIG_FILES = {
    "{root}/nowhere.yaml": "does not exist", "{empty}": "fit needs",
    "{empty_yaml}": "fit needs", "{broken_yaml}": "line 2: not valid YAML",
    "{list_yaml}": "expected YAML `option: value`", "{words_yaml}": "expected YAML",
    "{twice_yaml}": "stands twice", "{number_name_yaml}": "takes for no word",
    "{tab_yaml}": "not valid YAML", "{unknown_yaml}": "Did you mean '--trainer.max_epochs'?",
    "{text_txt}": "expected YAML", "{binary}": "binary file", "{binary_yaml}": "binary file",
    "{folder}": "is a folder", "{folder_yaml}": "is a folder", "{dangling_yaml}": "does not exist",
    "{picture_yaml}": "binary file",
}  # fmt: skip
CHECKPOINTS = {
    "{root}/nowhere.ckpt": "does not exist", "{empty}": "no checkpoint",
    "{text_txt}": "no checkpoint", "{binary}": "no checkpoint", "{picture_png}": "no checkpoint",
    "{cut_zip}": "no checkpoint", "{folder}": "holds no", "{empty_folder}": "holds no",
    "{weights_pt}": "no Lightning checkpoint", "{dangling_yaml}": "does not exist",
    "{root}/picture.png/x.ckpt": "does not exist",
}  # fmt: skip
WEIGHTS = {
    "{root}/nowhere.pt": "does not exist", "{empty}": "no checkpoint", "{text_txt}": "checkpoint",
    "{binary}": "checkpoint", "{picture_png}": "checkpoint", "{cut_zip}": "checkpoint",
    "{folder}": "does not exist", "{weights_pt}": "does not give the weights",
    "{broken_safetensors}": "cannot be read", "{no_weights_pt}": "holds no weights",
}  # fmt: skip
ROOTS = {
    "{root}/nowhere": "nowhere", "{text_txt}": "no folder", "{empty_folder}": "train",
    "{no_train}": "train", "{no_val}": "val", "{flat}": "class",
    "{one_class}": "at least two folders",
    "{other_classes}": "classes", "{no_images}": "no image",
}  # fmt: skip
JSONS = {
    "{root}/nowhere.json": "nowhere.json", "{empty_json}": "json", "{broken_json}": "json",
    "{list_json}": "has an object", "{null_json}": "has an object",
    "{binary}": "binary", "{folder}": "folder",
    "{picture_png}": "picture.png", "{text_txt}": "text.txt", "{no_images_key_json}": "images",
    "{no_annotations_json}": "annotation", "{no_categories_json}": "categories",
    "{text_categories_json}": "categories", "{missing_file_json}": "nowhere.png",
    "{normalised_json}": "pixel", "{unknown_category_json}": "categor",
    "{box_of_three_json} --model.masks=false": "box",
    "{box_of_text_json} --model.masks=false": "box",
}  # fmt: skip
MASK_ROOTS = {
    "{root}/nowhere": "nowhere", "{empty_folder}": "folder", "{text_txt}": "folder",
    "{masks_high}": "200", "{masks_255}": "255", "{masks_unpaired}": "label",
    "{masks_sizes}": "32 x 32",
}  # fmt: skip
SWEEPS = {
    "{root}/nowhere.yaml": "does not exist", "overlock_component": "Did you mean",
    "{empty_yaml}": "empty.yaml", "{broken_yaml}": "broken.yaml", "{list_yaml}": "list.yaml",
    "{words_yaml}": "words.yaml", "{twice_yaml}": "twice", "{binary_yaml}": "binary",
    "{folder_yaml}": "folder", "{unknown_yaml}": "unknown key", "{dangling_yaml}": "does not exist",
    "{picture_yaml}": "binary",
}  # fmt: skip
UNWRITABLE = ["{text_txt}/x", "/proc/x"] if sys.platform == "linux" else ["{text_txt}/x"]


def _file_cases():
    for file, answer in CONFIG_FILES.items():
        yield f"fit --config {file}", answer
    for command in ("fit", "validate", "test", "predict"):
        for file, answer in CHECKPOINTS.items():
            yield f"{command} --ckpt_path {file}", answer
    for file, answer in WEIGHTS.items():
        yield f"{QUICK} --model.backbone=test_overlock --model.init_from={file}", answer
    for file, answer in ROOTS.items():
        yield f"{FOLDER} --data.root={file}", answer
    good = "--data.val_json={good_json} --data.val_images={boxes}"
    for file, answer in JSONS.items():
        yield f"{BOXES} --data.train_json={file} --data.train_images={{boxes}} {good}", answer
    for file, answer in MASK_ROOTS.items():
        yield f"{MASKS} --data.root={file}", answer
    for action in ("run", "status", "table"):
        for file, answer in SWEEPS.items():
            yield f"sweep {action} {file}", answer


MORE = [
    (f"{FOLDER}", "data.root"),
    (f"{MASKS}", "data.root"),
    (f"{BOXES}", "data.root"),
    (f"{BOXES} --data.train_json={{good_json}}", "expected both"),
    (f"{BOXES} --data.train_json={{good_json}} --data.train_images={{root}}/nowhere"
     " --data.val_json={good_json} --data.val_images={boxes}", "nowhere"),
    (f"{BOXES} --data.train_json={{no_masks_json}} --data.train_images={{boxes}}"
     " --data.val_json={no_masks_json} --data.val_images={boxes}", "mask"),
    (f"{FOLDER} --data.root={{classes}} --trainer.max_epochs=1 --data.batch_size=500", "fewer"),
    ("validate", "validate needs --ckpt_path"),
    ("validate --config quickstart", "found no trained weights"),
    ("test", "test needs --ckpt_path"),
    ("predict", "predict needs --ckpt_path"),
    ("predict --config quickstart", "found no trained weights"),
    ("robustness", "--ckpt_path FILE|RUN"),
    ("robustness --model.backbone resnet18", "found no images"),
    ("robustness --data.imagenet_r nowhere --ckpt_path x.ckpt", "this is no folder"),
    ("robustness --data.imagenet_w nowhere", "--data.imagenet_w"),
    ("data", "required: convert"),
    ("data convert", "required: FORMAT, --to"),
    ("data convert voc --to coco --root nowhere --output out", "this is no folder"),
    ("data convert voc --to coco --root . --output {classes}", "there is something already"),
    ("data convert coco --to masks --root . --output out", "invalid choice: 'coco'"),
    ("data convert pets --to coco --root . --output out", "Expected --to masks"),
    ("data convert voc --to coco --root . --output out --image link", "--images"),
    ("data convert voc --to coco --root . --output out --cut_validation 2", "cut_validation"),
    ("data convert yolo --to masks --root . --output out", "classes.txt"),
    ("data optimize", "required: FOLDER, --output"),
    ("data optimise . --output out", "Did you mean 'optimize'?"),
    ("data optimize nowhere --output out", "this is no folder"),
    ("data optimize . --output {classes}", "there is something already"),
    ("data optimize . --output az://bucket/set", "expected a folder, s3://… or gs://…"),
    ("data optimize . --output out --chunk_mb 0", "chunk_mb"),
    ("data optimize . --output out --num_workers 0", "num_workers"),
    (f"{SHARDS}", "data.root"),
    (f"{SHARDS} --data.root=az://bucket/set", "expected a folder, s3://BUCKET/…"),
    (f"{SHARDS} --data.root=nowhere", "'nowhere' is no folder"),
    (f"{SHARDS} --data.root={{classes}}", "nothing of the split 'train'"),
    ("bench", "nothing to measure"),
    ("bench resnt18", "resnt18"),
    ("bench test_overlock --batch-size 0", "--batch-size"),
    ("bench test_overlock --batch-size two", "invalid int"),
    ("bench test_overlock --size 0", "--size"),
    ("bench test_overlock --size axb", "--size"),
    ("bench test_overlock --threads -1", "--threads"),
    ("bench test_overlock --seconds 0", "--seconds"),
    ("bench test_overlock --seconds nan", "--seconds"),
    ("bench test_overlock --dtype int8", "--dtype"),
    ("bench test_overlock --device nowhere", "--device"),
    ("bench test_overlock --groups 4", "--ops only"),
    ("bench --ops --groups 0", "--groups"),
    ("bench --ops --group-channels 0", "--group-channels"),
    ("bench --ops --sizes 14x14", "14x14"),
    ("bench test_overlock --ops --sizes bad", "'bad' is no size"),
    ("bench test_overlock --memory --memory-sizes 1x10x4x3", "no whole chunks"),
    ("bench test_overlock --depthwise --depthwise-sizes 1x4x9x9x6", "kernel must be one of"),
    ("bench test_overlock --batchsize 2", "Did you mean '--batch-size'?"),
    ("sweep", "sweep"),
    ("sweep start overlock_components", "start"),
    ("sweep run", "sweep"),
    ("sweep run overlock_components --profile quickstar", "Did you mean 'quickstart'?"),
    ("sweep run overlock_components --workers 0", "--workers"),
    ("sweep run overlock_components --workers two", "--workers"),
    ("sweep run overlock_components --retries -1", "--retries"),
    ("sweep run overlock_components --set lr", "--set"),
    ("sweep run overlock_components --set seeds=[]", "seeds"),
    ("sweep run overlock_components --set seeds=abc", "seeds"),
    ("sweep run overlock_components --set sedes=[1]", "Did you mean 'seeds'?"),
    ("sweep run overlock_components --set direction=up", "direction"),
    ("sweep run overlock_components --name a/b", "--name"),
    ("sweep run overlock_components --devices 99", "--devices"),
    ("sweep run overlock_components --storage nowhere://x", "--storage"),
    ("sweep status overlock_components", "no sweep has been run here"),
    ("sweep table overlock_components", "no sweep has been run here"),
    ("sweep status overlock_components --nam x", "--nam"),
    *((f"bench test_overlock --json {path}", "cannot be written") for path in UNWRITABLE),
    *((f"bench test_overlock --markdown {path}", "cannot be written") for path in UNWRITABLE),
    *((f"sweep run overlock_components --runs {path}", "cannot be made")
      for path in UNWRITABLE),
]  # fmt: skip

CASES = [*WORDS, *_number_cases(), *_data_number_cases(), *_file_cases(), *MORE]

# Of a run that was trained: options that are not used, or that do not fit its checkpoint.
OF_A_RUN = [
    ("validate --trainer.max_epochs=3", "makes no use"),
    ("validate --trainer.limit_test_batches=3", "makes no use"),
    ("validate --ema.decay=0.9", "makes no use"),
    ("test --trainer.limit_val_batches=3", "makes no use"),
    ("test --trainer.accumulate_grad_batches=3", "makes no use"),
    ("predict --trainer.max_steps=3", "makes no use"),
    ("predict --trainer.gradient_clip_val=3", "makes no use"),
    ("validate --data.augment=true", "--data.augment: validate makes no use"),
    ("test --data.init_args.augment true", "Only fit does; leave it out."),
    ("predict --data.augment=false", "--data.augment: predict makes no use"),
    ("validate --model.lr=3", "was trained with"),
    ("validate --model.backbone=resnet18", "was trained with"),
    ("validate --data.batch_size=0", "batch_size"),
    ("validate --trainer.limit_val_batches=-1", "limit_val_batches"),
    ("test --trainer.limit_test_batches=-1", "limit_test_batches"),
    ("predict --trainer.limit_predict_batches=-1", "limit_predict_batches"),
    ("predict --data.predict_di=x", "predict_di"),
    ("validate --data.nosuch=1", "unknown option"),
    ("validate --verbose=true", "unknown option"),
    ("fit --model.lr=3", "was trained with"),
]


def options_without_range():
    """Yield (task, option) for the numbers that tasks take and hold against no range."""
    for name in ("ClassificationTask", "SegmentationTask", "DetectionTask"):
        task = getattr(tasks, name)
        for owner in (task, tasks.base.BaseTask):
            for option, hint in typing.get_type_hints(owner.__init__).items():
                if re.search(r"\b(int|float)\b", str(hint)) and option not in task.ranges:
                    yield name, option


def readable(line):
    """Return a test's name."""
    name = line.replace(os.sep, "|").replace("{root}", "").replace("--data.num_workers=0 ", "")
    return name if len(name) < 90 else f"{name[:30]}…{name[-58:]}"


def fill(line, files):
    """Put the files into a command line, as words."""
    return [word.format(**files) for word in line.split()]
