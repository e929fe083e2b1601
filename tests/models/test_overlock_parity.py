"""OverLoCK against what the authors' code returned for the same weights and inputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from parity import fill
from timm.utils import reparameterize_model

from lightning_overlock.models.overlock import OverLoCK

PARITY = Path(fill.__file__).parent
SIZES = [(224, 224), (192, 256), (96, 96), (64, 160)]
VARIANTS = ["xt", pytest.param("t", marks=pytest.mark.slow)]


def release_state_dict(variant):
    return fill.state_dict(json.loads((PARITY / f"keys_overlock_{variant}.json").read_text()))


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def vectors(variant):
    return np.load(PARITY / f"vectors_overlock_{variant}.npz")


@pytest.fixture(scope="module")
def checkpoint(variant, tmp_path_factory):
    path = tmp_path_factory.mktemp("release") / f"overlock_{variant}_in1k_224.pth"
    torch.save(release_state_dict(variant), path)
    return path


@pytest.fixture(scope="module")
def model(variant, checkpoint) -> OverLoCK:
    return timm.create_model(
        f"overlock_{variant}",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(checkpoint)},
        overview_head=True,
    ).double()


@pytest.mark.parametrize("size", SIZES)
def test_evaluation_equals_the_release_in_float64(model, vectors, size):
    name = f"{size[0]}x{size[1]}"
    with torch.inference_mode():
        x = fill.image(*size).double()
        features, (overview,) = model.eval().forward_intermediates(x, indices=[4])
        logits = model.forward_head(features)
    for ours, key in (
        (logits, "logits"),
        (features.mean((2, 3)), "features_mean"),
        (overview.mean((2, 3)), "context_mean"),
    ):
        np.testing.assert_allclose(ours.numpy(), vectors[f"{key}_{name}"], rtol=0, atol=1e-8)


def test_training_mode_equals_the_release_in_both_heads(model, vectors):
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        logits, overview = model.train().forward_overview(fill.image(224, 224).double())
    model.load_state_dict(statistics)  # the pass has moved the running statistics
    np.testing.assert_allclose(logits.numpy(), vectors["train_main"], rtol=0, atol=1e-8)
    np.testing.assert_allclose(overview.numpy(), vectors["train_aux"], rtol=0, atol=1e-8)


def test_float32_equals_the_release_before_and_after_reparameterisation(
    variant, checkpoint, vectors
):
    model = timm.create_model(
        f"overlock_{variant}", pretrained=True, pretrained_cfg_overlay={"file": str(checkpoint)}
    ).eval()
    merged = reparameterize_model(model)
    for size in SIZES:
        x = fill.image(*size)
        expected = vectors[f"logits_{size[0]}x{size[1]}"]
        with torch.inference_mode():
            np.testing.assert_allclose(model(x).numpy(), expected, rtol=0, atol=1e-5)
            np.testing.assert_allclose(merged(x).numpy(), expected, rtol=0, atol=1e-5)
            # the classic layout takes other kernels inside the library
            last = x.to(memory_format=torch.channels_last)
            np.testing.assert_allclose(merged(last).numpy(), expected, rtol=0, atol=1e-5)


def test_parameter_counts_equal_the_release(model, vectors):
    count = sum(p.numel() for p in model.parameters())
    assert count == int(vectors["params"])
    merged = reparameterize_model(model)
    assert sum(p.numel() for p in merged.parameters()) <= int(vectors["reparam_params"])
    assert not [m for m in merged.head.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "training"), [("xt", 16.970), ("t", 34.476), ("s", 57.796), ("b", 97.435)]
)
def test_training_form_has_the_published_size(name, training):
    with torch.device("meta"):
        model = timm.create_model(f"overlock_{name}")
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == training


def merged_release_form(state_dict):
    """The release's own reparameterisation, worked out here from its keys alone."""
    out = dict(state_dict)
    for name in [n for n in state_dict if n.endswith("lk_origin.weight")]:
        prefix = name.removesuffix("lk_origin.weight")

        def fused(conv, norm):
            get = {
                k: out.pop(f"{norm}.{k}").double()
                for k in ("weight", "bias", "running_mean", "running_var")
            }
            out.pop(f"{norm}.num_batches_tracked")
            std = (get["running_var"] + 1e-5).sqrt()
            weight = out.pop(conv).double() * (get["weight"] / std).view(-1, 1, 1, 1)
            return weight, get["bias"] - get["running_mean"] * get["weight"] / std

        kernel, bias = fused(name, f"{prefix}origin_bn")
        size = kernel.shape[-1]
        for branch in [n for n in list(out) if n.startswith(f"{prefix}dil_conv_")]:
            spec = branch.removeprefix(f"{prefix}dil_conv_").removesuffix(".weight")
            dilation = int(spec.split("_")[1])
            weight, shift = fused(branch, f"{prefix}dil_bn_{spec}")
            reach = weight.shape[-1] // 2
            for row in range(-reach, reach + 1):
                for column in range(-reach, reach + 1):
                    kernel[:, 0, size // 2 + row * dilation, size // 2 + column * dilation] += (
                        weight[:, 0, reach + row, reach + column]
                    )
            bias = bias + shift
        out[name] = kernel.float()
        out[f"{prefix}lk_origin.bias"] = bias.float()
    return out


def test_reparameterised_release_checkpoint_loads_into_the_training_form(tmp_path):
    merged = merged_release_form(release_state_dict("xt"))
    vectors = np.load(PARITY / "vectors_overlock_xt.npz")
    assert sum(
        v.numel() for k, v in merged.items() if "running" not in k and "tracked" not in k
    ) == int(vectors["reparam_params"])
    torch.save(merged, tmp_path / "overlock_xt_in1k_224_reparam.pth")
    model = timm.create_model(
        "overlock_xt",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "overlock_xt_in1k_224_reparam.pth")},
    ).eval()
    with torch.inference_mode():
        logits = model(fill.image(96, 96))
        np.testing.assert_allclose(logits.numpy(), vectors["logits_96x96"], rtol=0, atol=1e-5)
        again = reparameterize_model(model)(fill.image(96, 96))
        np.testing.assert_allclose(again.numpy(), vectors["logits_96x96"], rtol=0, atol=1e-5)


def test_checkpoint_adapts_to_other_classes_and_channels(tmp_path):
    torch.save({"model": release_state_dict("xt")}, tmp_path / "release.pth")
    model = timm.create_model(
        "overlock_xt",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(tmp_path / "release.pth")},
        num_classes=10,
        in_chans=1,
        overview_head=True,
    ).eval()
    weight = fill.fill("patch_embed1.0.weight", (28, 3, 3, 3))
    torch.testing.assert_close(model.stem[0].conv.weight, weight.sum(1, keepdim=True))
    kept = fill.fill("high_level_proj.weight", (84, 336, 1, 1))
    assert torch.equal(model.context_proj.weight, kept)
    assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 10)
    assert model.overview_head.fc.weight.shape == (10, 336)
