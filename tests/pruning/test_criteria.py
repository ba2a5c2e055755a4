"""Criteria against their papers' equations, written out over single numbers; and what they keep in memory."""

import math
import re
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import (
    OBS,
    Block,
    Calibrated,
    CalibratedFisher,
    CalibratedSnip,
    Calibration,
    Criterion,
    DiagonalFisher,
    Gradient,
    Magnitude,
    Movement,
    NofM,
    Plan,
    Platon,
    PruningError,
    Random,
    Snip,
    SnipMomentum,
    Wanda,
    matrix_weights,
)
from pruning.criteria import REDUCTIONS, Layer

PROPERTY = settings(deadline=None, derandomize=True, max_examples=25)


def concrete(base: type) -> list[type]:
    """All subclasses, at any depth, that are not there for other classes only."""
    found = []
    for cls in base.__subclasses__():
        found += concrete(cls)
        if cls is not Calibrated and not cls.__name__.startswith("_") and cls.__module__.startswith("pruning"):
            found.append(cls)
    return found


CONCRETE = concrete(Criterion)


# --- the equations: (criterion, [(w, g) of a block's weights at each step], Adam's v of them, reduction) -> score ----


def magnitude(criterion, history, moments, reduce):
    return reduce([abs(w) for w, _ in history[-1]])


def gradient(criterion, history, moments, reduce):
    return reduce([abs(g) for _, g in history[-1]])


def snip(criterion, history, moments, reduce):
    """Without the normalisation, which the next but one test puts back."""
    return reduce([abs(w * g) for w, g in history[-1]])


def snip_momentum(criterion, history, moments, reduce):
    """S <- momentum * S + scale * |w * g|."""
    score = 0.0
    for step in history:
        score = criterion.momentum * score + criterion.scale * reduce([abs(w * g) for w, g in step])
    return score


def movement(criterion, history, moments, reduce):
    """S = - sum over t of w_t * dL/dw_t: Sanh et al. 2020, equation in section 4, without its learning rate."""
    return sum(reduce([-(w * g) for w, g in step]) for step in history)


def platon(criterion, history, moments, reduce):
    """Zhang et al. 2022: I_t, its mean over time, |I - mean I| and the mean of that over time, their product."""
    smooth_i = smooth_u = 0.0
    for step in history:
        i = reduce([abs(w * g) for w, g in step])
        smooth_i = criterion.beta1 * smooth_i + (1 - criterion.beta1) * i
        u = abs(i - smooth_i)
        smooth_u = criterion.beta2 * smooth_u + (1 - criterion.beta2) * u
    return smooth_i * smooth_u


def diagonal_fisher(criterion, history, moments, reduce):
    """w^2 * h with h the mean of g^2, twice LeCun et al. 1989, equation 5."""
    return reduce([w * w * v for (w, _), v in zip(history[-1], moments, strict=True)])


EQUATIONS = {
    Magnitude: magnitude,
    Gradient: gradient,
    Snip: snip,
    SnipMomentum: snip_momentum,
    Movement: movement,
    Platon: platon,
    DiagonalFisher: diagonal_fisher,
}
# (|w|, norm of the weight's input, g of each batch) -> score, on calibration data
CALIBRATED = {
    Wanda: lambda w, norm, gs: w * norm,
    CalibratedSnip: lambda w, norm, gs: sum(abs(w * g) for g in gs),
    CalibratedFisher: lambda w, norm, gs: w * w * sum(g * g for g in gs),
}
MEMORY = {  # numbers per block, or per weight under N:M
    Magnitude: 0,
    Gradient: 1,
    Snip: 1,
    SnipMomentum: 1,
    Movement: 1,
    Platon: 2,
    DiagonalFisher: 0,
    Random: 1,
}
REDUCE = {"mean": lambda values: sum(values) / len(values), "sum": sum, "max": max}


def test_all_criteria_are_found_and_have_their_equation_here():
    """A new criterion has to be added to the tables; Random has no equation, that of OBS is in second_order/."""
    assert len(CONCRETE) == len(set(CONCRETE)) == 12
    assert {cls for cls in CONCRETE if not cls.needs_calibration} == EQUATIONS.keys() | {Random} == MEMORY.keys()
    assert {cls for cls in CONCRETE if cls.needs_calibration} == CALIBRATED.keys() | {OBS}
    assert REDUCE.keys() == REDUCTIONS.keys()


def steps(count, shape, seed):
    """Weights and gradients of some optimizer steps."""
    random = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=random), torch.randn(shape, generator=random)) for _ in range(count)]


def second_moment(shape, seed):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1))


def observed(criterion, pattern, seen):
    """The state after these optimizer steps, as the pruner makes it."""
    state = {}
    if criterion.needs_gradient:
        for weight, gradient in seen:
            criterion.accumulate(state, pattern.pool(criterion.observation(weight, gradient), criterion.reduction))
    return state


def layer(criterion, pattern, weight, state=None, moment=None, name="layer"):
    pool = partial(pattern.pool, reduction=criterion.reduction)
    return Layer(name, weight, {} if state is None else state, moment, pool)


def transcribed(criterion, pattern, seen, moment):
    """The scores by the equation, one block, or one weight under N:M, after the other."""
    shape = seen[0][0].shape
    rows, cols = (1, 1) if isinstance(pattern, NofM) else (pattern.rows or shape[0], pattern.cols or shape[1])
    history = [(weight.tolist(), gradient.tolist()) for weight, gradient in seen]
    moments = moment.tolist()
    scores = []
    for top in range(0, shape[0], rows):
        scores.append([])
        for left in range(0, shape[1], cols):
            places = [(i, j) for i in range(top, top + rows) for j in range(left, left + cols)]
            of_block = [[(weight[i][j], gradient[i][j]) for i, j in places] for weight, gradient in history]
            of_moments = [moments[i][j] for i, j in places]
            equation = EQUATIONS[type(criterion)]
            scores[-1].append(equation(criterion, of_block, of_moments, REDUCE[criterion.reduce]))
    return torch.tensor(scores)


def constants(cls):
    """Criteria of this class with various constants."""
    reduce = st.sampled_from([*REDUCE])
    if cls is SnipMomentum:
        momenta, scales = st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from([1.0, 0.1])
        return st.builds(cls, momenta, scales, reduce=reduce)
    if cls is Platon:
        return st.builds(cls, st.sampled_from([0.3, 0.85]), st.sampled_from([0.0, 0.5, 0.95]), reduce=reduce)
    return st.builds(cls, reduce=reduce)


PATTERNS = [Block(1, 1), Block(4, 1), Block(1, 4), Block(2, 3), Block(1, 0), Block(0, 1), NofM(2, 4), NofM(1, 3)]


@pytest.mark.parametrize("cls", EQUATIONS)
@settings(PROPERTY, max_examples=60)
@given(data=st.data(), pattern=st.sampled_from(PATTERNS), count=st.integers(1, 6), seed=st.integers(0, 100))
def test_a_criterion_is_its_equation(cls, data, pattern, count, seed):
    """Block by block, the reduction first; under N:M weight by weight, whatever the reduction."""
    criterion = data.draw(constants(cls))
    seen, moment = steps(count, (4, 12), seed), second_moment((4, 12), seed)
    state = observed(criterion, pattern, seen)
    score = criterion.saliency(layer(criterion, pattern, seen[-1][0], state, moment))
    assert score is not None
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, transcribed(criterion, pattern, seen, moment), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", CALIBRATED)
def test_a_calibrated_criterion_is_its_equation(cls):
    torch.manual_seed(0)
    model, batches = torch.nn.Linear(3, 2), [torch.randn(4, 3) for _ in range(3)]
    calibration = Calibration(model, batches, lambda batch, chance: model(batch).square().sum())
    (scores,) = cls().scores(calibration, Plan(matrix_weights(model), Block(1, 1, target_sparsity=0.5))).values()
    gradients = [torch.autograd.grad(model(x).square().sum(), model.weight)[0].tolist() for x in batches]
    norms = (torch.cat(batches).square().sum(0) / 12).sqrt().tolist()  # the mean: one factor for all weights
    expected = [
        [CALIBRATED[cls](abs(w), norms[j], [g[i][j] for g in gradients]) for j, w in enumerate(row)]
        for i, row in enumerate(model.weight.tolist())
    ]
    torch.testing.assert_close(scores, torch.tensor(expected), rtol=1e-4, atol=1e-5)


@PROPERTY
@given(seed=st.integers(0, 100))
def test_snip_ranks_as_with_its_normalisation(seed):
    (weight, gradient), *_ = steps(1, (4, 4), seed)
    criterion = Snip()
    score = criterion.saliency(
        layer(criterion, NofM(2, 4), weight, observed(criterion, NofM(2, 4), [(weight, gradient)]))
    )
    total = float((weight * gradient).abs().sum())
    normalised = [
        [abs(float(w) * float(g)) / total for w, g in zip(*rows, strict=True)]
        for rows in zip(weight, gradient, strict=True)
    ]
    assert score is not None
    torch.testing.assert_close(score / score.sum(), torch.tensor(normalised))
    assert torch.equal(score.flatten().argsort(), torch.tensor(normalised).flatten().argsort())


@PROPERTY
@given(seed=st.integers(0, 100), count=st.integers(1, 4))
def test_snip_is_snip_momentum_without_memory(seed, count):
    seen, pattern = steps(count, (4, 4), seed), Block(2, 2)
    now, without = Snip(), SnipMomentum(momentum=0.0)
    first = now.saliency(layer(now, pattern, seen[-1][0], observed(now, pattern, seen)))
    second = without.saliency(layer(without, pattern, seen[-1][0], observed(without, pattern, seen)))
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


@pytest.mark.parametrize("reduce", REDUCE)
@pytest.mark.parametrize(
    ("pattern", "units"), [(Block(4, 1), 24), (Block(1, 0), 8), (Block(0, 1), 12), (NofM(2, 4), 96)]
)
@pytest.mark.parametrize("cls", MEMORY)
def test_memory_is_what_the_docstring_says(cls, pattern, units, reduce):
    criterion = cls(reduce=reduce)
    state = observed(criterion, pattern, steps(3, (8, 12), 0))
    score = criterion.saliency(layer(criterion, pattern, torch.ones(8, 12), state, torch.ones(8, 12)))
    assert score is not None
    assert score.numel() == units
    assert sum(tensor.numel() for tensor in state.values()) == MEMORY[cls] * units
    assert all(tensor.untyped_storage().nbytes() == 4 * units for tensor in state.values())
    claim = re.search(r"Memory: (none|one number|two numbers)", cls.__doc__)
    assert claim is not None
    assert claim[1] == ["none", "one number", "two numbers"][MEMORY[cls]]


@pytest.mark.parametrize("cls", MEMORY)
def test_weights_gradients_and_moments_are_left_alone(cls):
    criterion, pattern = cls(), Block(1, 1)  # of which pooling may be the tensor itself
    seen, moment = steps(3, (4, 4), 0), second_moment((4, 4), 0)
    before = [(weight.clone(), gradient.clone()) for weight, gradient in seen], moment.clone()
    state = observed(criterion, pattern, seen)
    for weight, _ in seen:
        criterion.saliency(layer(criterion, pattern, weight, state, moment))
    for (weight, gradient), (weight_before, gradient_before) in zip(seen, before[0], strict=True):
        assert torch.equal(weight, weight_before)
        assert torch.equal(gradient, gradient_before)
    assert torch.equal(moment, before[1])


@pytest.mark.parametrize("cls", MEMORY)
def test_asking_for_the_scores_changes_none(cls):
    criterion, pattern = cls(), Block(2, 1)
    seen, moment = steps(3, (4, 4), 0), second_moment((4, 4), 0)
    state = observed(criterion, pattern, seen)
    first = criterion.saliency(layer(criterion, pattern, seen[-1][0], state, moment)).clone()
    kept = {name: tensor.clone() for name, tensor in state.items()}
    assert torch.equal(first, criterion.saliency(layer(criterion, pattern, seen[-1][0], state, moment)))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())


@pytest.mark.parametrize("cls", [cls for cls in MEMORY if cls.needs_gradient or cls.needs_second_moment])
def test_nothing_is_known_before_the_first_gradient(cls):
    criterion = cls()
    assert criterion.saliency(layer(criterion, Block(4, 1), torch.ones(4, 4))) is None


def test_what_each_criterion_asks_for():
    assert {cls for cls in CONCRETE if cls.needs_gradient} == {SnipMomentum, Gradient, Snip, Movement, Platon}
    assert {cls for cls in CONCRETE if cls.needs_second_moment} == {DiagonalFisher}


def test_movement_is_high_where_weights_move_away_from_zero():
    """A step against the gradient makes the first larger, the second smaller; both directions of sign."""
    weight, gradient = torch.tensor([[2.0, 2.0, -2.0, -2.0]]), torch.tensor([[-1.0, 1.0, 1.0, -1.0]])
    criterion = Movement()
    state = observed(criterion, Block(1, 1), [(weight, gradient)])
    score = criterion.saliency(layer(criterion, Block(1, 1), weight, state))
    assert score is not None
    assert score.tolist() == [[2.0, -2.0, 2.0, -2.0]]


def test_magnitude_ignores_the_sign():
    weight = torch.tensor([[-3.0, 1.0, -2.0, 0.5]])
    score = Magnitude().saliency(layer(Magnitude(), NofM(2, 4), weight))
    assert score is not None
    assert score.tolist() == [[3.0, 1.0, 2.0, 0.5]]


@pytest.mark.parametrize("cls", [Magnitude, DiagonalFisher])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_scores_of_weights_of_less_precision_are_float32(cls, dtype):
    criterion, pattern = cls(), Block(2, 1)
    weight = steps(1, (4, 6), 0)[0][0].to(dtype)
    moment = second_moment((4, 6), 0).to(dtype)
    score = criterion.saliency(layer(criterion, pattern, weight, moment=moment))
    assert score is not None
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, transcribed(criterion, pattern, [(weight, weight)], moment))


# --- the random control ----------------------------------------------------------------------------------------------


def random_scores(seed=0, name="layer", shape=(8, 12), pattern=None, state=None):
    score = Random(seed).saliency(layer(Random(seed), pattern or NofM(2, 4), torch.ones(shape), state, name=name))
    assert score is not None
    return score


def test_random_is_the_same_each_time_and_kept():
    state: dict[str, torch.Tensor] = {}
    first = random_scores(state=state)
    assert torch.equal(first, random_scores())
    assert torch.equal(first, random_scores(state=state))
    assert state.keys() == {"score"}
    state["score"] = torch.zeros(8, 12)  # after a resume it is what was saved that counts
    assert torch.equal(random_scores(state=state), torch.zeros(8, 12))


def test_random_differs_by_seed_and_layer_and_not_by_the_generator_of_torch():
    torch.manual_seed(1)
    first = random_scores()
    before = torch.random.get_rng_state()
    assert not torch.equal(first, random_scores(seed=1))
    assert not torch.equal(first, random_scores(name="other"))
    torch.manual_seed(2)
    assert torch.equal(first, random_scores())
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("pattern", "shape"), [(Block(4, 1), (2, 12)), (Block(1, 0), (8, 1)), (NofM(2, 4), (8, 12))])
def test_random_scores_are_spread_over_zero_to_one(pattern, shape):
    score = random_scores(pattern=pattern)
    assert score.shape == shape
    assert len(set(score.flatten().tolist())) == score.numel()
    assert bool(((score >= 0) & (score < 1)).all())
    assert 0.2 < float(random_scores(shape=(64, 64)).mean()) < 0.8


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", MEMORY)
@pytest.mark.parametrize("reduce", ["median", "", "Mean"])
def test_an_unknown_reduction_is_refused_and_the_known_are_named(cls, reduce):
    with pytest.raises(PruningError, match=rf"^reduce='{reduce}' must be one of mean, sum, max"):
        cls(reduce=reduce)


@pytest.mark.parametrize(
    ("momentum", "scale"), [(1.0, 1.0), (-0.1, 1.0), (0.9, 0.0), (0.9, -1.0), (math.nan, 1.0), (0.9, math.nan)]
)
def test_constants_of_snip_momentum_that_make_no_sense_are_refused(momentum, scale):
    with pytest.raises(PruningError, match=r"^momentum=.* must be in \[0, 1\) and scale=.* must be above 0"):
        SnipMomentum(momentum, scale)


@pytest.mark.parametrize(("beta1", "beta2"), [(1.0, 0.5), (-0.1, 0.5), (0.5, 1.0), (0.5, -0.1), (math.nan, 0.5)])
def test_constants_of_platon_that_make_no_sense_are_refused(beta1, beta2):
    with pytest.raises(PruningError, match=r"^beta1=.* must be in \(0, 1\) and beta2=.* in \[0, 1\)"):
        Platon(beta1, beta2)


def test_platon_needs_some_smoothing_to_be_uncertain_at_all():
    with pytest.raises(PruningError, match=r"^beta1=0"):
        Platon(beta1=0.0)
