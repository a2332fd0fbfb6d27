"""Properties of plans: no buffer is exceeded, every product is computed once, every output is stored."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seriatim.compiler import tiler
from seriatim.compiler.tiler import Axis, Unit, Work
from seriatim.config import Config
from seriatim.errors import CompileError

pytestmark = pytest.mark.unit
CONFIGS = [
    Config(),
    Config(2, 4, 32, 32, act_words=128, wgt_words=64, prm_words=16, res_words=32, out_words=32, psum_words=32),
    Config(4, 16, 128, 64, act_words=700, wgt_words=100, out_words=64, psum_words=64),
    Config(32, 8, 64, 64, psum_words=256),
]


@st.composite
def axes(draw):
    kernel, stride, dilation = (draw(st.integers(1, 5)) for _ in range(3))
    size = draw(st.integers(1, 40))
    before, after = draw(st.integers(0, kernel * dilation)), draw(st.integers(0, kernel * dilation))
    out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    assume(out >= 1)
    return Axis(out, size, kernel, stride, dilation, before)


@st.composite
def works(draw):
    config = draw(st.sampled_from(CONFIGS))
    words, planes = draw(st.integers(1, 6)), draw(st.integers(1, 16))
    pool = draw(st.booleans())
    grouped = draw(st.booleans())
    units = []
    for i in range(draw(st.integers(1, 5))):
        c0 = draw(st.integers(0, words - 1)) if grouped else 0
        c1 = draw(st.integers(c0 + 1, words)) if grouped else words
        units.append(Unit(i, i * config.tiles_per_word, draw(st.integers(1, config.tiles_per_word)), c0, c1))
    out = draw(st.integers(1, 16))
    y, x = draw(axes()), draw(axes())
    return config, Work("layer", draw(st.integers(1, 9)), y, x, planes, min(planes, 8), 0 if pool else draw(st.integers(1, 9)),
                        tuple(units), lambda unit: out, res_planes=0 if pool else draw(st.integers(0, 16)))


def fits(work: Work, config: Config) -> bool:
    """Whether even the least tile of a layer has its place."""
    unit = max(work.units, key=lambda u: u.tiles)
    words = unit.tiles * max(1, work.w_bits)
    if not work.w_bits:
        return max(u.c1 - u.c0 for u in work.units) * work.y.extent * work.x.extent * work.planes <= config.act_words
    return words <= config.wgt_words and work.planes <= config.act_words and unit.tiles * config.m <= config.psum_words


@given(works())
@settings(deadline=None, max_examples=150)
def test_plans_fit_and_cover(case):
    config, work = case
    try:
        plan = tiler.plan(work, config)
    except CompileError as error:
        assert "layer" in str(error)
        assert not fits(work, config), error
        return
    stored = np.zeros((work.images, work.y.out, work.x.out, len(work.units)), int)
    for index, (wave, part, (x0, x1)) in enumerate(plan.strips()):
        assert len(wave) <= config.m
        for first, middle, last in plan.tiles(index, part, x1 - x0):
            for unit in part.units:
                assert part.c0 <= unit.c0 < unit.c1 <= part.c1
                chunks = first if unit is part.units[0] else last if unit is part.units[-1] else middle
                for chunk in chunks:
                    assert 0 <= chunk.y0 < chunk.y1 <= plan.band_rows and 0 <= chunk.x0 < chunk.x1 <= x1 - x0
                    assert chunk.positions * work.out_words(unit) <= config.out_words
                    assert chunk.positions * work.res_planes <= config.res_words
                    segments = plan.segments[unit.index]
                    if len(segments) > 1:
                        assert chunk.positions * unit.tiles * config.m <= config.psum_words
                    if plan.mode == "ring":
                        assert work.y.held(chunk.y1 - chunk.y0) <= plan.ring_rows
                        assert work.x.held(x1 - x0) * (part.c1 - part.c0) * work.planes <= plan.row_words
                    for band in wave:
                        rows = slice(band.first + chunk.y0, min(band.first + chunk.y1, band.first + band.rows))
                        if rows.start < rows.stop:
                            stored[band.image, rows, x0 + chunk.x0:x0 + chunk.x1, unit.index] += 1
    assert (stored == 1).all()
    assert plan.mode == "tile" or plan.ring_words <= config.act_words
    for unit in work.units:
        products = Counter((r, t, c) for s in plan.segments[unit.index]
                           for r in range(s.r0, s.r1) for t in range(s.t0, s.t1) for c in range(s.c0, s.c1))
        assert set(products.values()) == {1}
        assert len(products) == work.taps * (unit.c1 - unit.c0)
        for segment in plan.segments[unit.index]:
            assert work.weights(unit, segment.words) <= config.wgt_words
    assert not plan.resident or not work.w_bits or plan.weight_words <= config.wgt_words


@given(axes())
def test_held_samples_are_what_windows_see(axis):
    sees = {axis.stride * o + axis.dilation * k - axis.before for o in range(axis.out) for k in range(axis.kernel)}
    held = {o * axis.move + k * axis.spread for o in range(axis.out) for k in range(axis.kernel)}
    assert {axis.source(i) for i in held} == sees
    assert max(held) < axis.held(axis.out)
    lo, hi = axis.inside(0, axis.held(axis.out))
    assert set(range(lo, hi)) == {i for i in range(axis.held(axis.out)) if 0 <= axis.source(i) < axis.size}


def test_bands_of_the_usual_maps_fill_seven_rows():
    for rows in (112, 56, 28, 14, 7):
        height, waves = tiler.bands(1, rows, Config())
        assert height == rows // 7 and [len(w) for w in waves] == [7]
    height, waves = tiler.bands(14, 1, Config())
    assert (height, len(waves)) == (1, 2)


def test_segments_are_few():
    assert len(tiler.split(3, 3, 8, lambda r, t, c: r * t * c <= 36)) == 2
    assert tiler.split(3, 3, 8, lambda r, t, c: False) is None


def test_errors_name_layer_need_and_remedy():
    axis = Axis(1, 9, 9, 1, 1, 0)
    config = Config(2, 4, 32, 32, act_words=64)
    pool = Work("pool5", 1, axis, axis, 8, 8, 0, (Unit(0, 0, 1, 0, 1),), lambda unit: 8)
    with pytest.raises(CompileError, match="pool5: one window takes 648 act words, the buffer has 64; make act_words"):
        tiler.plan(pool, config)
    conv = Work("conv1", 1, axis, axis, 8, 8, 8, (Unit(0, 0, 8, 0, 1),), lambda unit: 8)
    with pytest.raises(CompileError, match="conv1: .* there are 64 and 16; make them larger"):
        tiler.plan(conv, Config(2, 4, 32, 32, act_words=64, wgt_words=16))
    with pytest.raises(CompileError, match="conv1: one position takes 32 words of res buffer, there are 16; make res_words"):
        tiler.plan(Work("conv1", 1, axis, axis, 8, 8, 1, conv.units, lambda unit: 8, res_planes=32), Config(res_words=16))
