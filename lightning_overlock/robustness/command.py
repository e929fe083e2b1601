"""`lightning robustness`: classifiers on images unlike the training's, in one table."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lightning_overlock.analysis.robustness import corruption_error, mean_of_all
from lightning_overlock.bench.measure import usable_device
from lightning_overlock.robustness.classifier import Classifier, from_checkpoint, from_timm
from lightning_overlock.robustness.columns import ONE_CORRUPTION, droppable, shown, text
from lightning_overlock.robustness.folders import (
    CORRUPTED,
    Images,
    LabelledFolder,
    find,
    imagenet_ids,
    wordnet_ids,
)
from lightning_overlock.robustness.measure import (
    CALIBRATION_BINS,
    Corrupted,
    Figures,
    Reading,
    measure,
    measure_corrupted,
)
from lightning_overlock.robustness.options import BENCHMARKS
from lightning_overlock.robustness.published import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    SOURCES,
    published_figures,
)
from lightning_overlock.tables import Table

CLEAN = "imagenet"


class Result(NamedTuple):
    """What was measured of a classifier.

    Attributes:
        name: The classifier's.
        sets: Figures by the set's option name.
        corrupted: Those on ImageNet-C; None if it was not given.
    """

    name: str
    sets: dict[str, Figures]
    corrupted: Corrupted | None


def run(args: argparse.Namespace) -> int:
    """Run `lightning robustness`: print its table and write it.

    Args:
        args: What was typed, as `read_options` returns it.

    Returns:
        The exit code 0.

    Raises:
        InputError: A mistake in what was typed, or in the folders; before anything is evaluated.
    """
    device = torch.device(usable_device(args.device))
    given = vars(args)
    classifiers = [from_checkpoint(typed, device) for typed in args.ckpt_path]
    if backbone := given["model.backbone"]:
        classifiers.append(from_timm(backbone, given["model.init_from"], device))
    images = [
        find(args.folders, one.class_names, given["data.max_left_out"], "--data.")
        for one in classifiers
    ]
    reading = Reading(given["data.batch_size"], given["data.num_workers"])
    results = [_evaluate(one, its, reading) for one, its in zip(classifiers, images, strict=True)]
    table = robustness_table(results, images, _is_imagenets(classifiers))
    table.print()
    run_folder = classifiers[0].run if len(classifiers) == 1 else None
    folder: Path | None = args.output or run_folder
    if folder is not None:
        table.write(folder, "robustness")
        print(f"Written: {folder / 'robustness'}.md, .csv, .tex")
    return 0


def _evaluate(classifier: Classifier, images: Images, reading: Reading) -> Result:
    sets = {}
    for name, found in images.sets.items():
        sets[name] = measure(classifier, found, classifier.transform, reading)
        print(f"{classifier.name}: {BENCHMARKS[name].title}, top-1 {100 * sets[name].top1:.2f} %")
    corrupted = None
    if images.corrupted:
        corrupted = measure_corrupted(classifier, images.corrupted, reading)
    return Result(classifier.name, sets, corrupted)


def _is_imagenets(classifiers: list[Classifier]) -> bool:
    """Tell whether all classifiers know ImageNet's thousand classes and no others."""
    ids = set(imagenet_ids())
    return all(set(wordnet_ids(one.class_names)) == ids for one in classifiers)


# The table ---------------------------------------------------------------------------------------


def robustness_table(results: list[Result], images: list[Images], imagenet: bool) -> Table:
    """Return what was measured as a table.

    Args:
        results: What was measured, a row each.
        images: What it was measured on.
        imagenet: Whether the classes are ImageNet's, so that published figures compare.
    """
    records = [_record(result) for result in results]
    if imagenet:
        records += _published(records[0])
    columns = shown(records[0])
    return Table(
        columns,
        [[_cell(heading, record.get(heading)) for heading in columns] for record in records],
        title="Robustness",
        notes=_notes(results, images, imagenet),
        records=records,
        words=frozenset({0, len(columns) - 1}),
        droppable=droppable(columns),
        label="robustness",
    )


def _record(result: Result) -> dict[str, Any]:
    record: dict[str, Any] = {"model": result.name}
    for name, found in result.sets.items():
        title = BENCHMARKS[name].title
        record[f"{title}: top-1 (%)"] = 100 * found.top1
        record[f"{title}: ECE (%)"] = 100 * found.ece
        record[f"{title}: NLL"] = found.nll
    if (corrupted := result.corrupted) is not None:
        record["C: mCE (%)"] = corrupted.mce()
        if CLEAN in result.sets:
            record["C: relative mCE (%)"] = _relative(corrupted, 1 - result.sets[CLEAN].top1)
        record["C: error (%)"] = 100 * corrupted.error()
        record["C: ECE (%)"] = 100 * corrupted.mean("ece")
        record["C: NLL"] = corrupted.mean("nll")
        for name, error in corrupted.corruption_errors().items():
            record[f"{ONE_CORRUPTION}{name} (%)"] = error
    return record | {"from": "measured"}


def _relative(corrupted: Corrupted, clean: float) -> float | None:
    """Return the relative mCE: errors less the clean ones, over AlexNet's likewise."""
    return mean_of_all(
        [
            corruption_error(
                corrupted.errors(name) - clean,
                ALEXNET_ERRORS[name][[s - 1 for s in severities]] - ALEXNET_CLEAN_ERROR,
            )
            for name, severities in corrupted.figures.items()
        ]
    )


def _published(first: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each model with a published figure in one of the columns."""
    rows = []
    for found in published_figures():
        headings = {
            f"{benchmark.title}: {'mCE' if name == CORRUPTED else 'top-1'} (%)": found[name]
            for name, benchmark in BENCHMARKS.items()
        }
        known = {head: float(text) for head, text in headings.items() if text and head in first}
        if known:
            rows.append({"model": found["model"], **known, "from": found["source"]})
    return rows


def _cell(heading: str, value: str | float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return text(heading, value)


def _notes(results: list[Result], images: list[Images], imagenet: bool) -> list[str]:
    told = [_notes_of(its, imagenet) for its in images]
    if all(notes == told[0] for notes in told):
        notes = told[0]
    else:
        named = zip(results, told, strict=True)
        notes = [f"{result.name}, {note}" for result, its in named for note in its]
    notes.append(
        f"ECE: expected calibration error in {CALIBRATION_BINS} bins of the confidence. "
        "NLL: mean negative log-likelihood, in nats. On C both are means over corruptions, of "
        "each over its severities."
    )
    if imagenet:
        shown = [f"{name}: {source}" for name, source in SOURCES.items()]
        notes.append(f"Published figures: {'; '.join(shown)}.")
    else:
        notes.append(
            "Published figures are left out: they are for ImageNet's thousand classes, which the "
            "model does not have."
        )
    return notes


def _notes_of(images: Images, imagenet: bool) -> list[str]:
    """Return what a model was measured on, in sentences."""
    notes = [
        f"{BENCHMARKS[name].title}: {len(found.files):,} images of {len(found.classes)} classes, "
        "and only these compete." + (f" Left out: {found.left_out}." if found.left_out else "")
        for name, found in images.sets.items()
    ]
    return notes + (_corruption_notes(images.corrupted, imagenet) if images.corrupted else [])


def _corruption_notes(found: dict[str, dict[int, LabelledFolder]], imagenet: bool) -> list[str]:
    by_severities: dict[tuple[int, ...], list[str]] = {}
    for name, severities in found.items():
        by_severities.setdefault(tuple(severities), []).append(name)
    parts = [
        f"{', '.join(names)} at severities {', '.join(map(str, severities))}"
        for severities, names in by_severities.items()
    ]
    folders = [folder for severities in found.values() for folder in severities.values()]
    whole = len(found) == len(ALEXNET_ERRORS) and set(by_severities) == {(1, 2, 3, 4, 5)}
    what = "all 15 corruptions at severities 1 to 5" if whole else "; ".join(parts)
    counts = {len(folder.files) for folder in folders}
    classes = {len(folder.classes) for folder in folders}
    published = "." if whole else "; it is not the published mCE, which has all 15 x 5."
    if not imagenet:
        published = ", which are for ImageNet: of other classes the error says more."
    notes = [
        f"C: {what}; {_range(counts)} images of {_range(classes)} classes each. mCE: errors over "
        f"AlexNet's published ones for the same corruptions and severities{published}"
    ]
    notes += [f"C, left out of {f.folder}: {f.left_out}." for f in folders if f.left_out]
    return notes


def _range(counts: set[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
