"""A timm backbone by name; mistakes in its name, arguments or image size are input errors."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lightning_overlock.errors import ConfigError, InputError, did_you_mean
from lightning_overlock.ranges import Range, check_ranges

# timm's models take drop_rate, drop_path_rate, attn_drop_rate and more of this kind.
DROP_RATE = Range(0, 1, open="high")


def create_backbone(name: str, arguments: dict[str, Any], **kwargs: Any) -> nn.Module:
    """Create a timm model.

    Args:
        name: Name of a timm model, with or without the tag of its weights.
        arguments: The model's arguments that the user typed.
        kwargs: Arguments of `timm.create_model` that the user cannot set.

    Raises:
        InputError: timm has no such model, or the model refuses the arguments.
    """
    if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name):
        near = did_you_mean(name.partition(".")[0], timm.list_models())
        raise InputError(f"timm has no model '{name}', expected one of timm.list_models().{near}")
    for key in ("num_classes", "features_only", "pretrained", "overview_head"):
        if key in arguments:
            raise InputError(f"backbone_args has '{key}', which the task sets itself")
    rates = {key: DROP_RATE for key in arguments if re.fullmatch(r"(\w+_)?drop_(\w+_)?rate", key)}
    check_ranges("model.backbone_args", arguments, rates)
    try:
        return timm.create_model(name, **(arguments | kwargs))
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        if "pretrained tag" in str(error):
            known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
            raise InputError(
                f"timm has no weights '{name}'.{did_you_mean(name, known)}\n"
                f"expected one of {', '.join(known) or 'none: there are no weights of it'}"
            ) from error
        if isinstance(error, RuntimeError):
            raise
        if not arguments or kwargs.get("pretrained"):
            raise
        raise InputError(
            f"{name} refuses backbone_args {arguments}\n{error}{_nearest_argument(name, error)}"
        ) from error


def _nearest_argument(name: str, error: Exception) -> str:
    """Return " Did you mean …?" where a constructor complains of an unknown argument."""
    complaint = re.match(
        r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error)
    )
    if complaint is None:
        return ""
    module = sys.modules[timm.model_entrypoint(name.partition(".")[0]).__module__]
    owner = getattr(module, complaint[1], None)
    return did_you_mean(complaint[2], inspect.signature(owner).parameters) if owner else ""


def class_count(
    weights: Mapping[str, Tensor], classifier: str | tuple[str, ...] | None
) -> int | None:
    """Return how many classes the classifier in `weights` has, None if it is not found there.

    Args:
        weights: A state dict.
        classifier: Its layer's name, of several the first, as in timm's `pretrained_cfg`.
    """
    name = classifier if isinstance(classifier, str) else (classifier or ("",))[0]
    weight = weights.get(f"{name}.weight")
    return None if weight is None else len(weight)


def fitted(model: Any, images: Tensor) -> Tensor:
    """Return images as a timm model can take them: resized where it takes one size only.

    Args:
        model: The model.
        images: (B, C, H, W).
    """
    config = model.pretrained_cfg
    usual = tuple(config["input_size"][-2:])
    if not config.get("fixed_input_size") or tuple(images.shape[-2:]) == usual:
        return images
    return F.interpolate(images, usual, mode="bilinear", antialias=True)


def input_channels(model: Any) -> int | None:
    """Return how many channels a timm model takes, None if it does not say so."""
    first = model.pretrained_cfg.get("first_conv")
    name = first if isinstance(first, str) else (first or ("",))[0]
    weight = dict(model.named_parameters()).get(f"{name}.weight")
    return None if weight is None or weight.ndim != 4 else weight.shape[1]


@contextmanager
def refusal_explained(name: str, model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn a backbone's complaint about its images into an input error that names the cause.

    Args:
        name: Name of the backbone.
        model: The backbone, a timm model.
        images: (B, C, H, W), what it is given.

    Raises:
        InputError: The images have another number of channels, another size than the backbone can
            take, or leave BatchNorm a single value to train on.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        text = str(error)
        shape = tuple(images.shape[1:])
        usual = tuple(resolve_model_data_config(model)["input_size"])
        if input_channels(model) not in {None, shape[0]}:
            raise InputError(
                f"{name} has in_chans {input_channels(model)}, the images have {shape[0]} channels"
                f"\nexpected model.backbone_args.in_chans {shape[0]}"
            ) from error
        if "more than 1 value per channel" in text:
            raise InputError(
                f"BatchNorm of {name} cannot train on one value: a batch of {len(images)} image of "
                f"{shape[1]}x{shape[2]} pixels leaves a channel one pixel\n"
                "expected data.batch_size of at least 2, or larger images"
            ) from error
        about_size = not isinstance(error, RuntimeError) or "ernel size" in text
        if shape == usual or not about_size:
            raise
        raise InputError(
            f"{name} takes no images of {shape} (channels, height, width); it was made for "
            f"{usual}\n{text.splitlines()[0]}"
        ) from error
