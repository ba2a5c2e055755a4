"""Patterns: every concrete class is found and put through the same properties; the known ones also against loops."""

import functools
import inspect
import itertools
import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from pruning import Block, Dense, FeedForward, Heads, Locked, NofM, Pattern, PruningError, Structured, parse

PROPERTY = settings(deadline=None, derandomize=True, max_examples=60)
SMALL_SHAPES = [torch.Size(shape) for shape in itertools.product(range(1, 25), repeat=2) if shape[0] * shape[1] <= 240]


def concrete(base: type) -> list[type]:
    """All subclasses, at any depth, that implement the whole of a pattern."""
    found = []
    for cls in base.__subclasses__():
        found += concrete(cls)
        if "__str__" in vars(cls) and cls.__module__.startswith("pruning"):
            found.append(cls)
    return found


PATTERNS = concrete(Pattern)
COUPLED = {"FeedForward": FeedForward, "Heads": Heads, "Structured": Structured}
"""Those whose units are rows of a matrix that is put together from several: test_coupled.py."""


def test_all_concrete_patterns_are_found():
    assert {cls.__name__ for cls in PATTERNS} == {"Block", "NofM", "Dense", "Locked", *COUPLED}
    assert len(PATTERNS) == len(set(PATTERNS)) == 4 + len(COUPLED)
    assert not any(inspect.isabstract(cls) for cls in PATTERNS)


TARGETS = st.one_of(st.sampled_from([0.5, 0.8, 0.9]), st.floats(0.01, 0.98))


@st.composite
def any_block(draw):
    rows = draw(st.integers(0, 6))
    return Block(rows, draw(st.integers(0 if rows else 1, 6)), target_sparsity=draw(TARGETS))


@st.composite
def any_nofm(draw):
    m = draw(st.integers(2, 16))
    n = draw(st.integers(1, m - 1))
    share = draw(st.sampled_from([None, 0.3, 0.75]))
    return NofM(n, m) if share is None else NofM(n, m, mix=True, target_sparsity=share * (m - n) / m)


# A new pattern has to be added here.
ANY = {Block: any_block(), NofM: any_nofm(), Dense: st.just(Dense()), Locked: st.just(Locked())}
ANY |= {cls: st.builds(cls, target_sparsity=TARGETS) for cls in COUPLED.values()}


def patterns(cls):
    """Any pattern of this class."""
    return ANY[cls]


@functools.cache
def fitting_shapes(text: str) -> list[torch.Size]:
    pattern = parse(text)
    return [shape for shape in SMALL_SHAPES if pattern.misfit(shape) is None]


def shapes_of(pattern: Pattern) -> list[torch.Size]:
    return fitting_shapes(str(pattern).removesuffix(" mix"))


EXACT = ("random", "tied", "equal", "zero", "signed", "huge", "nan")
"""Sums of a unit are exact in float32 and in Python: ties are the same in both."""
KINDS = (*EXACT, "overflowing", "overflowing signed")


def saliencies(kind: str, shape: torch.Size, seed: int) -> torch.Tensor:
    """Scores of every sort: those of most criteria are not negative, those of Movement are of either sign."""
    random = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(shape.numel(), generator=random).reshape(shape).float()
    match kind:
        case "random":
            return ranks
        case "tied":
            return torch.randint(0, 3, shape, generator=random).float()
        case "equal":
            return torch.full(shape, 0.5)
        case "zero":
            return torch.zeros(shape)
        case "signed":
            return ranks - shape.numel() // 2
        case "huge":
            return torch.randint(0, 100, shape, generator=random).float() * 2.0**110
        case "nan":
            return ranks.masked_fill(torch.rand(shape, generator=random) < 0.2, math.nan)
        case "overflowing":
            return torch.rand(shape, generator=random).round() * torch.finfo(torch.float32).max
        case "overflowing signed":
            return (torch.randint(-1, 2, shape, generator=random)) * torch.finfo(torch.float32).max
    raise AssertionError(kind)


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


def units_in(pattern: Pattern, shape: torch.Size) -> int:
    return shape.numel() // pattern.unit_size(shape)


def units_to_prune(pattern: Pattern, shape: torch.Size, sparsity: float) -> int:
    return round(pattern.unit_fraction(sparsity) * units_in(pattern, shape))


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
        zeros = pattern.unit_zeros(saliency.shape)
        assert int((~keep).sum()) == pruned * zeros
        # In weights: within half a unit of what was asked for.
        assert abs(int((~keep).sum()) - sparsity * saliency.numel()) <= zeros / 2 + 1e-6

    @PROPERTY
    @given(data=st.data())
    def test_nothing_goes_at_zero_and_every_unit_at_the_maximum(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls))
        assert bool(pattern.keep(saliency, 0.0).all())
        keep = pattern.keep(saliency, pattern.max_sparsity)
        assert int((~keep).sum()) == units_in(pattern, saliency.shape) * pattern.unit_zeros(saliency.shape)
        assert pattern.violations(nonzero_weight(saliency.shape) * keep) == 0

    @PROPERTY
    @given(data=st.data())
    def test_its_own_target_can_be_kept_without_violations_but_those_meant(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls))
        keep = pattern.keep(saliency, pattern.target)
        pruned = units_to_prune(pattern, saliency.shape, pattern.target)
        assert int((~keep).sum()) == pruned * pattern.unit_zeros(saliency.shape)
        meant = pattern.open_units(units_in(pattern, saliency.shape), pruned)
        assert pattern.violations(nonzero_weight(saliency.shape) * keep) == meant
        assert meant == 0 or isinstance(pattern, NofM)

    @PROPERTY
    @given(data=st.data())
    def test_keep_is_deterministic_and_leaves_the_saliency_alone(self, cls, data):
        pattern, saliency, sparsity = data.draw(cases(cls))
        before = saliency.clone()
        first = pattern.keep(saliency, sparsity)
        assert torch.equal(first, pattern.keep(saliency.clone(), sparsity))
        torch.testing.assert_close(saliency, before, rtol=0, atol=0, equal_nan=True)
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
            assert shape.numel() % pattern.unit_size(shape) == 0
            assert pattern.unit_zeros(shape) <= pattern.unit_size(shape)
            assert pattern.keep(torch.ones(shape), 0.0).shape == shape
        else:
            with pytest.raises(PruningError) as refusal:
                pattern.keep(torch.ones(shape), 0.0)
            assert str(refusal.value) == reason

    @PROPERTY
    @given(data=st.data())
    def test_pooling_is_linear_and_as_small_as_what_losers_cost_and_mask_take(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls, ("random", "tied")))
        other = saliencies("tied", saliency.shape, 7)
        for reduction in (torch.mean, torch.sum):
            together = pattern.pool(0.5 * saliency + 2 * other, reduction)
            apart = 0.5 * pattern.pool(saliency, reduction) + 2 * pattern.pool(other, reduction)
            torch.testing.assert_close(together, apart)
        score = pattern.pool(saliency)
        losers = pattern.losers(score)
        assert losers.shape == score.shape
        assert pattern.cost(score, losers).shape == (units_in(pattern, saliency.shape),)
        assert score.numel() in (saliency.numel(), units_in(pattern, saliency.shape))

    @PROPERTY
    @given(data=st.data())
    def test_its_name_read_again_is_the_same_pattern(self, cls, data):
        pattern = data.draw(patterns(cls))
        again = parse(str(pattern), pattern.target or None)
        assert type(again) is cls
        assert again == pattern
        assert str(again) == str(pattern)

    @PROPERTY
    @given(data=st.data())
    def test_pooling_does_not_mind_how_the_memory_lies(self, cls, data):
        pattern, saliency, _ = data.draw(cases(cls, ("random",)))
        turned = saliency.t().contiguous().t()
        for reduction in (torch.mean, torch.sum, torch.amax):
            assert torch.equal(pattern.pool(turned, reduction), pattern.pool(saliency, reduction))


# --- naive transcriptions of the definitions, one element at a time --------------------------------------------------


def blocks(rows: int, cols: int, shape: torch.Size) -> list[list[tuple[int, int]]]:
    """The places of each block, blocks in reading order."""
    return [
        [(i, j) for i in range(top, top + rows) for j in range(left, left + cols)]
        for top in range(0, shape[0], rows)
        for left in range(0, shape[1], cols)
    ]


def blocks_of(pattern: Block, shape: torch.Size) -> list[list[tuple[int, int]]]:
    return blocks(pattern.rows or shape[0], pattern.cols or shape[1], shape)


def as_rank(value: float) -> float:
    """NaN is dearer than any number."""
    return math.inf if math.isnan(value) else value


def block_keep(pattern: Block, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
    values = saliency.tolist()
    units = blocks_of(pattern, saliency.shape)
    order = sorted(range(len(units)), key=lambda unit: (as_rank(sum(values[i][j] for i, j in units[unit])), unit))
    keep = torch.ones(saliency.shape, dtype=torch.bool)
    for unit in order[: round(sparsity * len(units))]:
        for i, j in units[unit]:
            keep[i, j] = False
    return keep


def block_violations(pattern: Block, weight: torch.Tensor) -> int:
    units = blocks_of(pattern, weight.shape)
    return sum(len({float(weight[place]) == 0 for place in unit}) == 2 for unit in units)


def nofm_keep(pattern: NofM, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
    values = [[as_rank(value) for value in row] for row in saliency.tolist()]
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


def all_kept(pattern: Pattern, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
    return torch.ones(saliency.shape, dtype=torch.bool)


def row_keep(pattern: Pattern, saliency: torch.Tensor, sparsity: float) -> torch.Tensor:
    return block_keep(Block(1, 0), saliency, sparsity)


def row_violations(pattern: Pattern, weight: torch.Tensor) -> int:
    return block_violations(Block(1, 0), weight)


KEEP = {Block: block_keep, NofM: nofm_keep, Dense: all_kept, Locked: all_kept}
KEEP |= dict.fromkeys(COUPLED.values(), row_keep)
VIOLATIONS = {
    Block: block_violations,
    NofM: nofm_violations,
    Dense: lambda pattern, weight: 0,
    Locked: lambda pattern, weight: 0,
} | dict.fromkeys(COUPLED.values(), row_violations)


def test_every_pattern_has_its_definition_here():
    assert KEEP.keys() == VIOLATIONS.keys() == ANY.keys() == set(PATTERNS)


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


REDUCTIONS = {torch.mean: lambda values: sum(values) / len(values), torch.sum: sum, torch.amax: max}


@PROPERTY
@given(data=st.data(), reduction=st.sampled_from([*REDUCTIONS]))
def test_pooling_reduces_each_block_and_leaves_groups_alone(data, reduction):
    pattern, saliency, _ = data.draw(cases(Block, ("random", "tied", "signed")))
    values = saliency.tolist()
    expected = [REDUCTIONS[reduction]([values[i][j] for i, j in unit]) for unit in blocks_of(pattern, saliency.shape)]
    torch.testing.assert_close(pattern.pool(saliency, reduction).flatten(), torch.tensor(expected))
    group, saliency, _ = data.draw(cases(NofM, ("random", "signed")))
    assert torch.equal(group.pool(saliency, reduction), saliency)


@settings(PROPERTY, max_examples=150)
@given(data=st.data())
def test_losers_of_a_group_are_its_lowest_and_cost_their_sum(data):
    pattern, saliency, _ = data.draw(cases(NofM, EXACT))
    losers = pattern.losers(saliency)
    cost = pattern.cost(saliency, losers).tolist()
    assert losers.dtype == torch.bool
    for unit, group in enumerate(blocks(1, pattern.m, saliency.shape)):
        lowest = sorted(group, key=lambda at: (as_rank(float(saliency[at])), at))[: pattern.m - pattern.n]
        assert [at for at in group if losers[at]] == sorted(lowest)
        assert as_rank(cost[unit]) == sum(as_rank(float(saliency[at])) for at in lowest)


@pytest.mark.parametrize("m", [2, 3, 4, 8, 15, 16])
def test_losers_for_every_n_with_infinities_and_ties(m):
    """Also what was pruned before, at -inf, always loses again."""
    choices = torch.tensor([-math.inf, -1.0, 0.0, -0.0, 0.0, 2.0, math.inf, math.nan])
    score = choices[torch.randint(0, len(choices), (8, 4 * m), generator=torch.Generator().manual_seed(m))]
    for n in range(1, m):
        losers = NofM(n, m).losers(score)
        assert bool((losers.reshape(-1, m).sum(dim=1) == m - n).all())
        for group in blocks(1, m, score.shape):
            order = sorted(group, key=lambda at: (as_rank(float(score[at])), at))
            assert [at for at in group if losers[at]] == sorted(order[: m - n])


@PROPERTY
@given(data=st.data())
def test_violations_find_each_weight_revived_in_a_pruned_block(data):
    pattern, saliency, _ = data.draw(cases(Block, ("random",)))
    assume(pattern.unit_size(saliency.shape) > 1)
    units = blocks_of(pattern, saliency.shape)
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
    groups, pruned = saliency.numel() // pattern.m, units_to_prune(pattern, saliency.shape, sparsity)
    assert pattern.violations(weight) == groups - pruned
    assert pattern.open_units(groups, pruned) == (groups - pruned if pattern.mix else 0)


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
    ("pattern", "shape"),
    [
        (Block(4, 1), (8, 3)),
        (Block(1, 4), (3, 8)),
        (Block(1, 0), (3, 7)),
        (Block(0, 1), (3, 7)),
        (Block(3, 0), (9, 7)),
        (NofM(2, 4), (130, 8)),
        (NofM(1, 16), (1, 16)),
        (Dense(), (7,)),
        (Locked(), (7, 2, 3)),
    ],
)
def test_divisible_shapes_fit(pattern, shape):
    assert pattern.misfit(torch.Size(shape)) is None


@pytest.mark.parametrize(
    ("pattern", "shape", "size", "zeros"),
    [
        (Block(4, 1), (8, 6), 4, 4),
        (Block(1, 0), (8, 6), 6, 6),
        (Block(0, 1), (8, 6), 8, 8),
        (Block(0, 3), (8, 6), 24, 24),
        (Block(2, 0), (8, 6), 12, 12),
        (NofM(2, 4), (8, 8), 4, 2),
        (NofM(1, 16), (8, 16), 16, 15),
        (NofM(1, 3, mix=True, target_sparsity=0.5), (8, 6), 3, 2),
        (Dense(), (8, 6), 1, 0),
        (Locked(), (8, 6), 1, 0),
    ],
)
def test_how_large_a_unit_is_and_how_much_of_it_goes(pattern, shape, size, zeros):
    assert pattern.unit_size(torch.Size(shape)) == size
    assert pattern.unit_zeros(torch.Size(shape)) == zeros


def test_whole_rows_are_output_channels_and_whole_columns_input_channels():
    saliency = torch.tensor([[1.0, 9.0, 1.0], [2.0, 8.0, 2.0], [9.0, 9.0, 9.0]])
    assert Block(1, 0).keep(saliency, 1 / 3).tolist() == [[False] * 3, [True] * 3, [True] * 3]
    assert Block(0, 1).keep(saliency, 1 / 3).tolist() == [[False, True, True]] * 3


@pytest.mark.parametrize(("pattern", "shape"), [(Block(0, 1), (50_001, 2)), (Block(1, 0), (2, 50_001))])
def test_one_weight_revived_in_a_long_row_or_column_is_seen(pattern, shape):
    weight = torch.zeros(shape)
    weight[0, 0] = 1.0
    assert pattern.violations(weight) == 1
    weight = torch.ones(shape)
    weight[0, 0] = -0.0
    assert pattern.violations(weight) == 1
    assert pattern.violations(torch.ones(shape)) == 0
    assert pattern.violations(torch.zeros(shape)) == 0


@pytest.mark.parametrize("pattern", [Block(0, 1), Block(1, 0), Block(4, 1), NofM(2, 4)])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_an_empty_matrix_is_no_error(pattern, shape):
    reason = pattern.misfit(torch.Size(shape))
    assert reason is None or "divide" in reason


@pytest.mark.parametrize("pattern", [Dense(), Locked()])
def test_patterns_that_choose_nothing_refuse_to_prune_at_all(pattern):
    assert not pattern.prunes
    assert pattern.locks == isinstance(pattern, Locked)
    with pytest.raises(PruningError, match="outside"):
        pattern.keep(torch.ones(4, 4), 0.25)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Block(0, 0),
        lambda: Block(-1, 1),
        lambda: Block(4, -1),
        lambda: Block(4, 1, target_sparsity=0.0),
        lambda: Block(4, 1, target_sparsity=1.0),
        lambda: Block(4, 1, target_sparsity=80.0),
        lambda: Block(4, 1, target_sparsity=math.nan),
        lambda: NofM(4, 4),
        lambda: NofM(5, 4),
        lambda: NofM(0, 4),
        lambda: NofM(2, 4, target_sparsity=0.8),
        lambda: NofM(2, 4, target_sparsity=0.3),
        lambda: NofM(2, 4, mix=True, target_sparsity=0.8),
        lambda: NofM(2, 4, mix=True, target_sparsity=0.0),
        lambda: NofM(2, 4, mix=True, target_sparsity=math.nan),
        lambda: Dense(target_sparsity=0.5),
        lambda: Locked(target_sparsity=0.5),
    ],
)
def test_patterns_that_make_no_sense_are_refused(build):
    with pytest.raises(PruningError, match=r"^(rows|n|target_sparsity)="):
        build()


@pytest.mark.parametrize("written", [0.666667, 0.666666, None])
@pytest.mark.parametrize("mix", [False, True])
def test_a_rounded_target_of_nofm_means_every_group(written, mix):
    pattern = NofM(1, 3, mix, target_sparsity=written)
    assert round(pattern.unit_fraction(pattern.target) * 30_000_000) == 30_000_000
    assert pattern.violations(nonzero_weight(torch.Size([2, 6])) * pattern.keep(torch.ones(2, 6), pattern.target)) == 0


# --- names -----------------------------------------------------------------------------------------------------------

NAMED = [
    (Block(4, 1), "4x1"),
    (Block(1, 4), "1x4"),
    (Block(1, 1), "1x1"),
    (Block(16, 32), "16x32"),
    (Block(1, 0), "rows"),
    (Block(0, 1), "columns"),
    (Block(2, 0), "2xall"),
    (Block(0, 4), "allx4"),
    (NofM(2, 4), "2:4"),
    (NofM(1, 16), "1:16"),
    (NofM(2, 4, mix=True), "2:4 mix"),
    (Dense(), "dense"),
    (Locked(), "locked"),
]


@pytest.mark.parametrize(("pattern", "text"), NAMED)
def test_names(pattern, text):
    assert str(pattern) == text
    assert parse(text) == pattern


@pytest.mark.parametrize("text", ["1xall", "allx1"])
def test_rows_and_columns_may_be_written_out(text):
    assert str(parse(text)) == {"1xall": "rows", "allx1": "columns"}[text]


def test_a_target_is_taken_where_the_pattern_leaves_it_open():
    assert parse("4x1", 0.7) == Block(4, 1, target_sparsity=0.7)
    assert parse("columns", 0.3) == Block(0, 1, target_sparsity=0.3)
    assert parse("2:4 mix", 0.3) == NofM(2, 4, mix=True, target_sparsity=0.3)
    assert parse("2:4", 0.8).target == 0.5  # follows from n and m
    assert parse("dense", 0.8).target == 0
    assert parse("locked", 0.8).target == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "4x",
        "x1",
        "4x1x1",
        "4*1",
        "4 x 1",
        "2:",
        ":4",
        "2:4:8",
        "2:4 mixed",
        "-4x1",
        "Dense",
        "row",
        "all",
        "0x0",
        "0x1",
        "4x0",
    ],
)
def test_a_name_that_says_nothing_is_refused_with_those_that_do(text):
    with pytest.raises(PruningError, match=r"there is no pattern '.*': write 4x1, 2:4, rows, columns, dense or locked"):
        parse(text)


@pytest.mark.parametrize("text", ["allxall", "4:4", "5:4", "0:4", "2:4 mix"])
def test_a_name_of_a_pattern_that_makes_no_sense_is_refused(text):
    with pytest.raises(PruningError, match=r"^(rows|n|target_sparsity)="):
        parse(text, 0.9)
