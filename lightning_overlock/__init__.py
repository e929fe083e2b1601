"""Train, ablate and understand OverLoCK and ConvNeur with PyTorch Lightning.

Importing the package registers its backbones with timm.
"""

from lightning_overlock import models as models

__version__ = "0.1.0"
