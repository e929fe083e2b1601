"""Train, ablate and understand OverLoCK and ConvNeur with PyTorch Lightning.

Once this package and timm are both imported, in whichever order, timm knows its backbones.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_overlock.tasks.base import BaseTask

# Before torch loads OpenMP. Threads that spin while they wait make two busy processes on the same
# cores many times slower. Threads that sleep at once are woken for every operation, which halves
# the speed of small networks. These spin for some microseconds, then sleep.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"


class _AfterTimm(MetaPathFinder):
    """Registers the backbones when timm is imported.

    Importing them here at once would import torch and timm too, which takes seconds that the
    command's help and its answers to wrong input do not need.
    """

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the import system's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return timm's own specification, with the registration after its import."""
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = find_spec("timm")
        if spec is None or spec.loader is None:
            return spec
        import_timm = spec.loader.exec_module

        def import_both(module: ModuleType) -> None:
            import_timm(module)
            importlib.import_module("lightning_overlock.models")

        spec.loader.exec_module = import_both  # type: ignore[method-assign]
        return spec


def load(path: str | Path, device: str = "cpu") -> "BaseTask":
    """Return a trained task, ready to `predict_images`; see `lightning_overlock.tasks.load`."""
    from lightning_overlock.tasks.load import load as load_task

    return load_task(path, device)


if "timm" in sys.modules:
    importlib.import_module("lightning_overlock.models")
else:
    sys.meta_path.insert(0, _AfterTimm())
