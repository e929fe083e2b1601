"""A timm model compiled block by block."""

import re
from typing import Any

import torch


def compile_blocks(model: Any) -> None:
    """Compile the blocks of a timm model in place.

    Blocks are the layers of the model's own `group_matcher`. Compiled in place they keep the names
    of their parameters, and every method of the model that runs them is sped up, not only
    `forward`. A model without named blocks is compiled as a whole.
    """
    matcher = model.group_matcher(coarse=False) if hasattr(model, "group_matcher") else {}
    patterns = [
        pattern.lstrip("^")
        for entry in matcher.values()
        for pattern in ([entry] if isinstance(entry, str) else [pattern for pattern, _ in entry])
    ]
    blocks = [
        module
        for name, module in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in patterns) and any(module.children())
    ] or [model]
    # All blocks of a class share the code that torch counts recompilations of, and each has its
    # own shapes and drop path rate, in training and in evaluation, for one image size and for any.
    limit = 4 * len(blocks) + 8
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile()
