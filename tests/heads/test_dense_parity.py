"""Dense features against what the authors' dense models returned for the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import fill

from lightning_overlock.backbones.features import DenseFeatures

PARITY = Path(fill.__file__).parent
SIZES = [(224, 224), (128, 320)]


def release(kind):
    return fill.state_dict(json.loads((PARITY / f"keys_{kind}_overlock_t.json").read_text()))


def assert_equal(features, kind, size):
    vectors = np.load(PARITY / f"vectors_{kind}_overlock_t.npz")
    with torch.inference_mode():
        maps = features(fill.image(*size).double())
    for level, found in enumerate(maps):
        key = f"level{level}_{size[0]}x{size[1]}"
        for ours, theirs in ((found.mean((2, 3)), key), (found[0, :, 0, 0], f"{key}_first")):
            np.testing.assert_allclose(ours.numpy(), vectors[theirs], rtol=0, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detection", "segmentation"])
def test_maps_equal_the_release_in_float64(kind):
    features = DenseFeatures("overlock_t", overview=kind == "detection").eval()
    assert features.load_weights(release(kind)) == ([], [])
    features.double()
    for size in SIZES:
        assert_equal(features, kind, size)


def test_a_whole_checkpoint_of_the_release_gives_its_backbone():
    """With the prefix of mmdetection's files; the heads are named as not used."""
    weights = {f"backbone.{name}": value for name, value in release("detection").items()}
    weights["neck.fpn_convs.0.conv.weight"] = torch.zeros(1)
    with torch.device("meta"):
        features = DenseFeatures("overlock_t")
    features.to_empty(device="cpu")
    unused, new = features.load_weights(weights)
    assert new == []
    extras = ["overview_norm", "overview_proj", "overview_scale"]
    expected = [f"{part}.{leaf}" for part in extras for leaf in ("weight", "bias")]
    assert sorted(unused) == sorted(["neck.fpn_convs.0.conv.weight", *expected])
    assert torch.equal(features.norms[2].bias, fill.fill("extra_norm.2.bias", (384,)))
    kept = fill.fill("high_level_proj.weight", (128, 512, 1, 1))
    assert torch.equal(features.backbone.context_proj.weight, kept)
