"""A timm backbone by name; mistakes in its name, arguments or image size are input errors."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from lightning_overlock.errors import ConfigError, InputError, did_you_mean
from lightning_overlock.ranges import Range, check_ranges

# timm's models take drop_rate, drop_path_rate, attn_drop_rate and more of this kind.
DROP_RATE = Range(0, 1, open="high")


def create_backbone(name: str, arguments: dict[str, Any], **kwargs: Any) -> nn.Module:
    """Create a timm model.

    Args:
        name: Of a timm model, with or without the tag of its weights.
        arguments: As typed by the user.
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
    except (TypeError, ValueError, AssertionError) as error:
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


@contextmanager
def size_explained(name: str, model: nn.Module, images: Tensor) -> Iterator[None]:
    """Turn a backbone's complaint about an unusual image size into an input error.

    Args:
        name: Of the backbone.
        model: The backbone, a timm model.
        images: (B, C, H, W), what it is given.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, AssertionError, RuntimeError) as error:
        usual = tuple(resolve_model_data_config(model)["input_size"])
        about_size = not isinstance(error, RuntimeError) or "ernel size" in str(error)
        if tuple(images.shape[1:]) == usual or not about_size:
            raise
        raise InputError(
            f"{name} takes no images of {tuple(images.shape[1:])} (channels, height, "
            f"width); it was made for {usual}\n{str(error).splitlines()[0]}"
        ) from error
