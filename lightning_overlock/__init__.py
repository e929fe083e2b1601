"""Train, ablate and understand OverLoCK and ConvNeur with PyTorch Lightning.

Importing the package registers its backbones with timm.
"""

import os

# Before torch loads OpenMP: threads that spin while they wait make two busy processes on the same
# cores twenty times slower, a training run beside anything else.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from lightning_overlock import models as models

__version__ = "0.1.0"
