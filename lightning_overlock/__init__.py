"""Train, ablate and understand OverLoCK and ConvNeur with PyTorch Lightning.

Importing the package registers its backbones with timm.
"""

import os

# Before torch loads OpenMP. Threads that spin while they wait make two busy processes on the same
# cores many times slower. Threads that sleep at once are woken for every operation, which halves
# the speed of small networks. These spin for some microseconds, then sleep.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE").upper() == "PASSIVE":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from lightning_overlock import models as models

__version__ = "0.1.0"
