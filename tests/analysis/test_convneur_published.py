import pytest

from lightning_overlock.analysis import convneur_published
from lightning_overlock.analysis.convneur_published import PUBLISHED, size, table

# Every figure of the paper's tables, typed from the paper and not from the module under test.
FIGURES = {
    ("convneur_m1", ()): (4.3, 0.71),
    ("convneur_m2", ()): (6.1, 1.0),
    ("convneur_m3", ()): (10.6, 1.8),
    ("convneur_m4", ()): (18.1, 3.06),
    ("convneur_m3", (("global_placement", "none"),)): (None, 1.4),
    ("convneur_m3", (("global_placement", "block"),)): (None, 2.3),
    ("convneur_m3", (("global_operator", "cbam"),)): (None, 1.5),
    ("convneur_m3", (("global_operator", "non_local"),)): (None, 3.0),
    ("convneur_m3", (("global_operator", "self_attention"),)): (None, 1.8),
    ("convneur_m3", (("fusion", "add"),)): (None, 1.8),
    ("convneur_m3", (("fusion", "concat"),)): (11.3, 1.9),  # 10.6 and .7 more
    ("convneur_m3", (("memory_dim", 64),)): (None, 1.5),
    ("convneur_m3", (("memory_dim", 256),)): (None, 2.7),
}


def test_the_table_holds_the_papers_figures():
    held = {(r.variant, tuple(r.ideas.items())): (r.params_m, r.flops_g) for r in PUBLISHED}
    assert held == FIGURES


@pytest.mark.parametrize(("model", "figures"), FIGURES.items(), ids=str)
def test_reconstruction_has_the_published_size_in_the_papers_counting(model, figures):
    variant, ideas = model
    params, flops = figures
    ours = size(variant, **dict(ideas))
    assert ours.paper_macs / 1e9 == pytest.approx(flops, rel=0.06)
    if params is not None:
        assert ours.paper_params / 1e6 == pytest.approx(params, rel=0.01)


def test_both_countings_of_m1_by_hand():
    dims, depths, width, tokens = (40, 80, 160, 320), (2, 2, 6, 2), 80, (3136, 784, 196, 49)
    params = 3 * 16 * 40 + 40 + 2 * 40  # stem
    macs = 3136 * 48 * 40
    inside = 0
    for i, (dim, depth, n) in enumerate(zip(dims, depths, tokens, strict=True)):
        if i > 0:
            params += 2 * dims[i - 1] + 4 * dims[i - 1] * dim + dim
            macs += n * 4 * dims[i - 1] * dim
        # Depthwise 7x7, norm, two 1x1, layer scale.
        params += depth * ((49 + 1) * dim + 2 * dim + 8 * dim**2 + 5 * dim + dim)
        macs += depth * n * (49 * dim + 8 * dim**2)
        # 1x1 there and back; two norms; q, k, v; pool; three gates; memory and gamma.
        params += 2 * dim * width + width + dim
        params += 2 * width + 3 * width**2 + width**2 + width + 3 * (width + 1)
        params += 8 * width**2 + width
        chunk = min(196, n // 2)
        written = (n - 1) // chunk * chunk
        updates = written // chunk
        macs += n * (2 * dim * width + width**2)
        macs += written * (3 * width**2 + width) + updates * 2 * width
        # Reading: two products; writing: two forward, one back, two for the weights.
        inside += (2 * n + 5 * written) * 4 * width**2
    params += 2 * 320 + 320 * 1000 + 1000
    macs += 320 * 1000
    ours = size("convneur_m1")
    assert ours.params == params
    assert ours.paper_params == params + 4 * (8 * width**2 + width)
    assert ours.macs == macs + inside


def test_table_prints_every_row_with_its_counting_rules(monkeypatch):
    rows = PUBLISHED[:1] + PUBLISHED[4:5]
    monkeypatch.setattr(convneur_published, "PUBLISHED", rows)
    text = table()
    for row in rows:
        assert f"| {row.name} |" in text
    assert "| M1 | 4.3 | 4.31 | 4.10 | 0.71 | 0.69 |" in text
    assert "re-implementation from the paper with reconstructed dimensions" in text
