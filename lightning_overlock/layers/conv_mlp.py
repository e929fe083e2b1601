"""The per-pixel MLP of OverLoCK's blocks and the small pieces around it."""

from typing import Any

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.layers.conv_norm import ResidualDepthwise

# What a hidden map of `ConvMlp` may take in inference on a CPU: it should stay in the cache.
HIDDEN_BYTES = 4 * 2**20


@register_notrace_module
class GELU(nn.Module):
    """Exact GELU that takes the place of its input where no gradient is asked for.

    Without a new map of the widest size per block, OverLoCK-T infers 6 % faster on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map any shape to the same; x is overwritten unless gradients are enabled."""
        return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


@register_notrace_module
class GlobalResponseNorm(nn.Module):
    """Global response normalisation of ConvNeXt V2 (arXiv 2301.00808, section 3).

    Same function as timm's, computed in one pass over the map instead of three. Factor and shift
    are stored (1, C, 1, 1) as in ConvNeXt V2, so that rules by the number of dimensions (weight
    decay) treat them as its recipe does.

    Args:
        channels: C.
        eps: Added to the mean response before dividing by it.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
    """

    def __init__(
        self,
        channels: int,
        eps: float = 1e-6,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1, **dd))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1, **dd))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        # Squares overflow float16, and so does the gradient of the factor, a sum over the map.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        # In channels_last this is five times faster than vector_norm. Clamped, because the root
        # of a channel that is zero everywhere has no gradient.
        response = (wide * wide).sum((2, 3), keepdim=True).clamp_min(1e-30).sqrt()
        relative = response / (response.mean(dim=1, keepdim=True) + self.eps)
        beta = self.beta.to(wide.dtype)
        return torch.addcmul(beta, wide, 1 + self.gamma * relative).to(x.dtype)


@register_notrace_module
class ChannelScale(nn.Module):
    """A factor and a shift per channel, one and zero at the start.

    Args:
        channels: C.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
    """

    def __init__(
        self,
        channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        # More than one dimension: the release's recipe decays the factor, not the shift.
        self.weight = nn.Parameter(torch.ones(channels, 1, 1, **dd))
        self.bias: nn.Parameter | None = nn.Parameter(torch.zeros(channels, **dd))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return factor * x + shift + residual; all (B, C, H, W), residual zero if None."""
        weight = self.weight.to(x.dtype)
        if self.bias is not None:
            shift = self.bias.to(x.dtype).view(-1, 1, 1)
            residual = shift if residual is None else residual + shift
        return x * weight if residual is None else torch.addcmul(residual, x, weight)

    def move_shift(self, bias: Tensor) -> None:
        """Add the shift to the (C,) bias of the layer that makes the residual, and drop it here."""
        if self.bias is not None:
            bias.data += self.bias.data
            self.bias = None


@register_notrace_module
class ConvMlp(nn.Module):
    """1x1 convolution, GELU, residual depthwise 3x3, GRN, 1x1 convolution.

    Inference on a CPU takes a few images at a time where the hidden map of all is large: the map
    then stays in the cache, and its memory is used again instead of fetched from the system.

    Args:
        in_channels: C of the input.
        hidden_channels: Channels between the two 1x1 convolutions.
        out_channels: C of the output.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.fc1 = nn.Conv2d(in_channels, hidden_channels, 1, **dd)
        self.act = GELU()
        self.depthwise = ResidualDepthwise(hidden_channels, **dd)
        self.grn = GlobalResponseNorm(hidden_channels, **dd)
        self.fc2 = nn.Conv2d(hidden_channels, out_channels, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H, W)."""
        count = self._images_at_once(x)
        if count < x.shape[0]:
            return torch.cat([self._mlp(part) for part in torch.split(x, count)])
        return self._mlp(x)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.grn(self.depthwise(self.act(self.fc1(x)))))

    def _images_at_once(self, x: Tensor) -> int:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not x.is_cpu:
            return x.shape[0]
        # Whoever reads the layers inside through hooks expects the whole batch of them.
        if any(module._forward_hooks for module in self.modules() if module is not self):
            return x.shape[0]
        image = self.fc1.out_channels * x.shape[2] * x.shape[3] * x.element_size()
        return max(1, HIDDEN_BYTES // image)
