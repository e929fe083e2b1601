"""Initial weights: timm's, release checkpoints, Lightning checkpoints, safetensors."""

import argparse
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict, get_pretrained_cfg
from torch import Tensor, nn

from lightning_overlock.backbones.create import class_count, create_backbone
from lightning_overlock.backbones.features import DenseFeatures
from lightning_overlock.errors import InputError

# For an entry of a file, its name and values in a network of ours.
Renamed = dict[str, tuple[str, Tensor]]
# timm's training script stores its arguments beside the weights, mmcv's the best score, a number of
# numpy's, by the name that the module had in numpy 1.
_BESIDE_WEIGHTS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype("float64")),
    type(np.dtype("float32")),
    np.float64(0).__reduce__()[0],
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
]
# In the order of preference: averaged weights first.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")


def start_from(
    model: nn.Module,
    backbone: str,
    arguments: dict[str, Any],
    path: str | None,
    features: DenseFeatures | None,
    rename: Callable[[Mapping[str, Tensor]], Renamed] | None = None,
) -> None:
    """Give a network its initial weights, and say which were used and which are new.

    Args:
        model: The network: a timm model, or one around `features`.
        backbone: Name of the timm model.
        arguments: Its arguments, as typed by the user.
        path: A file of weights; None takes timm's own.
        features: The dense features in the network, None of a classifier.
        rename: Finds the heads of other libraries among a file's weights, for a network around
            `features`.

    Raises:
        InputError: There are no such weights, or they belong to another network.
    """
    source, weights = _given_weights(backbone, arguments, path)
    try:
        log = (
            _load_classifier(model, backbone, arguments, weights)
            if features is None
            else _load_dense(model, features, weights or {}, rename)
        )
    except Exception as error:  # of many libraries: file, network, hub, state dict
        if "No pretrained weights exist" in str(error):
            raise InputError(
                f"timm has no weights for {backbone}\nexpected model.init_from FILE, or a backbone "
                "of timm.list_pretrained()"
            ) from error
        if weights is None and _is_unreachable(error):
            raise InputError(
                f"{source} cannot be fetched: their server is not reached "
                f"({type(error).__name__})\nexpected a connection, or model.init_from FILE"
            ) from error
        raise InputError(
            f"{source} does not give the weights of {backbone}\n{_load_error_summary(error)}"
        ) from error
    rank_zero_info(f"Initial weights: {source}")
    for line in log:
        rank_zero_info(line)


def _is_unreachable(error: BaseException) -> bool:
    """Tell whether a download failed because there is no connection; each library has its own."""
    words = ("Connect", "URLError", "Timeout", "Offline", "LocalEntryNotFound", "Proxy", "gaierror")
    cause: BaseException | None = error
    while cause is not None:
        if any(word in kind.__name__ for kind in type(cause).__mro__ for word in words):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _given_weights(
    backbone: str, arguments: dict[str, Any], path: str | None
) -> tuple[str, dict[str, Tensor] | None]:
    """Return where the initial weights come from and, of a file, what they are."""
    if path is not None:
        return str(path), read_state_dict(Path(path))
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    if "file" not in overlay:
        return f"timm's weights for {backbone}", None
    source = str(overlay["file"])
    if not Path(source).is_file():
        raise InputError(f"no checkpoint file {source} (pretrained_cfg_overlay)")
    return source, None


def _load_classifier(
    model: Any, backbone: str, arguments: dict[str, Any], weights: dict[str, Tensor] | None
) -> list[str]:
    """Start a classifier; return what to say about it."""
    config = model.pretrained_cfg
    options: dict[str, Any] = {"num_classes": config["num_classes"]}
    if weights is not None:
        usual = config["num_classes"] if model.num_classes else 0
        options["num_classes"] = class_count(weights, config["classifier"]) or usual
        options["pretrained_cfg_overlay"] = {"state_dict": weights} | options
    if getattr(model, "overview_head", None) is not None:
        options["overview_head"] = True
    given = create_backbone(backbone, arguments, pretrained=True, **options).state_dict()
    own = model.state_dict()
    # Both are built alike: only what depends on the number of classes can differ.
    replaced = [name for name in own if own[name].shape != given[name].shape]
    kept = {name: value for name, value in given.items() if name not in replaced}
    model.load_state_dict(kept, strict=False)
    return [f"New, for {model.num_classes} classes: {', '.join(replaced)}"] if replaced else []


def _load_dense(
    model: nn.Module,
    features: DenseFeatures,
    weights: dict[str, Tensor],
    rename: Callable[[Mapping[str, Tensor]], Renamed] | None,
) -> list[str]:
    """Start a dense model; return what to say about it."""
    unused, new = features.load_weights(weights or None)
    own = model.state_dict()
    (prefix,) = [name for name, part in model.named_modules() if part is features]
    heads = [name for name in own if not name.startswith(f"{prefix}.")]
    # Heads of the same kind and number of classes, from a checkpoint of this package or another.
    renamed = rename(weights) if rename else {}
    given = dict(renamed.values()) | weights
    fitting = {
        name: given[name]
        for name in heads
        if name in given and given[name].shape == own[name].shape
    }
    model.load_state_dict(fitting, strict=False)
    used = fitting.keys() | {theirs for theirs, (ours, _) in renamed.items() if ours in fitting}
    unused = [name for name in unused if name not in used]
    new = [f"{prefix}.{name}" for name in new]
    new += [name for name in heads if name not in fitting]
    return [
        f"{what}: {_counted(names)}"
        for what, names in (("Not used", unused), ("New", new))
        if names
    ]


def classes_of(path: Path, backbone: str) -> int | None:
    """Return how many classes the weights in a file are for, None if they have no classifier.

    Args:
        path: The file.
        backbone: Name of the timm model that they are of.

    Raises:
        InputError: There is no such file, or it holds no weights.
    """
    config = get_pretrained_cfg(backbone)
    return class_count(read_state_dict(path), None if config is None else config.classifier)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the network's weights from a checkpoint file.

    Understands safetensors, a bare state dict, one under `state_dict_ema`, `model_ema`,
    `state_dict` or `model`, and checkpoints of this package, whose `state_dict` holds the average
    where an EMA was kept.

    Raises:
        InputError: There is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise InputError(f"no checkpoint file {path}")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals(_BESIDE_WEIGHTS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise InputError(
            f"{path} is no checkpoint that torch reads with weights_only ({type(error).__name__})\n"
            "expected weights of the release, of timm or of this package, or safetensors"
        ) from error
    lightning = isinstance(content, Mapping) and "pytorch-lightning_version" in content
    if isinstance(content, Mapping):
        content = next((content[name] for name in _ENTRIES if name in content), content)
    weights = (
        {name: value for name, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not weights:
        raise InputError(
            f"{path} holds no weights\n"
            f"expected a state dict, or one under {', '.join(map(repr, _ENTRIES))}"
        )
    if lightning:
        weights = {
            name.removeprefix("model."): value
            for name, value in weights.items()
            if name.startswith("model.")
        }
    return clean_state_dict(weights)


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Describe where two state dicts differ in names or shapes, "" if they do not.

    Names the first missing and the first unexpected entry and the first of another shape.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    return _summary(missing, unexpected, shapes)


def _counted(names: Iterable[str]) -> str:
    """Shorten a list of entries: "head.conv (5), head.fc (2)"."""
    parts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{part} ({count})" for part, count in parts.items())


def _load_error_summary(error: Exception) -> str:
    """Shorten what `load_state_dict` says to the first entry of each kind."""
    text = str(error)

    def names(kind: str) -> list[str]:
        line = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
        return re.findall(r'"([^"]+)"', line[1]) if line else []

    shapes = [
        f"{name} is {tuple(map(int, re.findall('[0-9]+', found)))} "
        f"instead of {tuple(map(int, re.findall('[0-9]+', expected)))}"
        for name, found, expected in re.findall(
            r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)", text
        )
    ]
    summary = _summary(names("Missing"), names("Unexpected"), shapes)
    return summary or f"{type(error).__name__}: {text.strip().splitlines()[0] if text else ''}"


def _summary(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    parts = [
        f"{len(entries)} {kind} ({entries[0]}{', …' if len(entries) > 1 else ''})"
        for kind, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if entries
    ]
    return "; ".join(parts)
