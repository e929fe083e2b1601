"""ConvNeur: a re-implementation from the paper with reconstructed dimensions.

"Efficiency Follows Global-Local Decoupling" (Yang et al., CVPR 2026, arXiv 2603.19567). No code or
weights of it were published; widths, depths and the make-up of the branches are reconstructed by
arithmetic from the sizes that the paper prints (`published_table` puts ours beside them).

Every block has a locality-preserving branch, F_loc (a ConvNeXt block: large depthwise convolution,
norm, channel mixing). At the start of every stage a global branch reads the map from a neural
memory that it writes chunk by chunk, G, and gates the local branch:
F_out = X + DropPath(sigmoid(G) * F_loc).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import (
    DropPath,
    LayerNorm2d,
    Mlp,
    NormMlpClassifierHead,
    create_conv2d,
    trunc_normal_,
)
from timm.layers.cbam import CbamModule
from timm.models import (
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_overlock.errors import ConfigError
from lightning_overlock.layers.contmix import ContMix
from lightning_overlock.layers.depthwise_conv import DepthwiseConv
from lightning_overlock.layers.neural_memory import NeuralMemory, ReadoutSource, Scan, Write
from lightning_overlock.layers.shapes import require_size
from lightning_overlock.layers.tap import Tap

Placement = Literal["none", "stage", "block"]
Operator = Literal["memory", "linear_attention", "self_attention", "non_local", "cbam"]
Fusion = Literal["gate", "add", "concat", "none"]
LocalMixer = Literal["conv", "contmix"]

STAGES = 4
PatchSize = Literal[1, 2, 4]


@register_notrace_module
class MapAttention(nn.Module):
    """Attention among all pixels of a map, with a residual: the memory's quadratic alternative.

    Args:
        dim: D.
        heads: Number of attention heads.
        head_dim: Width of a head. One head of half the width is the non-local block of Wang et
            al. (CVPR 2018, embedded Gaussian).
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, **dd: Any) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(dim, **dd)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim, bias=False, **dd)
        self.proj = nn.Linear(heads * head_dim, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) to (B, D, H, W)."""
        tokens = self.norm(x.flatten(2).mT.to(self.norm.weight.dtype))
        qkv = self.qkv(tokens).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj(mixed).mT.reshape(x.shape)


@register_notrace_module
class LinearAttention(nn.Module):
    """Linear attention among all pixels of a map, with a residual: a memory without an error.

    One matrix per image, the sum of phi(k) v^T over all tokens, is read with phi(q) and
    normalised; phi(x) = elu(x) + 1 (Katharopoulos et al., ICML 2020, arXiv 2006.16236). One head of
    the whole width, as the neural memory has; what it writes depends on no other token, and every
    token reads all of it.

    Args:
        dim: D.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(self, dim: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, **dd)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False, **dd)
        self.proj = nn.Linear(dim, dim, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, D, H, W) to (B, D, H, W)."""
        tokens = self.norm(x.flatten(2).mT.to(self.norm.weight.dtype))
        q, k, v = self.qkv(tokens).chunk(3, dim=-1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        # A mean instead of a sum changes nothing and does not overflow in half precision.
        read = q @ (k.mT @ (v / v.shape[1]))
        weight = (q * k.mean(1, keepdim=True)).sum(-1, keepdim=True)
        return x + self.proj(read / weight).mT.reshape(x.shape)


class GlobalBranch(nn.Module):
    """1x1 to the memory's width, one operator that sees the whole map, 1x1 back: G.

    Taps: "read_out", G (B, C, H, W).

    Args:
        dim: C.
        memory_dim: C_m.
        operator: The module that looks at the whole map, (B, C, H, W) to (B, C, H, W).
        memory_options: Arguments of `NeuralMemory`, for that operator.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        dim: int,
        memory_dim: int,
        operator: Operator,
        memory_options: dict[str, Any],
        **dd: Any,
    ) -> None:
        super().__init__()
        self.compress = nn.Conv2d(dim, memory_dim, 1, **dd)
        self.operator: nn.Module
        if operator == "memory":
            self.operator = NeuralMemory(memory_dim, **memory_options, **dd)
        elif operator == "linear_attention":
            self.operator = LinearAttention(memory_dim, **dd)
        elif operator == "self_attention":
            self.operator = MapAttention(memory_dim, heads=memory_dim // 16, head_dim=16, **dd)
        elif operator == "non_local":
            self.operator = MapAttention(memory_dim, heads=1, head_dim=memory_dim // 2, **dd)
        else:
            self.operator = CbamModule(memory_dim, **dd)
        self.expand = nn.Conv2d(memory_dim, dim, 1, **dd)
        self.read_out_tap = Tap()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to G (B, C, H, W)."""
        return self.read_out_tap(self.expand(self.operator(self.compress(x))))


class Block(nn.Module):
    """A ConvNeXt block whose branch is modulated by a global read-out.

    Taps: "local", F_loc (B, C, H, W); "gate", sigmoid(G) (B, C, H, W), with fusion "gate".

    Args:
        dim: C.
        kernel_size: K of the depthwise convolution or of ContMix.
        mlp_ratio: Hidden width of the channel mixing over C.
        drop_path: Probability of leaving the branch out.
        layer_scale: Initial factor of the branch, per channel and learned; 0 for no factor.
        fusion: How G meets F_loc; None if this block gets no G.
        global_branch: The block's own global branch, or None.
        contmix: `num_heads` and `context_grid` of a ContMix whose context is G, in place of the
            depthwise convolution; None keeps the convolution.
        dilation: Pixels between the taps of the depthwise convolution; ContMix takes 1 only.
        dd: `device` and `dtype` of the parameters.
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int,
        mlp_ratio: float,
        drop_path: float,
        layer_scale: float,
        fusion: Fusion | None,
        global_branch: GlobalBranch | None,
        contmix: dict[str, Any] | None,
        dilation: int = 1,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.fusion = fusion
        self.global_branch = global_branch
        self.guided = contmix is not None
        self.conv: nn.Module = (
            DepthwiseConv(dim, kernel_size, dilation=dilation, **dd)
            if contmix is None
            else ContMix(dim, dim, kernel_size=kernel_size, small_kernel=None, **contmix, **dd)
        )
        self.norm = LayerNorm2d(dim, **dd)
        self.mlp = Mlp(dim, int(mlp_ratio * dim), use_conv=True, **dd)
        self.local_tap = Tap()
        if fusion == "gate":
            self.gate_tap = Tap()
        if fusion == "concat":
            # Not `fuse`: timm would take it for the method that makes the inference form.
            self.merge = nn.Conv2d(2 * dim, dim, 1, **dd)
        self.layer_scale = (
            nn.Parameter(torch.full((dim, 1, 1), layer_scale, **dd)) if layer_scale else None
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, read_out: Tensor | None = None) -> Tensor:
        """Map (B, C, H, W), and G of its stage if it is for this block, to (B, C, H, W)."""
        if self.global_branch is not None:
            read_out = self.global_branch(x)
        mixed = self.conv(x, read_out) if self.guided else self.conv(x)
        local = self.local_tap(self.mlp(self.norm(mixed)))
        if read_out is None or self.fusion == "none":
            branch = local
        elif self.fusion == "gate":
            branch = self.gate_tap(read_out.sigmoid()) * local
        elif self.fusion == "add":
            branch = local + read_out
        else:
            branch = self.merge(torch.cat((local, read_out), 1))
        if self.layer_scale is not None:
            branch = branch * self.layer_scale
        return x + self.drop_path(branch)


class Stage(nn.Module):
    """Downsampling, the stage's global branch if there is one, and blocks.

    Args:
        downsample: Brings the map of the stage before to this one's size and width.
        global_branch: The global branch at the start of the stage, or None.
        blocks: The stage's blocks, first to last.
        reuse_global: Whether G reaches every block or the first only.
    """

    def __init__(
        self,
        downsample: nn.Module,
        global_branch: GlobalBranch | None,
        blocks: Sequence[Block],
        reuse_global: bool,
    ) -> None:
        super().__init__()
        self.reuse_global = reuse_global
        self.grad_checkpointing = False
        self.downsample = downsample
        self.global_branch = global_branch
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C, H', W')."""
        x = self.downsample(x)
        read_out = None if self.global_branch is None else self.global_branch(x)
        for i, block in enumerate(self.blocks):
            here = read_out if i == 0 or self.reuse_global else None
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, here)
            else:
                x = block(x, here)
        return x


class ConvNeur(nn.Module):
    """ConvNeur, a re-implementation from the paper with reconstructed dimensions.

    The arguments from `global_placement` on are the paper's ideas; their defaults are its setting
    where it is known.

    Args:
        num_classes: Width of the classifier; 0 for none.
        in_chans: Channels of the image.
        global_pool: timm's pooling type of the head.
        dims: Channels of the four stages.
        depths: Blocks of the four stages.
        kernel_size: K of the depthwise convolutions, odd, one number or one per stage.
        patch_size: Side of the patches that the first layer cuts the image into, and so pixels of
            the image per pixel of the first map; 2 and 1 are for small images.
        mlp_ratio: Hidden width of the channel mixing over the stage's width.
        layer_scale: Initial value of the branches' learned factors; 0 for no factors.
        init_std: Standard deviation of the initial weights of convolutions and linear layers but
            those of the memory. .02 is ConvNeXt's, for widths in the hundreds; in a narrow network
            branches and gates then start so near to nothing that a short training does not open
            them.
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; earlier ones rise linearly to it.
        global_placement: A global branch in no stage, at the start of each "stage", or in every
            "block".
        global_operator: What the global branch looks with: the neural "memory",
            "linear_attention" (one head, over the whole map), "self_attention" (heads of 16), a
            "non_local" block or "cbam" (whose batch norm cannot train on one image of less than
            64 pixels).
        fusion: How G modulates F_loc: "gate", sigmoid(G) * F_loc; "add"; "concat" and a 1x1; or
            "none", where G is the context of ContMix and nothing else.
        reuse_global: With placement "stage", whether G reaches all blocks of the stage or the
            first only. The paper does not say; the first only is what its figures for
            concatenation imply (.697 M parameters and .1 G more are one 1x1 per stage).
        memory_dim: C_m, width of the global branch; None is twice the first stage's width.
        chunk_size: Tokens of a chunk, one number or one per stage. Only the memory has chunks.
        min_chunks: Least number of chunks a map is cut into; 1 is the paper to the letter, where
            stages of one chunk read the initial memory and train nothing that writes it. A
            single token (H/32 of a 32 pixel image) is written before it is read.
        segment_chunks: Chunks whose gradients are taken at the same weights, or "all".
        max_step: Largest step of a token; None is the largest stable one, see
            `layers.neural_memory.largest_step`.
        momentum: Whether the memory has momentum.
        decay: Whether the memory has decay.
        memory_depth: Layers of the memory, 1 to 3.
        scan: Order of writing and reading: "raster", "bidirectional", "whole", or, as a control,
            "shuffled", a permutation that is the same for all maps of a size.
        memory_write: "descent" on the memory's error, or a control: "ascent" of the same size, or
            "none" for a memory that is read and never written. Compare ascent and descent with
            `segment_chunks="all"`: where one chunk's gradient sees the steps of those before it,
            ascent grows exponentially.
        readout_from: What the memory is read with: the tokens' own "query" or, as a control, the
            "key" that they are written under.
        eval_chunk_size: Tokens of a chunk in evaluation, one number or one per stage; None takes
            `chunk_size`. Weights do not depend on it.
        local_mixer: "conv", the depthwise convolution, or "contmix": in the blocks that get a
            read-out its place is taken by OverLoCK's dynamic convolution of the same K, with the
            read-out as context (ours, no paper has it). A map smaller than K is resized for it.
        contmix_heads: Heads of that ContMix, one number or one per stage; a stage's width must be
            a multiple of four times as many.
        contmix_grid: Side of the pooled context of that ContMix.
        output_stride: 32, or 16 or 8 for dense prediction: maps of a larger stride keep the size
            at that one, and their convolutions are dilated instead.
        device: Device that the parameters are made on; None is torch's default.
        dtype: Floating-point type of the parameters; None is torch's default.

    Raises:
        ConfigError: A value is unknown or impossible, or a combination makes no sense.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        *,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        kernel_size: int | Sequence[int] = 7,
        patch_size: PatchSize = 4,
        mlp_ratio: float = 4.0,
        layer_scale: float = 1e-6,
        init_std: float = 0.02,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_placement: Placement = "stage",
        global_operator: Operator = "memory",
        fusion: Fusion = "gate",
        reuse_global: bool = False,
        memory_dim: int | None = None,
        chunk_size: int | Sequence[int] = 196,
        min_chunks: int = 2,
        segment_chunks: int | Literal["all"] = 1,
        max_step: float | None = None,
        momentum: bool = True,
        decay: bool = True,
        memory_depth: int = 2,
        scan: Scan = "raster",
        memory_write: Write = "descent",
        readout_from: ReadoutSource = "query",
        eval_chunk_size: int | Sequence[int] | None = None,
        local_mixer: LocalMixer = "conv",
        contmix_heads: int | Sequence[int] = 1,
        contmix_grid: int = 7,
        output_stride: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        memory_dim = 2 * dims[0] if memory_dim is None else memory_dim
        kernel_sizes = _per_stage(kernel_size)
        heads = _per_stage(contmix_heads)
        chunk_sizes = _per_stage(chunk_size)
        eval_chunk_sizes = chunk_sizes if eval_chunk_size is None else _per_stage(eval_chunk_size)
        for name, per_stage in (
            ("dims", dims),
            ("depths", depths),
            ("kernel_size", kernel_sizes),
            ("contmix_heads", heads),
            ("chunk_size", chunk_sizes),
            ("eval_chunk_size", eval_chunk_sizes),
        ):
            if len(per_stage) != STAGES or min(per_stage) < 1:
                raise ConfigError(
                    f"{name} needs {STAGES} numbers from 1 on, one per stage, found {per_stage}"
                )
        if any(size % 2 == 0 for size in kernel_sizes):
            raise ConfigError(f"kernel_size must be odd, found {kernel_size}")
        if not 0 < init_std <= 1:
            raise ConfigError(f"init_std must be in (0, 1], found {init_std}")
        if patch_size not in get_args(PatchSize):
            raise ConfigError(f"patch_size must be 1, 2 or 4, found {patch_size!r}")
        if output_stride not in (8, 16, 32):
            raise ConfigError(f"output_stride must be 8, 16 or 32, found {output_stride!r}")
        reductions = [min(patch_size * 2**i, output_stride) for i in range(STAGES)]
        dilations = [patch_size * 2**i // reductions[i] for i in range(STAGES)]
        # What is not at its default and acts on the writing of a memory, and on any memory.
        writing = [
            name
            for name, changed in (
                ("segment_chunks", segment_chunks != 1),
                ("max_step", max_step is not None),
                ("momentum", not momentum),
                ("decay", not decay),
                ("scan", scan != "raster"),
                ("readout_from", readout_from != "query"),
                ("eval_chunk_size", eval_chunk_size is not None),
            )
            if changed
        ]
        remembering = [
            name
            for name, changed in (
                ("memory_depth", memory_depth != 2),
                ("memory_write", memory_write != "descent"),
            )
            if changed
        ]
        _check_ideas(
            global_placement,
            global_operator,
            fusion,
            reuse_global,
            memory_dim,
            memory_write,
            writing,
            remembering,
        )
        _check_local_mixer(
            local_mixer,
            global_placement,
            fusion,
            [
                name
                for name, changed in (
                    ("contmix_heads", contmix_heads != 1),
                    ("contmix_grid", contmix_grid != 7),
                )
                if changed
            ],
        )
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate

        def global_branch(stage: int, place: str) -> GlobalBranch:
            options = {
                "depth": memory_depth,
                "chunk_size": chunk_sizes[stage],
                "min_chunks": min_chunks,
                "segment_chunks": segment_chunks,
                "max_step": max_step,
                "momentum": momentum,
                "decay": decay,
                "scan": scan,
                "write": memory_write,
                "readout_from": readout_from,
                "eval_chunk_size": None if eval_chunk_size is None else eval_chunk_sizes[stage],
                "label": f"neural memory of {place}",
            }
            return GlobalBranch(dims[stage], memory_dim, global_operator, options, **dd)

        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, dims[0], patch_size, patch_size, **dd), LayerNorm2d(dims[0], **dd)
        )
        # The last map has at least one pixel.
        self.smallest_input = reductions[-1]
        self.stages = nn.Sequential()
        self.feature_info = []
        before_last = max(sum(depths) - 1, 1)
        for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
            blocks = []
            for j in range(depth):
                own = global_placement == "block"
                fused = own or (global_placement == "stage" and (j == 0 or reuse_global))
                contmix = {"num_heads": heads[i], "context_grid": contmix_grid}
                blocks.append(
                    Block(
                        dim,
                        kernel_size=kernel_sizes[i],
                        mlp_ratio=mlp_ratio,
                        drop_path=drop_path_rate * (sum(depths[:i]) + j) / before_last,
                        layer_scale=layer_scale,
                        fusion=fusion if fused else None,
                        global_branch=global_branch(i, f"stages.{i}.blocks.{j}") if own else None,
                        contmix=contmix if fused and local_mixer == "contmix" else None,
                        dilation=dilations[i],
                        **dd,
                    )
                )
            downsample = (
                nn.Sequential(
                    LayerNorm2d(dims[i - 1], **dd),
                    _downsampling(dims[i - 1], dim, dilations[i - 1], dilations[i], **dd),
                )
                if i > 0
                else nn.Identity()
            )
            of_stage = global_branch(i, f"stages.{i}") if global_placement == "stage" else None
            self.stages.append(Stage(downsample, of_stage, blocks, reuse_global))
            self.feature_info.append(
                {"num_chs": dim, "reduction": reductions[i], "module": f"stages.{i}"}
            )
        self.num_features = dims[-1]
        self.head = NormMlpClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            norm_layer=LayerNorm2d,
            **dd,
        )
        self.head_hidden_size = self.head.num_features
        self.apply(partial(_init_weights, std=init_std))
        for module in self.modules():
            if isinstance(module, NeuralMemory):
                module.reset_parameters()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters by depth, for layer-wise learning-rate decay."""
        if coarse:
            return {"stem": r"^stem", "blocks": r"^stages\.(\d+)"}
        # Downsampling and the stage's global branch go with its first block.
        first = (r"^stages\.(\d+)\.(?:downsample|global_branch)", (0,))
        return {"stem": r"^stem", "blocks": [first, (r"^stages\.(\d+)\.blocks\.(\d+)", None)]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks in the backward pass (the memory always does so by itself)."""
        for stage in self.modules():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: Classes of the new classifier; 0 removes it.
            global_pool: timm's pooling type; None keeps it.
        """
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps after chosen stages.

        Args:
            x: (B, C_in, H, W).
            indices: Stages; the last n for an integer, all for None.
            norm: Part of timm's interface; there is no norm between the stages and the pool.
            stop_early: Leave out stages after the last one asked for.
            output_fmt: "NCHW".
            intermediates_only: Return only the maps.

        Returns:
            The maps, or the last map computed and the maps.

        Raises:
            ValueError: `output_fmt` is not NCHW, or an image of less than 8 times the patch size.
        """
        del norm
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', found '{output_fmt}'")
        wanted, last = feature_take_indices(len(self.stages), indices)
        maps = []
        x = self._stem(x)
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in wanted:
                maps.append(x)
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the chosen stages do not need.

        Args:
            indices: Stages to keep; the last n for an integer.
            prune_norm: Part of timm's interface; the only norm after the stages is the head's.
            prune_head: Remove the classifier.

        Returns:
            The indices of the stages kept.
        """
        del prune_norm
        wanted, last = feature_take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if cut or prune_head:
            self.reset_classifier(0, "")
            self.head.norm = nn.Identity()
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        return wanted

    def _stem(self, x: Tensor) -> Tensor:
        return self.stem(require_size(x, self.smallest_input, "ConvNeur"))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to the last map (B, C, H/32, W/32)."""
        return self.stages(self._stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last map to logits (B, classes), or to the features before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W), at least 8 patches a side, to logits (B, classes).

        Raises:
            ValueError: The image is smaller than that.
            FloatingPointError: A memory is not finite; says at which stage and chunk (not in
                compiled and exported code).
        """
        return self.forward_head(self.forward_features(x))


def _downsampling(
    in_channels: int, out_channels: int, before: int, after: int, **dd: Any
) -> nn.Module:
    """Return a 2x2 convolution of stride 2; where dilation goes on instead, it keeps the size."""
    if before == after:
        return nn.Conv2d(in_channels, out_channels, 2, 2, **dd)
    return create_conv2d(
        in_channels, out_channels, 2, dilation=before, padding="same", bias=True, **dd
    )


def _per_stage(value: int | Sequence[int]) -> list[int]:
    return [value] * STAGES if isinstance(value, int) else list(value)


def _check_ideas(
    placement: str,
    operator: str,
    fusion: str,
    reuse_global: bool,
    memory_dim: int,
    memory_write: str,
    writing: list[str],
    remembering: list[str],
) -> None:
    """Raise a ConfigError for an unknown value, and for an option that nothing is left for."""
    for name, value, known in (
        ("global_placement", placement, get_args(Placement)),
        ("global_operator", operator, get_args(Operator)),
        ("fusion", fusion, get_args(Fusion)),
        ("memory_write", memory_write, get_args(Write)),
    ):
        if value not in known:
            raise ConfigError(f"{name} must be one of {known}, found {value!r}")
    if placement == "none" and (operator != "memory" or fusion != "gate"):
        raise ConfigError(
            f"global_placement='none' has no global branch for global_operator={operator!r} and "
            f"fusion={fusion!r} to act in"
        )
    if reuse_global and placement != "stage":
        raise ConfigError(
            "reuse_global=True needs global_placement='stage', where blocks share a read-out; "
            f"found {placement!r}"
        )
    if (writing or remembering) and (placement == "none" or operator != "memory"):
        raise ConfigError(
            f"{', '.join(writing + remembering)} change a memory, which "
            f"global_placement={placement!r} with global_operator={operator!r} does not have"
        )
    if writing and memory_write == "none":
        raise ConfigError(
            f"{', '.join(writing)} change how a memory is written and read back, and with "
            "memory_write='none' nothing is written"
        )
    multiple = {"self_attention": 16, "non_local": 2}.get(operator, 1)
    if memory_dim < 1 or memory_dim % multiple:
        raise ConfigError(
            f"memory_dim must be a positive multiple of {multiple} for "
            f"global_operator={operator!r}, found {memory_dim}"
        )


def _check_local_mixer(mixer: str, placement: str, fusion: str, contmix_options: list[str]) -> None:
    """Raise a ConfigError for a local mixer without a read-out and a read-out without a use."""
    if mixer not in get_args(LocalMixer):
        raise ConfigError(f"local_mixer must be one of {get_args(LocalMixer)}, found {mixer!r}")
    if mixer == "contmix" and placement == "none":
        raise ConfigError(
            "local_mixer='contmix' takes a read-out as its context, and global_placement='none' "
            "has none"
        )
    if mixer == "conv" and fusion == "none":
        raise ConfigError(
            "fusion='none' leaves the read-out to ContMix alone: it needs local_mixer='contmix'"
        )
    if mixer == "conv" and contmix_options:
        raise ConfigError(
            f"{', '.join(contmix_options)} change a ContMix, which local_mixer='conv' does not have"
        )


def _init_weights(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(**changes: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0",
        "paper_ids": "arXiv:2603.19567",
        "paper_name": "Efficiency Follows Global-Local Decoupling",
        "notes": "a re-implementation from the paper with reconstructed dimensions",
        **changes,
    }


default_cfgs = generate_default_cfgs(
    {
        "test_convneur.untrained": _cfg(input_size=(3, 64, 64), pool_size=(2, 2)),
        "convneur_nano.untrained": _cfg(input_size=(3, 48, 48), pool_size=(3, 3)),
        "convneur_m1.untrained": _cfg(),
        "convneur_m2.untrained": _cfg(),
        "convneur_m3.untrained": _cfg(),
        "convneur_m4.untrained": _cfg(),
    }
)


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **sizes: Any) -> ConvNeur:
    if kwargs.get("local_mixer") != "contmix":
        # A variant's size of ContMix is not the user's wish for one.
        sizes.pop("contmix_grid", None)
    return build_model_with_cfg(
        ConvNeur,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **{**sizes, **kwargs},
    )


@register_model
def test_convneur(pretrained: bool = False, **kwargs: Any) -> ConvNeur:
    """Smallest ConvNeur with every part of the others; for unit tests."""
    return _create(
        "test_convneur",
        pretrained,
        kwargs,
        dims=(8, 16, 24, 32),
        depths=(1, 1, 2, 1),
        memory_dim=16,
        chunk_size=32,
        contmix_grid=2,
    )


@register_model
def convneur_nano(pretrained: bool = False, **kwargs: Any) -> ConvNeur:
    """ConvNeur-Nano for images of 48 pixels and more: .16 M parameters, 10 M multiply-adds.

    A miniature in the proportions of ConvNeur at 224 pixels (ours; the paper has no such size). At
    48 pixels the maps have 24, 12, 6 and 3 pixels a side, so that chunks of 36 tokens are a
    sixteenth, a quarter and the whole of the first three maps, as 196 tokens are there, and kernels
    of 3 are as large in their maps as 7 there. Branches have no learned factors: from 1e-6 they
    would open late in a short training. For 32 pixels take `patch_size=1, chunk_size=64` (maps
    of 32, 16, 8 and 4, 18 M multiply-adds) or `chunk_size=16` (16, 8, 4 and 2, 4.5 M).
    """
    return _create(
        "convneur_nano",
        pretrained,
        kwargs,
        dims=(12, 24, 48, 96),
        depths=(1, 1, 2, 1),
        kernel_size=3,
        patch_size=2,
        layer_scale=0,
        memory_dim=16,
        chunk_size=36,
        contmix_grid=3,
    )


@register_model
def convneur_m1(pretrained: bool = False, **kwargs: Any) -> ConvNeur:
    """ConvNeur-M1: a re-implementation from the paper with reconstructed dimensions."""
    return _create("convneur_m1", pretrained, kwargs, dims=(40, 80, 160, 320))


@register_model
def convneur_m2(pretrained: bool = False, **kwargs: Any) -> ConvNeur:
    """ConvNeur-M2: a re-implementation from the paper with reconstructed dimensions."""
    return _create("convneur_m2", pretrained, kwargs, dims=(48, 96, 192, 384))


@register_model
def convneur_m3(pretrained: bool = False, **kwargs: Any) -> ConvNeur:
    """ConvNeur-M3: a re-implementation from the paper with reconstructed dimensions."""
    return _create("convneur_m3", pretrained, kwargs, dims=(64, 128, 256, 512))


@register_model
def convneur_m4(pretrained: bool = False, **kwargs: Any) -> ConvNeur:
    """ConvNeur-M4: a re-implementation from the paper with reconstructed dimensions."""
    return _create("convneur_m4", pretrained, kwargs, dims=(80, 160, 320, 640), depths=(2, 2, 8, 2))
