import itertools

import pytest
import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import lightning_overlock  # noqa: F401  (registers the models)
from lightning_overlock.errors import ConfigError
from lightning_overlock.layers import ContMix, NeuralMemory
from lightning_overlock.layers.tap import capture
from lightning_overlock.models.convneur import ConvNeur, LinearAttention, MapAttention

OPERATORS = ("memory", "linear_attention", "self_attention", "non_local", "cbam")
FUSIONS = ("gate", "add", "concat")
SCANS = ("raster", "bidirectional", "whole", "shuffled")


def make(**arguments):
    torch.manual_seed(0)
    arguments = {"num_classes": 10, "layer_scale": 0.5} | arguments
    return timm.create_model("test_convneur", **arguments)


def image(*size, batch=2):
    size = size or (64, 64)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def names(model):
    return {n for n, _ in model.named_parameters()}


def test_a_gated_block_is_the_formula_of_the_paper():
    model = make().eval()
    block = model.stages[1].blocks[0]
    x = torch.randn(2, 16, 8, 8)
    read_out = torch.randn(2, 16, 8, 8)
    local = nn.functional.conv2d(x, block.conv.weight, block.conv.bias, padding=3, groups=16)
    local = nn.functional.layer_norm(
        local.permute(0, 2, 3, 1), (16,), block.norm.weight, block.norm.bias, block.norm.eps
    )
    local = local @ block.mlp.fc1.weight[:, :, 0, 0].T + block.mlp.fc1.bias
    local = nn.functional.gelu(local) @ block.mlp.fc2.weight[:, :, 0, 0].T + block.mlp.fc2.bias
    gate = 1 / (1 + torch.exp(-read_out))
    expected = x + 0.5 * gate * local.permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x, read_out), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_is_what_it_is_called(fusion):
    block = make(fusion=fusion).eval().stages[1].blocks[0]
    x, read_out = torch.randn(2, 2, 16, 8, 8).unbind()
    local = block.mlp(block.norm(block.conv(x)))
    if fusion == "gate":
        branch = torch.sigmoid(read_out) * local
    elif fusion == "add":
        branch = local + read_out
    else:
        first, second = block.merge.weight[:, :, 0, 0].split(16, 1)
        branch = torch.einsum("oc,bchw->bohw", first, local)
        branch = branch + torch.einsum("oc,bchw->bohw", second, read_out)
        branch = branch + block.merge.bias[:, None, None]
    torch.testing.assert_close(block(x, read_out), x + 0.5 * branch, atol=1e-5, rtol=1e-5)


def test_attention_equals_pytorchs_own():
    attention = MapAttention(32, heads=2, head_dim=16)
    x = torch.randn(2, 32, 5, 3)
    tokens = attention.norm(x.flatten(2).mT)
    expected, _ = nn.functional.multi_head_attention_forward(
        *[tokens.transpose(0, 1)] * 3,
        embed_dim_to_check=32,
        num_heads=2,
        in_proj_weight=attention.qkv.weight,
        in_proj_bias=None,
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.proj.weight,
        out_proj_bias=None,
    )
    expected = x + expected.permute(1, 2, 0).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


def test_linear_attention_is_a_weighted_mean_over_all_tokens():
    attention = LinearAttention(32).double()
    x = torch.randn(2, 32, 5, 3).double()
    tokens = attention.norm(x.flatten(2).mT)
    q, k, v = (part.squeeze(2) for part in attention.qkv(tokens).view(2, 15, 3, 32).split(1, 2))
    weights = torch.einsum("bnd,bmd->bnm", *(nn.functional.elu(t) + 1 for t in (q, k)))
    mean = (weights / weights.sum(-1, keepdim=True)) @ v
    expected = x + attention.proj(mean).mT.reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reuse", [False, True])
def test_the_read_out_of_a_stage_reaches_the_first_block_or_all(reuse):
    model = make(reuse_global=reuse)
    with capture(model, "gate") as gates:
        model(image())
    blocks = {path for path in gates if path.startswith("stages.2.")}
    expected = {"stages.2.blocks.0.gate"} | ({"stages.2.blocks.1.gate"} if reuse else set())
    assert blocks == expected
    for path, gate in gates.items():
        assert ((gate > 0) & (gate < 1)).all(), path


def test_gate_read_out_local_map_and_surprise_can_be_asked_for():
    model = make().eval()
    x = image()
    plain = model(x)
    with capture(model) as found:
        torch.testing.assert_close(model(x), plain)
    assert found["stages.0.blocks.0.gate"].shape == (2, 8, 16, 16)
    torch.testing.assert_close(
        found["stages.0.blocks.0.gate"], found["stages.0.global_branch.read_out"].sigmoid()
    )
    assert found["stages.2.blocks.1.local"].shape == (2, 24, 4, 4)
    # 256 tokens in chunks of 32; 4 tokens in two chunks of 2.
    assert found["stages.0.global_branch.operator.surprise"].shape == (2, 8)
    assert found["stages.3.global_branch.operator.surprise"].shape == (2, 2)


def test_without_a_global_branch_nothing_of_it_is_left():
    model = make(global_placement="none")
    assert not any("global" in n or "merge" in n for n in names(model))
    assert make().state_dict().keys() > model.state_dict().keys()
    with pytest.raises(ValueError, match="no tap is called 'gate'"), capture(model, "gate"):
        pass


def test_a_memory_in_every_block_reads_that_blocks_input():
    model = make(global_placement="block").eval()
    assert "stages.2.blocks.1.global_branch.operator.gamma" in names(model)
    assert not any(n.startswith("stages.2.global_branch") for n in names(model))
    block = model.stages[2].blocks[1]
    x = torch.randn(2, 24, 4, 4)
    with capture(block, "read_out") as found:
        block(x)
    torch.testing.assert_close(found["global_branch.read_out"], block.global_branch(x))


@pytest.mark.parametrize("idea", ["momentum", "decay"])
def test_a_switched_off_part_of_the_memory_is_gone(idea):
    without = names(make(**{idea: False}))
    gone = names(make()) - without
    assert gone == {
        f"stages.{i}.global_branch.operator.{idea}.{p}"
        for i in range(4)
        for p in ("weight", "bias")
    }


def test_memory_arguments_arrive_in_every_stage():
    model = make(
        chunk_size=(16, 8, 4, 2),
        min_chunks=3,
        segment_chunks=2,
        max_step=0.001,
        memory_depth=3,
        memory_dim=24,
        scan="bidirectional",
    )
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    assert [m.chunk_size for m in memories] == [16, 8, 4, 2]
    for memory in memories:
        assert (memory.min_chunks, memory.segment_chunks) == (3, 2)
        assert (memory.max_step, memory.scan, memory.dim) == (0.001, "bidirectional", 24)
        assert [tuple(w.shape) for w in memory.memory] == [(24, 96), (96, 96), (96, 24)]


VARIANTS = [
    *({"global_operator": o} for o in OPERATORS),
    *(
        {"fusion": f, "global_placement": p}
        for f, p in itertools.product(FUSIONS, ("stage", "block"))
    ),
    *({"scan": s} for s in SCANS),
    {"global_placement": "none"},
    {"reuse_global": True, "fusion": "concat"},
    {"segment_chunks": "all"},
    {"memory_depth": 1},
    {"memory_depth": 3},
    {"momentum": False, "decay": False},
    {"layer_scale": 0},
    {"memory_write": "none"},
    {"memory_write": "ascent", "readout_from": "key"},
    {"patch_size": 2},
    {"local_mixer": "contmix", "kernel_size": (3, 3, 3, 1)},
    {"local_mixer": "contmix", "fusion": "none", "reuse_global": True},
]


@pytest.mark.parametrize("ideas", VARIANTS, ids=str)
@pytest.mark.parametrize("size", [(32, 32), (33, 71)])
def test_every_parameter_gets_a_gradient_whatever_is_switched(ideas, size):
    model = make(**ideas)
    logits = model(image(*size))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (64, 64), (96, 40), (63, 127)])
def test_local_weights_never_get_a_zero_gradient(size):
    model = make()
    model(image(*size)).square().sum().backward()
    zero = [n for n, p in model.named_parameters() if not p.grad.any()]
    # With two chunks momentum multiplies nothing, and one token needs no pooling.
    assert all(n.split(".")[-2] in ("momentum", "pool") for n in zero)


def test_controls_of_the_memory_arrive_in_every_stage():
    options = {"memory_write": "ascent", "readout_from": "key", "eval_chunk_size": (4, 3, 2, 1)}
    memories = [m for m in make(**options).modules() if isinstance(m, NeuralMemory)]
    assert [m.eval_chunk_size for m in memories] == [4, 3, 2, 1]
    assert {m.write for m in memories} == {"ascent"}
    assert {m.query for m in memories} == {None}
    unwritten = make(memory_write="none")
    assert not [n for n in names(unwritten) if "key_value" in n or "momentum" in n]


def test_contmix_takes_the_place_of_the_convolution_with_the_read_out_as_context():
    model = make(local_mixer="contmix", kernel_size=3, contmix_heads=(1, 2, 3, 4)).eval()
    mixers = {n: m for n, m in model.named_modules() if isinstance(m, ContMix)}
    assert list(mixers) == [f"stages.{i}.blocks.0.conv" for i in range(4)]
    assert [m.groups for m in mixers.values()] == [2, 4, 6, 8]
    assert {(m.kernel_size, m.context_grid, m.small_kernel) for m in mixers.values()} == {
        (3, 2, None)
    }
    block = model.stages[1].blocks[0]
    x, read_out = torch.randn(2, 2, 16, 8, 8)
    local = block.mlp(block.norm(block.conv(x, context=read_out)))
    expected = x + 0.5 * torch.sigmoid(read_out) * local
    torch.testing.assert_close(block(x, read_out), expected)
    # Without a fusion the read-out acts through the kernels alone.
    block.fusion = "none"
    torch.testing.assert_close(block(x, read_out), x + 0.5 * local)
    assert not torch.allclose(block(x, read_out), block(x, read_out.flip(0)))


def test_weights_do_not_depend_on_the_chunk_size():
    trained = make(chunk_size=16)
    again = make(chunk_size=(64, 8, 4, 2), eval_chunk_size=5)
    again.load_state_dict(trained.state_dict())
    x = image()
    assert not torch.allclose(again.eval()(x), trained.eval()(x))


def test_top_rows_do_not_see_bottom_rows_through_a_raster_memory_but_do_through_others():
    x = torch.randn(1, 8, 16, 16)
    changed = x.clone()
    changed[:, :, 8:] += 1
    for scan in SCANS:
        branch = make(scan=scan).eval().stages[0].global_branch
        top = (branch(x) - branch(changed))[:, :, :8].abs().max()
        assert (top == 0) == (scan == "raster"), scan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_placement": "layer"}, "global_placement must be one of .* found 'layer'"),
        ({"global_operator": "rwkv"}, "global_operator must be one of .* found 'rwkv'"),
        ({"fusion": "mul"}, "fusion must be one of .* found 'mul'"),
        ({"scan": "spiral"}, "scan must be one of .* found 'spiral'"),
        ({"global_placement": "none", "fusion": "add"}, "no global branch for .*fusion='add'"),
        ({"global_placement": "none", "global_operator": "cbam"}, "no global branch for"),
        ({"global_placement": "none", "momentum": False}, "momentum change a memory"),
        (
            {"global_operator": "cbam", "scan": "whole", "decay": False},
            "decay, scan change a memory",
        ),
        ({"global_placement": "block", "reuse_global": True}, "reuse_global=True needs"),
        ({"global_operator": "self_attention", "memory_dim": 24}, "multiple of 16 .* found 24"),
        ({"memory_dim": 0}, "memory_dim must be a positive"),
        ({"chunk_size": (16, 16)}, "chunk_size needs 4 numbers .* found"),
        ({"chunk_size": 0}, "chunk_size needs 4 numbers"),
        ({"dims": (8, 16, 24)}, "dims needs 4 numbers"),
        ({"depths": (1, 1, 0, 1)}, "depths needs 4 numbers"),
        ({"kernel_size": 6}, "kernel_size must be odd, found 6"),
        ({"memory_depth": 4}, "must be 1, 2 or 3, found 4"),
        ({"max_step": 2.0}, "max_step must be in"),
        ({"memory_write": "up"}, "memory_write must be one of .* found 'up'"),
        ({"readout_from": "value"}, "readout_from must be one of .* found 'value'"),
        ({"eval_chunk_size": (4, 4)}, "eval_chunk_size needs 4 numbers"),
        (
            {"memory_write": "none", "scan": "whole", "decay": False},
            "decay, scan change how a memory is written .* nothing is written",
        ),
        ({"memory_write": "none", "readout_from": "key"}, "nothing is written"),
        ({"global_operator": "linear_attention", "memory_write": "ascent"}, "change a memory"),
        ({"global_placement": "none", "eval_chunk_size": 4}, "change a memory"),
        ({"local_mixer": "attention"}, "local_mixer must be one of .* found 'attention'"),
        ({"local_mixer": "contmix", "global_placement": "none"}, "takes a read-out as its context"),
        ({"fusion": "none"}, "needs local_mixer='contmix'"),
        ({"contmix_grid": 3, "contmix_heads": 2}, "contmix_heads, contmix_grid change a ContMix"),
        ({"local_mixer": "contmix", "contmix_heads": 3}, "dim is 8; expected a multiple of"),
        ({"kernel_size": (3, 3, 4, 3)}, "kernel_size must be odd"),
        ({"kernel_size": (3, 3)}, "kernel_size needs 4 numbers"),
        ({"patch_size": 3}, "patch_size must be 1, 2 or 4"),
    ],
)
def test_impossible_arguments_are_a_value_error(arguments, message):
    with pytest.raises(ConfigError, match=message):
        make(**arguments)


def test_a_memory_that_is_not_finite_raises_with_stage_and_chunk():
    model = make()
    with torch.no_grad():
        model.stages[1].global_branch.operator.key_value.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"stages\.1: .* not finite after chunk 1 of 1"):
        model(image())


@pytest.mark.parametrize(
    ("scan", "segment_chunks"),
    [
        ("raster", 1),
        ("raster", "all"),
        pytest.param("raster", 4, marks=pytest.mark.slow),
        *(
            pytest.param(scan, n, marks=pytest.mark.slow)
            for scan in ("bidirectional", "whole")
            for n in (1, 4, "all")
        ),
    ],
)
def test_twenty_bf16_steps_at_the_largest_step_and_depth_3_stay_finite(scan, segment_chunks):
    model = make(memory_depth=3, scan=scan, segment_chunks=segment_chunks, layer_scale=0)
    memories = [m for m in model.modules() if isinstance(m, NeuralMemory)]
    with torch.no_grad():
        for memory in memories:
            memory.step.bias.fill_(20.0)  # sigmoid 1: every token takes the largest step
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    labels = torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(20):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(image(batch=4)), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_layer_decay_groups_put_a_global_branch_beside_its_first_block():
    from timm.models import group_parameters

    model = make()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    assert groups["stem.0.weight"] == 0
    first = groups["stages.2.blocks.0.conv.weight"]
    assert groups["stages.2.global_branch.compress.weight"] == first
    assert groups["stages.2.downsample.1.weight"] == first
    assert groups["stages.2.blocks.1.conv.weight"] > first
    assert groups["head.fc.weight"] == max(groups.values())


def test_checkpointed_blocks_give_the_same_gradients():
    plain, saving = make(), make()
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(image()).square().sum().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


def test_the_four_models_are_registered_under_their_description():
    for variant in ("m1", "m2", "m3", "m4"):
        with torch.device("meta"):
            model = timm.create_model(f"convneur_{variant}", num_classes=7)
        assert isinstance(model, ConvNeur)
        assert "reconstructed dimensions" in model.default_cfg["notes"]
        assert model(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_timm_s_inference_form_changes_no_output(fusion):
    model = make(fusion=fusion).eval()
    with torch.inference_mode():
        torch.testing.assert_close(reparameterize_model(model)(image()), model(image()))
