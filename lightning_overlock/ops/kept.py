"""Index tensors that are built once and kept."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor


def kept(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep index tensors per shape and device, so that no forward builds them anew."""
    keep = lru_cache(maxsize=128)(build)

    @wraps(build)
    def index(*key: Any) -> Tensor:
        if torch.compiler.is_compiling():  # traced: becomes a part of the graph
            return build(*key)
        # A normal tensor even if inference mode is the first to ask: training may use it later.
        with torch.inference_mode(False):
            tensor = keep(*key)
        if type(tensor) is not Tensor:  # a fake one, of a fake mode
            keep.cache_clear()
        return tensor

    index.cache_clear = keep.cache_clear  # type: ignore[attr-defined]
    return index
