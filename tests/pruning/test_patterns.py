"""Patterns: every concrete class is found and put through the same properties; the known ones also against loops."""

import dataclasses
import functools
import inspect
import itertools

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pruning import Block, Dense, NofM, Pattern, PruningError

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
SMALL_SHAPES = [torch.Size(shape) for shape in itertools.product(range(1, 25), repeat=2) if shape[0] * shape[1] <= 240]


def concrete(base: type) -> list[type]:
    """All subclasses, at any depth, that implement the whole of a pattern."""
    found = []
    for cls in base.__subclasses__():
        found += concrete(cls)
        if cls.pool is not Pattern.pool and cls.__module__.startswith("pruning"):
            found.append(cls)
    return found


PATTERNS = concrete(Pattern)


def test_all_concrete_patterns_are_found():
    assert {"Block", "NofM", "Dense"} <= {cls.__name__ for cls in PATTERNS}
    assert len(PATTERNS) == len(set(PATTERNS)) >= 3
    assert not any(inspect.isabstract(cls) for cls in PATTERNS)


@st.composite
def patterns(draw, cls):
    """Any pattern of this class: its whole-number fields are drawn, the others keep their defaults."""
    numbers = {f.name: draw(st.integers(1, 6), f.name) for f in dataclasses.fields(cls) if f.type in (int, "int")}
    try:
        return cls(**numbers)
    except PruningError:
        return assume(False)


@functools.cache
def fitting_shapes(text: str, cls: type, fields: tuple) -> list[torch.Size]:
    pattern = cls(**dict(fields))
    return [shape for shape in SMALL_SHAPES if pattern.misfit(shape) is None]


def shapes_of(pattern: Pattern) -> list[torch.Size]:
    fields = tuple((f.name, getattr(pattern, f.name)) for f in dataclasses.fields(pattern))
    return fitting_shapes(str(pattern), type(pattern), fields)


KINDS = ("random", "tied", "equal", "zero", "huge", "overflowing")
EXACT = KINDS[:-1]  # sums of a unit are exact in float32 and in Python: ties are the same in both


def saliencies(kind: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """Not negative, as those of every criterion are."""
    random = torch.Generator().manual_seed(seed)
    match kind:
        case "random":
            return torch.randperm(shape.numel(), generator=random).reshape(shape).float()
        case "tied":
            return torch.randint(0, 3, shape, generator=random).float()
        case "equal":
            return torch.full(shape, 0.5)
        case "zero":
            return torch.zeros(shape)
        case "huge":
            return torch.randint(0, 100, shape, generator=random).float() * 2.0**110
        case _:
            return torch.rand(shape, generator=random).round() * torch.finfo(torch.float32).max


@st.composite
def cases(draw, cls, kinds=KINDS):
    pattern = draw(patterns(cls))
    shape = draw(st.sampled_from(shapes_of(pattern)))
    saliency = saliencies(draw(st.sampled_from(kinds)), shape, draw(st.integers(0, 1000)))
    share = draw(st.one_of(st.sampled_from([0.0, 1e-6, 0.5, 0.8, 1.0]), st.floats(0, 1)))
    return pattern, saliency, share * pattern.max_sparsity


def nonzero_weight(shape: torch.Size) -> torch.Tensor:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return torch.where(weight == 0, 1.0, weight)


def units_to_prune(pattern: Pattern, shape: torch.Size, sparsity: float) -> int:
    return round(pattern.unit_fraction(sparsity) * (shape.numel() // pattern.unit_size))


@pytest.mark.parametrize("cls", PATTERNS)
class TestEveryPattern:
    @PROPERTY
    @given(data=st.data())
    def test_keep_prunes_exactly_the_rounded_number_of_units(self, cls, data):
        pattern, saliency, sparsity = data.draw(cases(cls))
        keep = pattern.keep(saliency, sparsity)
        assert keep.dtype == torch.bool
        assert keep.shape == saliency.shape
        pruned = units_to_prune(pattern, saliency.shape, sparsity)
        assert int((~keep).sum()) == pruned * pattern.unit_zeros
        # In weights: within half a unit of what was asked for.
        assert abs(int((~keep).sum()) - sparsity * saliency.numel()) <= pattern.unit_zeros / 2 + 1e-6

    @PROPERTY
    @given(data=st.data())
    def test_nothing_goes_at_zero_and_every_unit_at_the_maximum(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls))
        assert bool(pattern.keep(saliency, 0.0).all())
        keep = pattern.keep(saliency, pattern.max_sparsity)
        assert int((~keep).sum()) == saliency.numel() // pattern.unit_size * pattern.unit_zeros
        assert pattern.violations(nonzero_weight(saliency.shape) * keep) == 0

    @PROPERTY
    @given(data=st.data())
    def test_its_own_target_can_be_kept_without_violations(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls))
        keep = pattern.keep(saliency, pattern.target)
        assert int((~keep).sum()) == units_to_prune(pattern, saliency.shape, pattern.target) * pattern.unit_zeros
        assert pattern.violations(nonzero_weight(saliency.shape) * keep) == 0

    @PROPERTY
    @given(data=st.data())
    def test_keep_is_deterministic_and_leaves_the_saliency_alone(self, cls, data):
        pattern, saliency, sparsity = data.draw(cases(cls))
        before = saliency.clone()
        first = pattern.keep(saliency, sparsity)
        assert torch.equal(first, pattern.keep(saliency.clone(), sparsity))
        assert torch.equal(saliency, before)
        turned = saliency.t().contiguous().t()  # the same numbers, laid out by columns
        assert torch.equal(first, pattern.keep(turned, sparsity))

    @PROPERTY
    @given(data=st.data(), share=st.floats(0, 1))
    def test_more_sparsity_only_prunes_more(self, cls, data, share):
        pattern, saliency, sparsity = data.draw(cases(cls))
        more, less = pattern.keep(saliency, sparsity), pattern.keep(saliency, share * sparsity)
        assert not bool((more & ~less).any())

    @PROPERTY
    @given(data=st.data(), excess=st.floats(1e-6, 2))
    def test_keep_refuses_a_sparsity_that_it_cannot_reach(self, cls, data, excess):
        pattern, saliency, _ = data.draw(cases(cls))
        for sparsity in (pattern.max_sparsity + excess, -excess):
            with pytest.raises(PruningError, match="is outside"):
                pattern.keep(saliency, sparsity)

    @PROPERTY
    @given(data=st.data())
    def test_a_shape_fits_or_is_refused_with_the_reason(self, cls, data):
        pattern = data.draw(patterns(cls))
        shape = data.draw(st.sampled_from(SMALL_SHAPES))
        reason = pattern.misfit(shape)
        if reason is None:
            assert shape.numel() % pattern.unit_size == 0
            assert pattern.keep(torch.ones(shape), 0.0).shape == shape
        else:
            with pytest.raises(PruningError) as refusal:
                pattern.keep(torch.ones(shape), 0.0)
            assert str(refusal.value) == reason

    @PROPERTY
    @given(data=st.data())
    def test_pooling_is_linear(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls, ("random", "tied")))
        other = saliencies("tied", saliency.shape, 7)
        together = pattern.pool(0.5 * saliency + 2 * other)
        torch.testing.assert_close(together, 0.5 * pattern.pool(saliency) + 2 * pattern.pool(other))


# --- naive transcriptions of the definitions, one element at a time --------------------------------------------------


def blocks(rows: int, cols: int, shape: torch.Size) -> list[list[tuple[int, int]]]:
    """The places of each block, blocks in reading order."""
    return [
        [(i, j) for i in range(top, top + rows) for j in range(left, left + cols)]
        for top in range(0, shape[0], rows)
        for left in range(0, shape[1], cols)
    ]


def block_keep(pattern: Block, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
    values = saliency.tolist()
    units = blocks(pattern.rows, pattern.cols, saliency.shape)
    order = sorted(range(len(units)), key=lambda unit: (sum(values[i][j] for i, j in units[unit]), unit))
    keep = torch.ones(saliency.shape, dtype=torch.bool)
    for unit in order[: round(sparsity * len(units))]:
        for i, j in units[unit]:
            keep[i, j] = False
    return keep


def block_violations(pattern: Block, weight: torch.Tensor) -> int:
    units = blocks(pattern.rows, pattern.cols, weight.shape)
    return sum(len({float(weight[place]) == 0 for place in unit}) == 2 for unit in units)


def nofm_keep(pattern: NofM, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
    values = saliency.tolist()
    groups = blocks(1, pattern.m, saliency.shape)
    losers = [sorted(group, key=lambda at: (values[at[0]][at[1]], at))[: pattern.m - pattern.n] for group in groups]
    order = sorted(range(len(groups)), key=lambda unit: (sum(values[i][j] for i, j in losers[unit]), unit))
    keep = torch.ones(saliency.shape, dtype=torch.bool)
    for unit in order[: round(sparsity / ((pattern.m - pattern.n) / pattern.m) * len(groups))]:
        for i, j in losers[unit]:
            keep[i, j] = False
    return keep


def nofm_violations(pattern: NofM, weight: torch.Tensor) -> int:
    groups = blocks(1, pattern.m, weight.shape)
    return sum(sum(float(weight[place]) != 0 for place in group) > pattern.n for group in groups)


KEEP = {
    Block: block_keep,
    NofM: nofm_keep,
    Dense: lambda pattern, saliency, sparsity: torch.ones(saliency.shape, dtype=torch.bool),
}
VIOLATIONS = {Block: block_violations, NofM: nofm_violations, Dense: lambda pattern, weight: 0}


@pytest.mark.parametrize("cls", KEEP)
@settings(PROPERTY, max_examples=150)
@given(data=st.data())
def test_keep_is_its_definition(cls, data):
    pattern, saliency, sparsity = data.draw(cases(cls, EXACT))
    assert torch.equal(pattern.keep(saliency, sparsity), KEEP[cls](pattern, saliency, sparsity))


@pytest.mark.parametrize("cls", VIOLATIONS)
@settings(PROPERTY, max_examples=150)
@given(data=st.data(), density=st.sampled_from([0.05, 0.5, 0.95]), seed=st.integers(0, 1000))
def test_violations_are_counted_as_defined(cls, data, density, seed):
    pattern = data.draw(patterns(cls))
    shape = data.draw(st.sampled_from(shapes_of(pattern)))
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    weight = nonzero_weight(shape) * kept
    assert pattern.violations(weight) == VIOLATIONS[cls](pattern, weight)


@PROPERTY
@given(data=st.data())
def test_violations_find_each_weight_revived_in_a_pruned_block(data):
    pattern, saliency, _ = data.draw(cases(Block, ("random",)))
    assume(pattern.unit_size > 1)
    units = blocks(pattern.rows, pattern.cols, saliency.shape)
    broken = data.draw(st.sets(st.integers(0, len(units) - 1)))
    revived, killed = torch.zeros(saliency.shape), nonzero_weight(saliency.shape)
    for unit in broken:
        place = data.draw(st.sampled_from(units[unit]))
        revived[place] = 1e-30
        killed[place] = 0.0
    assert pattern.violations(revived) == len(broken)
    assert pattern.violations(killed) == len(broken)


@PROPERTY
@given(data=st.data())
def test_violations_find_each_weight_revived_in_a_group(data):
    pattern, saliency, _ = data.draw(cases(NofM, EXACT))
    keep = pattern.keep(saliency, pattern.max_sparsity)
    weight = nonzero_weight(saliency.shape) * keep
    groups = blocks(1, pattern.m, saliency.shape)
    broken = data.draw(st.sets(st.integers(0, len(groups) - 1)))
    for unit in broken:
        weight[data.draw(st.sampled_from([place for place in groups[unit] if not keep[place]]))] = -1e-30
    assert pattern.violations(weight) == len(broken)


@PROPERTY
@given(data=st.data())
def test_violations_of_nofm_on_the_way_are_the_groups_still_dense(data):
    pattern, saliency, sparsity = data.draw(cases(NofM))
    weight = nonzero_weight(saliency.shape) * pattern.keep(saliency, sparsity)
    groups = saliency.numel() // pattern.m
    assert pattern.violations(weight) == groups - units_to_prune(pattern, saliency.shape, sparsity)


@PROPERTY
@given(data=st.data())
@example(data=None)
def test_a_block_weight_never_violates_at_any_sparsity(data):
    case = data.draw(cases(Block)) if data else (Block(3, 5), saliencies("random", torch.Size([9, 10]), 0), 0.49)
    pattern, saliency, sparsity = case
    assert pattern.violations(nonzero_weight(saliency.shape) * pattern.keep(saliency, sparsity)) == 0


# --- by example ------------------------------------------------------------------------------------------------------


def test_4x1_is_four_output_rows_in_one_input_column():
    saliency = torch.arange(16.0).reshape(8, 2)
    keep = Block(4, 1).keep(saliency, 0.25)
    assert keep[:, 0].tolist() == [False] * 4 + [True] * 4
    assert bool(keep[:, 1].all())


def test_2_of_4_keeps_the_two_highest_of_four_along_the_input_axis():
    keep = NofM(2, 4).keep(torch.tensor([[4.0, 1.0, 3.0, 2.0], [1.0, 1.0, 1.0, 1.0]]), 0.5)
    assert keep.tolist() == [[True, False, True, False], [False, False, True, True]]


def test_n_of_m_counts_the_weights_that_stay():
    keep = NofM(1, 4).keep(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), 0.75)
    assert keep.tolist() == [[True, False, False, False]]
    assert NofM(1, 4).target == 0.75


def test_a_saliency_that_is_not_a_number_does_not_change_how_many_go():
    saliency = torch.tensor([[float("nan"), 1.0, float("nan"), 0.0]])
    assert Block(1, 1, target_sparsity=0.5).keep(saliency, 0.75).tolist() == [[False, False, True, False]]


@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        (Block(4, 1), (130, 8)),
        (Block(1, 4), (8, 130)),
        (Block(4, 4), (8, 6)),
        (Block(4, 1), (8,)),
        (Block(4, 1), (8, 4, 3, 3)),
        (NofM(2, 4), (8, 130)),
        (NofM(2, 4), (8,)),
        (NofM(2, 4), (8, 4, 4)),
    ],
)
def test_indivisible_shapes_are_misfits(pattern, shape):
    assert pattern.misfit(torch.Size(shape))
    with pytest.raises(PruningError, match=r"divide|needs a matrix"):
        pattern.keep(torch.ones(shape), 0.0)


@pytest.mark.parametrize(
    ("pattern", "shape"), [(Block(4, 1), (8, 3)), (Block(1, 4), (3, 8)), (NofM(2, 4), (130, 8)), (Dense(), (7,))]
)
def test_divisible_shapes_fit(pattern, shape):
    assert pattern.misfit(torch.Size(shape)) is None


def test_dense_refuses_to_prune_at_all():
    with pytest.raises(PruningError, match="outside"):
        Dense().keep(torch.ones(4, 4), 0.25)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Block(0, 1),
        lambda: Block(4, -1),
        lambda: Block(4, 1, target_sparsity=0.0),
        lambda: Block(4, 1, target_sparsity=1.0),
        lambda: Block(4, 1, target_sparsity=80.0),
        lambda: NofM(4, 4),
        lambda: NofM(0, 4),
        lambda: NofM(2, 4, target_sparsity=0.8),
        lambda: Dense(target_sparsity=0.5),
    ],
)
def test_patterns_that_make_no_sense_are_refused(build):
    with pytest.raises(PruningError, match=r"pattern\."):
        build()


@pytest.mark.parametrize("written", [0.666667, 0.666666, None])
def test_a_rounded_target_of_nofm_means_every_group(written):
    pattern = NofM(1, 3, target_sparsity=written)
    assert round(pattern.unit_fraction(pattern.target) * 30_000_000) == 30_000_000
    assert pattern.violations(nonzero_weight(torch.Size([2, 6])) * pattern.keep(torch.ones(2, 6), pattern.target)) == 0


@pytest.mark.parametrize(("pattern", "text"), [(Block(4, 1), "4x1"), (NofM(2, 4), "2:4"), (Dense(), "dense")])
def test_names(pattern, text):
    assert str(pattern) == text
