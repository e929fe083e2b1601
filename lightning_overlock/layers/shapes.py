"""Sizes of maps, in forms that tracers can follow.

`torch.fx` meets comparisons of sizes inside functions that timm's tracer takes whole.
"""

from timm.models import register_notrace_function
from torch import Tensor
from torch.nn import functional as F

from lightning_overlock.ops.tracing import is_tracing


def map_size(x: Tensor) -> tuple[int, int]:
    """Return H and W of (..., H, W); plain numbers also under `torch.jit.trace`.

    There sizes are tensors, with which one cannot choose or cut; a traced network is for one size.
    """
    height, width = x.shape[-2:]
    return (int(height), int(width)) if is_tracing() else (height, width)


def require_size(x: Tensor, least: int, name: str) -> Tensor:
    """Return the images (B, C, H, W) as they are.

    Args:
        x: (B, C, H, W).
        least: The smallest height and width that is taken.
        name: What the message calls the network.

    Raises:
        ValueError: The image is smaller than that.
    """
    height, width = map_size(x)
    if min(height, width) < least:
        raise ValueError(
            f"the image is {height}x{width} pixels; {name} needs at least {least}x{least}"
        )
    return x


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Return (B, C, h, w) bilinearly resized to the height and width of `like`."""
    if map_size(x) == map_size(like):
        return x
    return F.interpolate(x, map_size(like), mode="bilinear")


for function in (require_size, resize_like):
    register_notrace_function(function)
