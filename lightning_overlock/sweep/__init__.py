"""Sweeps: rows or a search space that are trained one by one and come out as a table."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Whoever reads a sweep file needs neither pandas nor matplotlib.
    if name == "load":
        from lightning_overlock.sweep.notebook import load

        return load
    raise AttributeError(name)
