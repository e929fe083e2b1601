"""OverLoCK: overview first, look closely next (Lou and Yu, CVPR 2025, arXiv 2502.20087).

Base-Net encodes the image down to H/16. Overview-Net looks at the whole at H/32 and hands a
context prior to Focus-Net, which goes over Base-Net's map again with dynamic kernels (ContMix)
made from that prior. Weights of the authors' release (github.com/LMMMEng/OverLoCK, Apache-2.0)
load in both of its forms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Any, Literal, get_args

import torch
from timm.layers import DropPath, LayerNorm2d, SelectAdaptivePool2d, SqueezeExcite
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
    register_notrace_function,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers.contmix import ContMix
from lightning_overlock.layers.conv_mlp import GELU, ChannelScale, ConvMlp, GlobalResponseNorm
from lightning_overlock.layers.conv_norm import ConvNorm, NormConv, ResidualDepthwise
from lightning_overlock.layers.dilated_reparam import BRANCHES, large_depthwise
from lightning_overlock.layers.neural_memory import NeuralMemory, Scan
from lightning_overlock.layers.shapes import require_size, resize_like
from lightning_overlock.layers.tap import Tap

Mixer = Literal["contmix", "static"]
Overview = Literal["static", "memory"]
ContextSource = Literal["own", "shuffled", "zero"]
StemStride = Literal[1, 2, 4]


class ChannelAttention(SqueezeExcite):
    """Squeeze and excitation of both kinds of block: an eighth of C, at least 16, wide.

    timm's, but for the convolutions of what is one pixel: they run as the linear layers they are,
    which takes a quarter of the time on a CPU.

    Args:
        dim: C.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__(dim, rd_channels=max(16, dim // 8), act_layer=nn.GELU, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Scale (B, C, H, W) by a factor per channel."""
        hidden = self.act(F.linear(x.mean((2, 3)), self.fc1.weight.flatten(1), self.fc1.bias))
        factor = self.gate(F.linear(hidden, self.fc2.weight.flatten(1), self.fc2.bias))
        return x * factor[:, :, None, None]


class StaticBlock(nn.Module):
    """Block of Base-Net and Overview-Net: large static kernel, channel attention, MLP.

    Args:
        dim: C.
        kernel_size: K of the static depthwise convolution.
        mlp_ratio: Hidden width of the MLP over C.
        drop_path: Probability of leaving the branch out.
        layer_scale: Whether the identity is scaled by a learned factor per channel.
        dilation: Pixels between the taps of the static depthwise convolution.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: bool,
        dilation: int = 1,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.position = ResidualDepthwise(dim, **dd)
        self.norm = LayerNorm2d(dim, **dd)
        self.spatial = large_depthwise(dim, kernel_size, dilation=dilation, **dd)
        self.se = ChannelAttention(dim, **dd)
        self.mlp = ConvMlp(dim, int(mlp_ratio * dim), dim, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.scale = ChannelScale(dim, **dd) if layer_scale else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.position(x)
        branch = self.drop_path(self.mlp(self.se(self.spatial(self.norm(x)))))
        return x + branch if self.scale is None else self.scale(x, branch)

    def reparameterize(self) -> None:
        """Merge the scale's shift into the MLP's last bias."""
        if self.scale is not None:
            assert self.mlp.fc2.bias is not None
            self.scale.move_shift(self.mlp.fc2.bias)


class MemoryBlock(nn.Module):
    """A neural memory over a map's tokens, in place of a static block of the Overview-Net.

    As in ConvNeur, a 1x1 convolution leads to the memory's width and another one back.

    Args:
        dim: C.
        memory_dim: Width of the memory.
        drop_path: Probability of leaving the branch out.
        memory_options: The other arguments of `NeuralMemory`.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int,
        drop_path: float,
        memory_options: dict[str, Any],
        **dd: Any,
    ) -> None:
        super().__init__()
        self.position = ResidualDepthwise(dim, **dd)
        self.norm = LayerNorm2d(dim, **dd)
        self.compress = nn.Conv2d(dim, memory_dim, 1, **dd)
        self.memory = NeuralMemory(memory_dim, **memory_options, **dd)
        self.expand = nn.Conv2d(memory_dim, dim, 1, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.scale = ChannelScale(dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.position(x)
        branch = self.expand(self.memory(self.compress(self.norm(x))))
        return self.scale(x, self.drop_path(branch))

    def reparameterize(self) -> None:
        """Merge the scale's shift into the last bias."""
        assert self.expand.bias is not None
        self.scale.move_shift(self.expand.bias)


class StaticStage(nn.Module):
    """Downsampling, then static blocks.

    Args:
        in_channels: C of the input; None where the stem has brought the map to its size.
        dim: C of the blocks.
        drop_path: The probability of leaving the branch out, one per block.
        kernel_size, mlp_ratio, layer_scale: Arguments of each `StaticBlock`.
        memory: Arguments of a `MemoryBlock` that takes the place of every static block; None
            for static blocks.
        stride: Stride of the downsampling convolution; 1 keeps the map's size.
        dilation: Argument of each `StaticBlock`.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        in_channels: int | None,
        dim: int,
        drop_path: Sequence[float],
        *,
        kernel_size: int,
        mlp_ratio: float,
        layer_scale: bool,
        memory: dict[str, Any] | None = None,
        stride: int = 2,
        dilation: int = 1,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = (
            ConvNorm(in_channels, dim, 3, stride=stride, **dd) if in_channels else nn.Identity()
        )
        self.blocks = nn.Sequential(
            *(
                StaticBlock(dim, kernel_size, mlp_ratio, rate, layer_scale, dilation, **dd)
                if memory is None
                else MemoryBlock(dim, drop_path=rate, **memory, **dd)
                for rate in drop_path
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C, H/2, W/2), or (B, C, H, W) without downsampling."""
        x = self.downsample(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class DynamicBlock(nn.Module):
    """Block of Focus-Net: features and context, mixed by dynamic kernels and gated.

    Args:
        dim: C of the features.
        context_dim: C of the context; 0 where the features are their own context.
        kernel_size: K of the dynamic and of the local static kernel.
        num_heads: Heads of ContMix; the channels fall into twice as many groups, each with kernels
            of its own.
        mlp_ratio: Hidden width of the MLP over `dim`.
        drop_path: Probability of leaving a branch out.
        blend_prior: Whether the context is a scaled sum of the last block's and the context prior;
            False in the first block, whose context is the prior itself.
        mixer: "contmix", or "static" for the local kernel alone.
        gate: Whether the mixed value is multiplied by a gate made from features and context.
        feature_guidance: Whether the value is made from features and context; False takes features
            alone.
        kernel_guidance: Whether the kernels' keys come from the context; False takes the features.
        context_update: The block passes an updated context on; without, every block takes the
            prior and makes features only.
        small_kernel: Side in pixels of ContMix's small kernel; None gives all channels the large
            one.
        context_grid: Side in cells of the grid that ContMix pools the context to.
        dilation: Pixels between the taps of the local static kernel; dynamic kernels have 1.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        kernel_size: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        blend_prior: bool,
        mixer: Mixer,
        gate: bool,
        feature_guidance: bool,
        kernel_guidance: bool,
        context_update: bool,
        small_kernel: int | None,
        context_grid: int,
        dilation: int = 1,
        **dd: Any,
    ) -> None:
        super().__init__()
        total = dim + context_dim
        out = total if context_update else dim
        self.split = [dim, context_dim]
        self.feature_guidance = feature_guidance
        self.kernel_guidance = kernel_guidance
        self.context_update = context_update
        blend_prior = blend_prior and context_update and context_dim > 0
        self.context_scale = ChannelScale(context_dim, **dd) if blend_prior else None
        self.prior_scale = ChannelScale(context_dim, **dd) if blend_prior else None
        self.position = ResidualDepthwise(total, **dd)
        self.norm1 = LayerNorm2d(total, **dd)
        value_in = total if feature_guidance else dim
        self.value = nn.Sequential(
            ConvNorm(value_in, value_in, 3, groups=value_in, bias=True, **dd),
            GELU(),
            nn.Conv2d(value_in, dim, 1, **dd),
            GlobalResponseNorm(dim, **dd),
        )
        self.local = large_depthwise(dim, kernel_size, dilation=dilation, **dd)
        self.mixer = (
            ContMix(
                dim,
                (context_dim or None) if kernel_guidance else None,
                kernel_size=kernel_size,
                small_kernel=small_kernel,
                num_heads=num_heads,
                context_grid=context_grid,
                **dd,
            )
            if mixer == "contmix"
            else None
        )
        self.se = ChannelAttention(dim, **dd)
        self.gate = nn.Sequential(ConvNorm(dim, dim, **dd), nn.SiLU()) if gate else None
        self.gate_tap = Tap()
        self.proj = NormConv(dim, out, **dd)
        self.scale1 = ChannelScale(out, **dd)
        self.position2 = ResidualDepthwise(out, **dd)
        self.norm2 = LayerNorm2d(out, **dd)
        self.mlp = ConvMlp(out, int(mlp_ratio * dim), out, **dd)
        self.scale2 = ChannelScale(out, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, context: Tensor | None, prior: Tensor | None) -> Tensor:
        """Look closely at x under the guidance of the context.

        Args:
            x: (B, C, H, W) features.
            context: (B, Ch, H, W), None without context.
            prior: (B, Ch, H, W), the context prior at the map's size, None without context.

        Returns:
            (B, C + Ch, H, W), features and updated context; (B, C, H, W) where there is no
            context or it is not updated.
        """
        if self.prior_scale is not None:
            if self.context_scale is not None:
                context = self.context_scale(context)
            context = self.prior_scale(prior, context)
        z = self.position(x if context is None else torch.cat([x, context], dim=1))
        identity = z if self.context_update else z[:, : self.split[0]]
        z = self.norm1(z)
        features, context = z.split(self.split, dim=1) if context is not None else (z, None)
        value = self.value(z if self.feature_guidance else features)
        y = self.local(value)
        if self.mixer is not None:
            y = y + self.mixer(features, context if self.kernel_guidance else None, value)
        y = self.se(y)
        if self.gate is not None:
            y = y * self.gate_tap(self.gate(value))
        z = self.scale1(identity, self.drop_path(self.proj(y)))
        z = self.position2(z)
        return self.scale2(z, self.drop_path(self.mlp(self.norm2(z))))

    def reparameterize(self) -> None:
        """Merge the scales' shifts into the last bias of the branch that each is added to."""
        assert self.proj.conv.bias is not None
        assert self.mlp.fc2.bias is not None
        self.scale1.move_shift(self.proj.conv.bias)
        self.scale2.move_shift(self.mlp.fc2.bias)


class FocusStage(nn.Module):
    """Downsampling of features and context, then dynamic blocks.

    Args:
        in_channels: C and Ch of the input's features and context; None without downsampling.
        dim: C of the blocks.
        context_dim: Ch; 0 where the features are their own context.
        drop_path: The probability of leaving the branch out, one per block.
        blend_prior: Whether the blocks blend the prior into the context.
        blend_first: Whether the first block does so too.
        context_update: Argument of every `DynamicBlock`.
        stride: Stride of the downsampling convolution; 1 keeps the map's size.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.
        block_args: The other arguments of every `DynamicBlock`.
    """

    def __init__(
        self,
        in_channels: tuple[int, int] | None,
        dim: int,
        context_dim: int,
        drop_path: Sequence[float],
        *,
        blend_prior: bool,
        blend_first: bool,
        context_update: bool,
        stride: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **block_args: Any,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.split = [dim, context_dim]
        self.split_in = list(in_channels or ())
        self.context_update = context_update
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.downsample = (
            ConvNorm(in_channels[0], dim, 3, stride=stride, **dd) if in_channels else None
        )
        self.context_downsample = (
            ConvNorm(in_channels[1], context_dim, 3, stride=stride, **dd)
            if in_channels and context_update
            else None
        )
        self.blocks = nn.ModuleList(
            DynamicBlock(
                dim,
                context_dim,
                drop_path=rate,
                blend_prior=blend_prior and (blend_first or index > 0),
                context_update=context_update,
                **block_args,
                **dd,
            )
            for index, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor, prior: Tensor | None) -> Tensor:
        """Look closely at x.

        Args:
            x: (B, C, H, W) features; with downsampling (B, C_in + Ch_in, 2H, 2W) features and
                context.
            prior: (B, Ch, h, w), the context prior at any size; None without context.

        Returns:
            (B, C + Ch, H, W), features and context.
        """
        context = None
        if self.downsample is not None:
            x, context = torch.split(x, self.split_in, dim=1)
            x = self.downsample(x)
            context = self.context_downsample(context) if self.context_downsample else None
        if prior is not None:
            prior = resize_like(prior, x)
            context = prior if context is None else context
        for block in self.blocks:
            if self.grad_checkpointing and self.training:
                x = checkpoint(block, x, context, prior)
            else:
                x = block(x, context, prior)
            if self.context_update and context is not None and block is not self.blocks[-1]:
                x, context = torch.split(x, self.split, dim=1)
        if prior is not None and not self.context_update:
            x = torch.cat([x, prior], dim=1)
        return x

    def reparameterize(self) -> None:
        """Merge each block's context scale, and its prior's shift, into what makes the context."""
        makers = [self.context_downsample, *self.blocks[:-1]]
        for maker, block in zip(makers, self.blocks, strict=True):
            assert isinstance(block, DynamicBlock)
            scale, prior_scale = block.context_scale, block.prior_scale
            if scale is None or prior_scale is None or maker is None:
                continue
            assert scale.bias is not None
            assert prior_scale.bias is not None
            factor, shift = scale.weight.data.flatten(), (scale.bias + prior_scale.bias).data
            if isinstance(maker, DynamicBlock):
                assert maker.scale2.bias is not None
                assert maker.mlp.fc2.bias is not None
                start = self.split[0]
                maker.scale2.weight.data[start:] *= factor.view(-1, 1, 1)
                maker.scale2.bias.data[start:] *= factor
                maker.scale2.bias.data[start:] += shift
                maker.mlp.fc2.weight.data[start:] *= factor.view(-1, 1, 1, 1)
                maker.mlp.fc2.bias.data[start:] *= factor
            else:
                assert isinstance(maker, ConvNorm)
                maker.norm.weight.data *= factor
                maker.norm.bias.data.mul_(factor).add_(shift)
            block.context_scale = None
            prior_scale.bias = None


def last_of(indices: Sequence[int]) -> int:
    """Return the place in `feature_info` that is computed last; the overview comes before H/32."""
    return 3 if 3 in indices else max(indices)


def new_classifier(in_features: int, num_classes: int, like: Tensor) -> nn.Module:
    """Return an initialised linear classifier on the device of `like`; none for no classes."""
    if not num_classes:
        return nn.Identity()
    classifier = nn.Linear(in_features, num_classes, device=like.device, dtype=like.dtype)
    init_weights(classifier)
    return classifier


class OverviewHead(nn.Module):
    """Auxiliary classifier on the Overview-Net's output, used while training.

    Args:
        dim: C.
        num_classes: Width of the output.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(self, dim: int, num_classes: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.fc = new_classifier(dim, num_classes, self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to logits (B, num_classes)."""
        return self.fc(self.norm(x).mean((2, 3)))


class ClassifierHead(nn.Module):
    """1x1 convolution to the head's width, SiLU, pooling, linear classifier.

    Args:
        in_features: C of the input.
        hidden_size: Channels of the head's hidden layer.
        num_classes: Width of the output; 0 leaves the classifier out.
        pool_type: timm's pooling name; "" leaves pooling out.
        drop_rate: Dropout before the classifier.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        hidden_size: int,
        num_classes: int,
        pool_type: str,
        drop_rate: float,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.conv = ConvNorm(in_features, hidden_size, **dd)
        self.act = nn.SiLU()
        self.hidden_size = hidden_size
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, pool_type)

    def reset(self, num_classes: int, pool_type: str | None = None) -> None:
        """Replace the classifier and, unless None, the pooling."""
        if pool_type is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool_type, flatten=bool(pool_type))
            self.global_pool.train(self.training)
        self.fc = new_classifier(self.hidden_size, num_classes, next(self.conv.parameters()))
        self.fc.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, C, H, W) to logits, or to what the classifier would see if `pre_logits`."""
        x = self.drop(self.global_pool(self.act(self.conv(x))))
        if pre_logits:
            return x
        # Without pooling the classifier would meet a map; timm's heads apply it per pixel.
        if not self.global_pool.pool_type and not isinstance(self.fc, nn.Identity):
            return self.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(x)


def init_weights(module: nn.Module) -> None:
    """Initialise as the release does: truncated normal with std .02, biases 0."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def roll_batch(prior: Tensor) -> Tensor:
    """Give every image of a batch (B, ...) what belongs to the one before it.

    Raises:
        ConfigError: There is one image only.
    """
    # On the meta device there is only a cost to be counted.
    if prior.shape[0] == 1 and not prior.is_meta:
        raise ConfigError(
            "context_source='shuffled' takes the context of another image of the batch, and this "
            "batch has one image; expected two or more (see the batch size and the last batch)"
        )
    return prior.roll(1, 0)


register_notrace_function(roll_batch)


def check_switches(
    *,
    dds: bool,
    mixer: str,
    feature_guidance: bool,
    kernel_guidance: bool,
    context_update: bool,
    context_source: str,
    small_kernel: int | Sequence[int] | None,
    context_grid: int,
) -> None:
    """Raise a ConfigError for a switch that another one leaves nothing to act on."""
    if mixer not in get_args(Mixer):
        raise ConfigError(f"mixer is {mixer!r}; expected one of {list(get_args(Mixer))}")
    if context_source not in get_args(ContextSource):
        raise ConfigError(
            f"context_source is {context_source!r}; expected one of {list(get_args(ContextSource))}"
        )
    if not dds:
        for name, on in (
            ("feature_guidance", feature_guidance),
            ("kernel_guidance", kernel_guidance),
            ("context_update", context_update),
        ):
            if not on:
                raise ConfigError(f"{name}=False needs dds=True: without it there is no context")
        if context_source != "own":
            raise ConfigError(
                f"context_source={context_source!r} needs dds=True: without it there is no context "
                "prior"
            )
    if mixer == "static":
        for name, off in (
            ("kernel_guidance=False", not kernel_guidance),
            (f"small_kernel={small_kernel}", small_kernel != 5),
            (f"context_grid={context_grid}", context_grid != 7),
        ):
            if off:
                raise ConfigError(f"{name} needs mixer='contmix': static kernels have no context")


def check_overview(overview: str, missing: bool, memory_options: list[str]) -> None:
    """Raise a ConfigError for a setting of the overview that nothing is left for.

    Args:
        overview: What the Overview-Net's blocks are.
        missing: Whether there is no Overview-Net.
        memory_options: The settings of a memory that are not at their default.
    """
    if overview not in get_args(Overview):
        raise ConfigError(f"overview is {overview!r}; expected one of {list(get_args(Overview))}")
    if overview == "memory" and missing:
        raise ConfigError("overview='memory' has no place: context_source='zero' has no overview")
    if overview == "static" and memory_options:
        raise ConfigError(
            f"{', '.join(memory_options)} needs overview='memory': static blocks have no memory"
        )


class OverLoCK(nn.Module):
    """OverLoCK backbone and classifier.

    The arguments from `dds` on switch the paper's ideas; each default is the paper's setting, and
    a switch that is off removes its parameters and its cost.

    Args:
        in_chans: Channels of the image.
        num_classes: Classes of the classifier; 0 makes `forward` return pooled features.
        global_pool: timm's pooling name.
        dims: C1 to C4, the channels at H/4 to H/32.
        depths: Blocks of Base-Net's three stages and of Overview-Net.
        focus_depths: Blocks of Focus-Net at H/16 and H/32.
        num_heads: Heads of ContMix at H/16 and H/32.
        kernel_sizes: K at H/4 to H/32, each 3 to 17 and odd.
        stem_stride: Pixels of the image per pixel of the first map. The maps that are called H/4
            to H/32 here and in the paper lie at 1, 2, 4 and 8 times this stride; 2 and 1 are for
            small images.
        mlp_ratio: MLP width of static blocks.
        focus_mlp_ratio: MLP width of dynamic blocks.
        head_hidden_size: Width of the classifier's hidden layer.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier blocks lie on a linear ramp
            over Base-Net, Overview-Net and Focus-Net.
        overview_head: Whether to build the auxiliary classifier that `forward_overview` needs; see
            `add_overview_head`.
        dds: Deep-stage decomposition (section 3.2). Without it the network is a plain pyramid in
            which the dynamic blocks stand behind the static ones and are their own context.
        mixer: "contmix", or "static" for dynamic blocks with the large static kernel alone.
        gate: Whether dynamic blocks multiply what they mixed by a gate (section 3.3).
        feature_guidance: Whether the context prior takes part in making the value.
        kernel_guidance: Whether the context prior makes the kernels' keys.
        context_update: Whether dynamic blocks pass an updated context on.
        context_source: Whose context prior guides Focus-Net: the image's "own"; or, as controls,
            that of another image of the batch ("shuffled": every image takes its predecessor's,
            in training and in evaluation) or none ("zero": the context starts at zero, and
            there is no Overview-Net and no auxiliary classifier).
        small_kernel: The small kernel of half of the channels, one number or one each for H/16
            and H/32; 0 or None for large kernels alone (`timm.create_model` leaves out arguments
            that are None).
        context_grid: Side of the pooled context.
        overview: What the Overview-Net's blocks are: "static", or "memory" for ConvNeur's neural
            memory over the map's tokens in their place (ours, no paper has it). Without
            decomposition the same blocks stand at H/32 of the pyramid.
        overview_memory_dim: Width of that memory; None is C4/4, as the context prior has.
        overview_chunk_size: Tokens of that memory's chunks; 7 are a row of the overview of 224
            pixels.
        overview_scan: That memory's order of writing and reading, see `layers.NeuralMemory`.
            "whole" lets every pixel see all others.
        output_stride: 32, or 16 or 8 for dense prediction: maps of a larger stride keep the size
            at that one, and their large static kernels are dilated instead (dynamic kernels and
            3x3 convolutions are not).
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.

    Attributes:
        overview_index: Place of the Overview-Net's map in `feature_info`, None where the model
            has no Overview-Net. Only a model that has an overview declares this attribute; whoever
            treats such models in a way of their own asks for it, never for a class or a count.

    Raises:
        ConfigError: One of the given switches would do nothing beside the others.
    """

    overview_index: int | None

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        *,
        dims: tuple[int, int, int, int] = (64, 128, 256, 512),
        depths: tuple[int, int, int, int] = (4, 4, 6, 2),
        focus_depths: tuple[int, int] = (12, 2),
        num_heads: tuple[int, int] = (4, 8),
        kernel_sizes: tuple[int, int, int, int] = (17, 15, 13, 7),
        stem_stride: StemStride = 4,
        mlp_ratio: float = 4,
        focus_mlp_ratio: float = 3,
        head_hidden_size: int = 1024,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        overview_head: bool = False,
        dds: bool = True,
        mixer: Mixer = "contmix",
        gate: bool = True,
        feature_guidance: bool = True,
        kernel_guidance: bool = True,
        context_update: bool = True,
        context_source: ContextSource = "own",
        small_kernel: int | tuple[int, int] | None = 5,
        context_grid: int = 7,
        overview: Overview = "static",
        overview_memory_dim: int | None = None,
        overview_chunk_size: int = 7,
        overview_scan: Scan = "whole",
        output_stride: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        if stem_stride not in get_args(StemStride):
            raise ConfigError(f"stem_stride is {stem_stride!r}; expected 1, 2 or 4")
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride is {output_stride!r}; expected 8, 16 or 32")
        for name, value, length in (
            ("dims", dims, 4),
            ("depths", depths, 4),
            ("kernel_sizes", kernel_sizes, 4),
            ("focus_depths", focus_depths, 2),
            ("num_heads", num_heads, 2),
            *((("small_kernel", small_kernel, 2),) if isinstance(small_kernel, Sequence) else ()),
        ):
            if len(value) != length:
                raise ConfigError(f"{name} is {list(value)}; expected {length} numbers")
        check_switches(
            dds=dds,
            mixer=mixer,
            feature_guidance=feature_guidance,
            kernel_guidance=kernel_guidance,
            context_update=context_update,
            context_source=context_source,
            small_kernel=small_kernel,
            context_grid=context_grid,
        )
        check_overview(
            overview,
            dds and context_source == "zero",
            [
                f"{name}={value!r}"
                for name, value, default in (
                    ("overview_memory_dim", overview_memory_dim, None),
                    ("overview_chunk_size", overview_chunk_size, 7),
                    ("overview_scan", overview_scan, "whole"),
                )
                if value != default
            ],
        )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.dds = dds
        self.context_source = context_source
        context_dim = dims[3] // 4 if dds else 0
        self.split = [dims[2], context_dim]

        blocks = [*depths, *focus_depths]
        last = max(sum(blocks) - 1, 1)
        ramp = iter([drop_path_rate * index / last for index in range(sum(blocks))])
        # The plain pyramid meets its static blocks at H/32 after the dynamic ones at H/16.
        order = (0, 1, 2, 3, 4, 5) if dds else (0, 1, 2, 4, 3, 5)
        rates = {stage: list(islice(ramp, blocks[stage])) for stage in order}

        reductions = [min(stem_stride * 2**stage, output_stride) for stage in range(4)]
        strides = [stem_stride, *(b // a for a, b in pairwise(reductions))]
        dilations = [stem_stride * 2**stage // reductions[stage] for stage in range(4)]
        half = dims[0] // 2
        self.stem = nn.Sequential(
            ConvNorm(in_chans, half, 3, stride=2 if stem_stride > 1 else 1, **dd),
            GELU(),
            ConvNorm(half, half, 3, **dd),
            GELU(),
            ConvNorm(half, dims[0], 3, stride=2 if stem_stride > 2 else 1, **dd),
            GELU(),
            ConvNorm(dims[0], dims[0], 3, **dd),
        )
        memory = {
            "memory_dim": overview_memory_dim or dims[3] // 4,
            "memory_options": {
                "chunk_size": overview_chunk_size,
                "scan": overview_scan,
                "label": "neural memory of the overview",
            },
        }
        static = [
            StaticStage(
                dims[stage - 1] if stage else None,
                dims[stage],
                rates[stage],
                kernel_size=kernel_sizes[stage],
                mlp_ratio=mlp_ratio,
                layer_scale=stage >= 2,
                memory=memory if stage == 3 and overview == "memory" else None,
                stride=strides[stage],
                dilation=dilations[stage],
                **dd,
            )
            for stage in range(4)
        ]
        # Without the decomposition the stage at H/32 is one of the pyramid.
        self.base = nn.ModuleList(static[:3] if dds else static)
        guided = dds and context_source != "zero"
        self.overview = static[3] if guided else None
        self.context_proj = nn.Conv2d(dims[3], context_dim, 1, **dd) if guided else None
        self.context_prior_tap = Tap()
        focus_args: dict[str, Any] = dict(
            mlp_ratio=focus_mlp_ratio,
            mixer=mixer,
            gate=gate,
            feature_guidance=feature_guidance,
            kernel_guidance=kernel_guidance,
            context_update=context_update,
            context_grid=context_grid,
            **dd,
        )
        small_kernels = (
            tuple(small_kernel) if isinstance(small_kernel, Sequence) else (small_kernel,) * 2
        )
        self.focus = nn.ModuleList(
            FocusStage(
                (dims[2], context_dim) if dds and index else None,
                dims[2 + index],
                context_dim,
                rates[4 + index],
                kernel_size=kernel_sizes[2 + index],
                num_heads=num_heads[index],
                stride=strides[2 + index],
                dilation=dilations[2 + index],
                small_kernel=small_kernels[index],
                blend_prior=guided,
                blend_first=index > 0,
                **focus_args,
            )
            for index in range(2)
        )
        self.feature_info: list[dict[str, Any]] = [
            dict(num_chs=dims[0], reduction=reductions[0], module="base.0"),
            dict(num_chs=dims[1], reduction=reductions[1], module="base.1"),
            dict(num_chs=dims[2] + context_dim, reduction=reductions[2], module="focus.0"),
            dict(num_chs=dims[3] + context_dim, reduction=reductions[3], module="focus.1"),
        ]
        self.overview_index = None
        if self.overview is not None:
            self.overview_index = len(self.feature_info)
            self.feature_info.append(
                dict(num_chs=dims[3], reduction=reductions[3], module="overview")
            )
        # The last map has at least one pixel.
        self.smallest_input = reductions[3]
        # What `forward_features` returns; pruning may leave an earlier one.
        self.final_index = 3
        self.num_features = dims[3] + context_dim
        self.head_hidden_size = head_hidden_size
        self.apply(init_weights)
        for module in self.modules():
            if isinstance(module, NeuralMemory):
                module.reset_parameters()
        self.head: nn.Module = ClassifierHead(
            self.num_features, head_hidden_size, num_classes, global_pool, drop_rate, **dd
        )
        self.head.apply(init_weights)
        self.overview_head: OverviewHead | None = None
        if overview_head:
            self.add_overview_head()

    def add_overview_head(self) -> None:
        """Add the auxiliary classifier of the overview, with new weights.

        Raises:
            ConfigError: The model was built without Overview-Net.
        """
        if self.overview_index is None:
            raise ConfigError(
                "overview_head=True needs dds=True and a context_source other than 'zero': else "
                "there is no Overview-Net"
            )
        channels = self.feature_info[self.overview_index]["num_chs"]
        like = next(self.parameters())
        self.overview_head = OverviewHead(
            channels, self.num_classes, device=like.device, dtype=like.dtype
        )
        self.overview_head.apply(init_weights)
        self.overview_head.train(self.training)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters by depth, for layer-wise learning rates."""
        # Only the plain pyramid has a fourth base stage; it lies between the two of Focus-Net.
        if coarse:
            return dict(
                stem=r"^stem",
                base=r"^base\.([012])\.",
                overview=r"^(?:overview\.|context_proj)",
                focus=r"^focus\.0",
                deep=r"^base\.3",
                focus_deep=r"^focus\.1",
            )
        return dict(
            stem=r"^stem",
            base=[
                (r"^base\.([012])\.downsample", (0,)),
                (r"^base\.([012])\.blocks\.(\d+)", None),
            ],
            overview=[
                (r"^overview\.downsample", (0,)),
                (r"^overview\.blocks\.(\d+)", None),
                (r"^context_proj", (99999,)),
            ],
            focus=r"^focus\.0\.blocks\.(\d+)",
            deep=[
                (r"^base\.3\.downsample", (0,)),
                (r"^base\.3\.blocks\.(\d+)", None),
            ],
            focus_deep=[
                (r"^focus\.1\.(?:context_)?downsample", (0,)),
                (r"^focus\.1\.blocks\.(\d+)", None),
            ],
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them."""
        for stage in (*self.base, self.overview, *self.focus):
            if isinstance(stage, StaticStage | FocusStage):
                stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the linear classifier."""
        assert isinstance(self.head, ClassifierHead)
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier, the auxiliary one too, and the pooling unless None."""
        self.num_classes = num_classes
        assert isinstance(self.head, ClassifierHead)
        self.head.reset(num_classes, global_pool)
        if self.overview_head is not None:
            norm = self.overview_head.norm
            self.overview_head.fc = new_classifier(norm.num_features, num_classes, norm.weight)
            self.overview_head.fc.train(self.training)

    def _maps(self, x: Tensor, wanted: Sequence[int]) -> dict[int, Tensor]:
        """Return maps by their index in `feature_info`, the wanted ones among them."""
        x = require_size(x, self.smallest_input, "OverLoCK")
        maps: dict[int, Tensor] = {}
        x = self.stem(x)
        for index, stage in enumerate(self.base[:3]):
            x = stage(x)
            if index < 2:
                maps[index] = x
                if index == max(wanted):
                    return maps
        focused = 2 in wanted or 3 in wanted
        prior = None
        guided = focused and self.context_proj is not None
        if self.overview is not None and (guided or 4 in wanted):
            maps[4] = self.overview(x)
        if focused and self.dds:
            prior = self._context_prior(x, maps.get(4))
        if focused:
            maps[2] = self.focus[0](x, prior)
        if 3 in wanted:
            maps[3] = self.focus[1](maps[2] if self.dds else self.base[3](maps[2]), prior)
        return maps

    def _context_prior(self, x: Tensor, overview: Tensor | None) -> Tensor:
        """Return what guides Focus-Net, (B, C4/4, h, w), of Base-Net's and Overview-Net's maps."""
        if self.context_proj is None or overview is None:
            return x.new_zeros(x.shape[0], self.split[1], 1, 1)
        prior = self.context_prior_tap(self.context_proj(overview))
        return roll_batch(prior) if self.context_source == "shuffled" else prior

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,  # noqa: ARG002 (timm's signature)
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return maps along the way, as timm's models do.

        Args:
            x: (B, in_chans, H, W).
            indices: Places in `feature_info`: H/4, H/8, H/16, H/32 and, as the fifth, the
                Overview-Net's output; an int takes that many of the last, None takes all.
            norm: There is no final norm; accepted for timm.
            stop_early: Whether to compute nothing beyond what the maps need.
            output_fmt: "NCHW".
            intermediates_only: Whether to leave the final features out.

        Returns:
            The maps, or (final features, maps).
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}; expected 'NCHW'")
        take, _ = feature_take_indices(len(self.feature_info), indices)
        final = last_of(take) if stop_early else self.final_index
        maps = self._maps(x, take if intermediates_only else [*take, final])
        taken = [maps[index] for index in take]
        return taken if intermediates_only else (maps[final], taken)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,  # noqa: ARG002 (timm's signature)
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the maps at `indices` do not need; return the indices, none negative."""
        take, _ = feature_take_indices(len(self.feature_info), indices)
        if not prune_head and max(take) >= 3:
            return list(take)  # the head needs all there is
        self.final_index = last_of(take)
        self.num_features = self.head_hidden_size = self.feature_info[self.final_index]["num_chs"]
        self.num_classes = 0
        self.head = nn.Identity()
        self.overview_head = None
        self.base = self.base[: 4 if 3 in take else min(max(take) + 1, 3)]
        self.focus = self.focus[: 2 if 3 in take else 1 if 2 in take else 0]
        if len(self.focus) == 0:
            self.context_proj = None
        if 4 not in take and self.context_proj is None:
            self.overview = None
        return list(take)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to (B, num_features, H/32, W/32)."""
        return self._maps(x, [self.final_index])[self.final_index]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map `forward_features`' output to logits, or to what the classifier sees."""
        return x if isinstance(self.head, nn.Identity) else self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_chans, H, W) to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_overview(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, in_chans, H, W) to the logits and the Overview-Net's logits in one pass.

        Raises:
            ValueError: The model was built without `overview_head`.
        """
        if self.overview_head is None:
            raise ValueError("the model has no auxiliary head; build it with overview_head=True")
        maps = self._maps(x, [3, 4])
        return self.forward_head(maps[3]), self.overview_head(maps[4])


# The release's names of parts -> ours.
_NETWORK_NAMES = (
    ("patch_embed1.0", "stem.0.conv"),
    ("patch_embed1.1", "stem.0.norm"),
    ("patch_embed1.3", "stem.2.conv"),
    ("patch_embed1.4", "stem.2.norm"),
    ("patch_embed1.6", "stem.4.conv"),
    ("patch_embed1.7", "stem.4.norm"),
    ("patch_embed1.9", "stem.6.conv"),
    ("patch_embed1.10", "stem.6.norm"),
    ("patch_embed2.0", "base.1.downsample.conv"),
    ("patch_embed2.1", "base.1.downsample.norm"),
    ("patch_embed3.0", "base.2.downsample.conv"),
    ("patch_embed3.1", "base.2.downsample.norm"),
    ("patch_embed4.0", "overview.downsample.conv"),
    ("patch_embed4.1", "overview.downsample.norm"),
    ("high_level_proj", "context_proj"),
    ("patch_embedx.x_proj.0", "focus.1.downsample.conv"),
    ("patch_embedx.x_proj.1", "focus.1.downsample.norm"),
    ("patch_embedx.h_proj.0", "focus.1.context_downsample.conv"),
    ("patch_embedx.h_proj.1", "focus.1.context_downsample.norm"),
    ("head.0", "head.conv.conv"),
    ("head.1", "head.conv.norm"),
    ("head.4", "head.fc"),
    ("aux_head.0", "overview_head.norm"),
    ("aux_head.2", "overview_head.fc"),
)
_STAGE_NAMES = {
    "blocks1": "base.0.blocks",
    "blocks2": "base.1.blocks",
    "blocks3": "base.2.blocks",
    "blocks4": "overview.blocks",
    "sub_blocks3": "focus.0.blocks",
    "sub_blocks4": "focus.1.blocks",
}
_STATIC_NAMES = (
    ("dwconv", "position.conv"),
    ("proj.0", "norm"),
    ("proj.1", "spatial"),
    ("proj.2", "spatial.norm"),
    ("proj.3.proj.1", "se.fc1"),
    ("proj.3.proj.3", "se.fc2"),
    ("proj.4", "mlp.fc1"),
    ("proj.6", "mlp.depthwise.conv"),
    ("proj.7", "mlp.grn"),
    ("proj.8", "mlp.fc2"),
    ("ls", "scale"),
)
_DYNAMIC_NAMES = (
    ("rpb1", "mixer.small_bias"),
    ("rpb2", "mixer.large_bias"),
    ("x_scale", "context_scale"),
    ("h_scale", "prior_scale"),
    ("dwconv1", "position.conv"),
    ("norm1", "norm1"),
    ("fusion.0", "value.0.conv"),
    ("fusion.1", "value.0.norm"),
    ("fusion.3", "value.2"),
    ("fusion.4", "value.3"),
    ("weight_query.0", "mixer.query.conv"),
    ("weight_query.1", "mixer.query.norm"),
    ("weight_key.1", "mixer.key.conv"),
    ("weight_key.2", "mixer.key.norm"),
    ("weight_proj", "mixer.kernel_map"),
    ("dyconv_proj.0", "mixer.proj.conv"),
    ("dyconv_proj.1", "mixer.proj.norm"),
    ("lepe.0", "local"),
    ("lepe.1", "local.norm"),
    ("se_layer.proj.1", "se.fc1"),
    ("se_layer.proj.3", "se.fc2"),
    ("gate.0", "gate.0.conv"),
    ("gate.1", "gate.0.norm"),
    ("proj.0", "proj.norm"),
    ("proj.1", "proj.conv"),
    ("dwconv2", "position2.conv"),
    ("norm2", "norm2"),
    ("mlp.0", "mlp.fc1"),
    ("mlp.2", "mlp.depthwise.conv"),
    ("mlp.3", "mlp.grn"),
    ("mlp.4", "mlp.fc2"),
    ("ls1", "scale1"),
    ("ls2", "scale2"),
)


def _rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """Replace the longest leading part of `name` that the table knows."""
    for old, new in sorted(table, key=lambda row: -len(row[0])):
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name


def _our_name(name: str, kernel_sizes: dict[str, int]) -> str:
    """Return our key for a key of the release; an unknown one comes back as it is."""
    stage, _, rest = name.partition(".")
    ours = _STAGE_NAMES.get(stage)
    if ours is None:
        return _rename(name, _NETWORK_NAMES)
    index, _, rest = rest.partition(".")
    rest = _rename(rest, _DYNAMIC_NAMES if stage.startswith("sub_") else _STATIC_NAMES)
    rest = rest.replace(".lk_origin.", ".large.conv.").replace(".origin_bn.", ".large.norm.")
    branch = re.search(r"\.dil_(conv|bn)_k(\d+)_(\d+)\.", rest)
    if branch:
        kind = "conv" if branch[1] == "conv" else "norm"
        place = BRANCHES[kernel_sizes[stage]].index((int(branch[2]), int(branch[3])))
        rest = rest.replace(branch[0], f".branches.{place}.{kind}.")
    return f"{ours}.{index}.{rest}"


def _spread_merged_kernels(out: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Put merged kernels into the large ones, with norms that do nothing and silent branches.

    Args:
        out: The state dict by our names; it is completed in place.
        own: The model's state dict.
    """
    merged = [
        name.removesuffix(".large.conv.bias") for name in out if name.endswith(".large.conv.bias")
    ]
    for prefix in merged:
        bias = out.pop(f"{prefix}.large.conv.bias")
        for name in own:
            if not name.startswith(f"{prefix}.") or name in out:
                continue
            if name.endswith("norm.weight") and ".branches." in name:
                out[name] = torch.zeros_like(own[name])
            elif name.endswith(".large.norm.bias"):
                out[name] = bias
            elif name.endswith("norm.weight"):
                # The factor that BatchNorm divides by with variance one.
                out[name] = torch.full_like(own[name], (1 + 1e-5) ** 0.5)
            elif name.endswith("running_var"):
                out[name] = torch.ones_like(own[name])
            elif ".conv." in name:
                out[name] = own[name]
            else:
                out[name] = torch.zeros_like(own[name])


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Turn a state dict of the authors' release, in either of its forms, into one of ours.

    The reparameterised form has one kernel with a bias where the training form has branches. It
    goes to the large kernel, with BatchNorms that do nothing in evaluation mode and silent
    branches. (In training mode those BatchNorms use batch statistics that the file does not have:
    to train on, take the release's other form.)

    Args:
        state_dict: Weights by the release's names, or by ours already.
        model: The `OverLoCK` to be filled.

    Returns:
        By our names, in the shapes of `model` where only the layout differs. The auxiliary
        head is left out where the model has none, and left as the model has it where the file
        has none or one of other classes.
    """
    own = model.state_dict()
    kernels = {
        name.split(".")[0]: value.shape[-1]
        for name, value in state_dict.items()
        if name.endswith("lk_origin.weight")
    }
    ours = any(name.startswith(("base.", "focus.")) for name in state_dict)
    out = {name if ours else _our_name(name, kernels): state_dict[name] for name in state_dict}
    _spread_merged_kernels(out, own)
    for name, value in out.items():
        if name in own and own[name].shape != value.shape and own[name].numel() == value.numel():
            out[name] = value.reshape(own[name].shape)
    for name in [name for name in (*own, *out) if name.startswith("overview_head.")]:
        if name not in own:
            out.pop(name, None)
        elif name not in out or out[name].shape != own[name].shape:
            out[name] = own[name]
    return out


_RELEASE = "https://github.com/LMMMEng/OverLoCK/releases/download/v1"


def _cfg(url: str = "", **changes: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2502.20087",
        "paper_name": "OverLoCK: An Overview-first-Look-Closely-next ConvNet with "
        "Context-Mixing Dynamic Kernels",
        "origin_url": "https://github.com/LMMMEng/OverLoCK",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    {
        "test_overlock.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "overlock_nano.untrained": _cfg(input_size=(3, 48, 48), pool_size=(3, 3)),
        "overlock_xxt.untrained": _cfg(),
        "overlock_xt.in1k": _cfg(f"{_RELEASE}/overlock_xt_in1k_224.pth", crop_pct=0.925),
        "overlock_t.in1k": _cfg(f"{_RELEASE}/overlock_t_in1k_224.pth", crop_pct=0.95),
        "overlock_s.in1k": _cfg(f"{_RELEASE}/overlock_s_in1k_224.pth", crop_pct=0.95),
        "overlock_b.in1k": _cfg(f"{_RELEASE}/overlock_b_in1k_224.pth", crop_pct=0.975),
    }
)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> OverLoCK:
    if kwargs.get("mixer") == "static":
        # A variant's sizes of a part are not the user's wish for that part.
        sizes = {k: v for k, v in sizes.items() if k not in ("small_kernel", "context_grid")}
    if kwargs.get("overview") != "memory":
        sizes.pop("overview_chunk_size", None)
    return build_model_with_cfg(
        OverLoCK,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
        **{**sizes, **kwargs},
    )


@register_model
def test_overlock(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """Smallest OverLoCK with every part of the others; for unit tests."""
    return _create(
        "test_overlock",
        pretrained,
        kwargs,
        dims=(8, 16, 24, 32),
        depths=(1, 1, 1, 1),
        focus_depths=(2, 2),
        num_heads=(1, 2),
        kernel_sizes=(9, 7, 7, 7),
        mlp_ratio=2,
        focus_mlp_ratio=2,
        head_hidden_size=32,
    )


@register_model
def overlock_nano(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-Nano for images of 48 pixels and more: .25 M parameters, 9.6 M multiply-adds.

    A miniature in the paper's proportions (ours; the paper has no such size). At 48 pixels the
    maps have 24, 12, 6 and 3 pixels a side, so the large window is 5 of 6 and 3 of 3 pixels (13 of
    14 and 7 of 7 in the paper at 224), no map is resized for ContMix, and the overview is 3x3.
    For 28 and 32 pixels take `stem_stride=1, dims=(12, 24, 48, 64), kernel_sizes=(7, 7, 7, 3),
    context_grid=4`: maps of 32, 16, 8 and 4, or 28, 14, 7 and 4 pixels, and at 32 pixels 13 M
    multiply-adds.
    """
    return _create(
        "overlock_nano",
        pretrained,
        kwargs,
        dims=(16, 32, 48, 64),
        depths=(1, 1, 1, 1),
        focus_depths=(2, 1),
        num_heads=(2, 4),
        kernel_sizes=(7, 7, 5, 3),
        stem_stride=2,
        mlp_ratio=2,
        focus_mlp_ratio=2,
        head_hidden_size=128,
        small_kernel=(3, 0),
        context_grid=3,
        overview_chunk_size=3,
    )


@register_model
def overlock_xxt(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-XXT, 1.2 M parameters with 10 classes: a community size for small data and CPUs."""
    return _create(
        "overlock_xxt",
        pretrained,
        kwargs,
        dims=(24, 48, 96, 128),
        depths=(1, 1, 2, 1),
        focus_depths=(3, 1),
        num_heads=(1, 2),
        kernel_sizes=(13, 11, 9, 7),
        mlp_ratio=2,
        focus_mlp_ratio=2,
        head_hidden_size=256,
    )


@register_model
def overlock_xt(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-XT, 16.5 M parameters in its inference form."""
    return _create(
        "overlock_xt",
        pretrained,
        kwargs,
        dims=(56, 112, 256, 336),
        depths=(2, 2, 3, 2),
        focus_depths=(6, 2),
        num_heads=(4, 6),
    )


@register_model
def overlock_t(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-T, 33.5 M parameters in its inference form."""
    return _create("overlock_t", pretrained, kwargs)


@register_model
def overlock_s(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-S, 56.2 M parameters in its inference form."""
    return _create(
        "overlock_s",
        pretrained,
        kwargs,
        dims=(64, 128, 320, 512),
        depths=(6, 6, 8, 3),
        focus_depths=(16, 3),
        num_heads=(8, 16),
    )


@register_model
def overlock_b(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-B, 94.9 M parameters in its inference form."""
    return _create(
        "overlock_b",
        pretrained,
        kwargs,
        dims=(80, 160, 384, 576),
        depths=(8, 8, 10, 4),
        focus_depths=(20, 4),
        num_heads=(6, 9),
    )
