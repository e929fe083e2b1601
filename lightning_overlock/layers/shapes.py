"""Sizes of maps, in forms that tracers can follow.

`torch.fx` meets comparisons of sizes inside functions that timm's tracer takes whole.
"""

from timm.models import register_notrace_function
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn import functional as F

from lightning_overlock.ops.tracing import is_exporting, is_tracing


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
    if height < least or width < least:  # apart: `min` of symbolic sizes would compare them
        raise ValueError(
            f"the image is {height}x{width} pixels; {name} needs at least {least}x{least}"
        )
    return x


def resize_like(x: Tensor, like: Tensor) -> Tensor:
    """Return (B, C, h, w) bilinearly resized to the height and width of `like`."""
    if _surely_equal(map_size(x), map_size(like)):
        return x
    return F.interpolate(x, map_size(like), mode="bilinear")


def _surely_equal(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Tell whether sizes are equal; symbolic ones that need not be are not, and no guard is set."""
    if not is_exporting():
        return size == other
    return all(statically_known_true(a == b) for a, b in zip(size, other, strict=True))


for function in (require_size, resize_like):
    register_notrace_function(function)
