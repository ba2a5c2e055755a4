"""Distillation losses against loops over single examples and tokens."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import (
    IGNORED,
    Distillation,
    EncoderShape,
    HiddenStates,
    Logits,
    LogitsHidden,
    NoDistillation,
    Prediction,
    Projector,
    PruningError,
    SimKD,
    averaged,
    label_loss,
    projected,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


def real_tokens(lengths, width):
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


@st.composite
def span_batches(draw):
    """Student, teacher, lengths: [batch, tokens] start and end logits, some of it padding."""
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    width = max(lengths) + draw(st.integers(0, 3))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tokens = real_tokens(lengths, width)
    spread = draw(st.sampled_from([0.1, 3.0, 30.0]))
    student, teacher = (
        Prediction(
            tuple(torch.randn(len(lengths), width, generator=random) * spread for _ in range(2)),
            choices=tokens,
            tokens=tokens,
            hidden=(torch.randn(len(lengths), width, 5, generator=random),),
        )
        for _ in range(2)
    )
    return student, teacher, lengths


def softened(logits, temperature):
    top = max(logits)
    weights = [math.exp((value - top) / temperature) for value in logits]
    return [weight / sum(weights) for weight in weights]


def kl(student, teacher, temperature):
    """Of one example, teacher against student, in nats."""
    pairs = zip(softened(teacher, temperature), softened(student, temperature), strict=True)
    return sum(p * math.log(p / q) for p, q in pairs if p > 0)


@PROPERTY
@given(batch=span_batches(), temperature=st.sampled_from([1.0, 2.0, 4.5]))
def test_logits_is_the_published_formula_over_real_tokens(batch, temperature):
    student, teacher, lengths = batch
    each = [
        0.5
        * sum(
            kl(s[row, :length].double().tolist(), t[row, :length].double().tolist(), temperature)
            for s, t in zip(student.logits, teacher.logits, strict=True)
        )
        * temperature**2
        for row, length in enumerate(lengths)
    ]
    loss = Logits(temperature=temperature).loss(student, teacher)
    assert loss.item() == pytest.approx(sum(each) / len(each), rel=1e-4, abs=1e-5)


@PROPERTY
@given(batch=span_batches(), more=st.integers(1, 20), junk=st.sampled_from([0.0, 5.0, -1e4, 1e4]))
def test_losses_do_not_depend_on_padding(batch, more, junk):
    student, teacher, lengths = batch

    def padded(prediction, value):
        rows, width = prediction.tokens.shape
        tokens = real_tokens(lengths, width + more)
        logits = tuple(torch.cat([x, torch.full((rows, more), value)], 1) for x in prediction.logits)
        hidden = torch.cat([prediction.hidden[-1], torch.full((rows, more, 5), value)], 1)
        return Prediction(logits, choices=tokens, tokens=tokens, hidden=(hidden,))

    for distillation in (Logits(), SimKD()):
        short = distillation.loss(student, teacher)
        long = distillation.loss(padded(student, junk), padded(teacher, -junk))
        torch.testing.assert_close(long, short, rtol=1e-4, atol=1e-6)


@PROPERTY
@given(batch=span_batches())
def test_an_example_has_the_same_loss_alone_and_in_a_batch(batch):
    student, teacher, lengths = batch
    alone = []
    for row, length in enumerate(lengths):
        one, other = (
            Prediction(tuple(x[row : row + 1, :length] for x in p.logits), None, p.tokens[row : row + 1, :length])
            for p in (student, teacher)
        )
        alone.append(Logits().loss(one, other))
    torch.testing.assert_close(Logits().loss(student, teacher), torch.stack(alone).mean(), rtol=1e-4, atol=1e-5)


@PROPERTY
@given(batch=span_batches())
def test_gradients_are_finite_and_zero_on_padding(batch):
    student, teacher, _ = batch
    hidden = student.hidden[-1]
    for logits in (*student.logits, hidden):
        logits.requires_grad_()
    (Logits().loss(student, teacher) + SimKD().loss(student, teacher)).backward()
    for leaf, padding in (*((x, ~student.tokens) for x in student.logits), (hidden, ~student.tokens)):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
        assert not bool(leaf.grad[padding].any())
    assert hidden.grad is not None
    assert bool(hidden.grad[student.tokens].any())


def test_the_gradient_pulls_the_student_to_the_teacher():
    student = torch.zeros(1, 3, requires_grad=True)
    everything = torch.ones(1, 3, dtype=torch.bool)
    teacher = Prediction((torch.tensor([[4.0, 0.0, 0.0]]),), None, everything)
    Logits(temperature=1.0).loss(Prediction((student,), None, everything), teacher).backward()
    p = softened([4.0, 0.0, 0.0], 1.0)
    assert student.grad is not None
    assert student.grad[0].tolist() == pytest.approx([1 / 3 - value for value in p], abs=1e-6)


@pytest.mark.parametrize("distillation", [Logits(), Logits(temperature=0.5), SimKD()])
@PROPERTY
@given(batch=span_batches())
def test_a_student_like_its_teacher_has_no_loss(distillation, batch):
    student, teacher, _ = batch
    assert distillation.loss(student, student).item() == 0
    assert distillation.loss(student, teacher).item() > 0 or all(n == 1 for n in batch[2])


def test_all_choices_are_real_for_a_classifier():
    everything = torch.ones(2, 6, dtype=torch.bool)
    student, teacher = (
        torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]]),
        torch.tensor([[3.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    )
    loss = Logits(temperature=2.0).loss(
        Prediction((student,), None, everything), Prediction((teacher,), None, everything)
    )
    expected = [kl(s, t, 2.0) * 4 for s, t in zip(student.tolist(), teacher.tolist(), strict=True)]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("temperature", [2.0, 3.0])
def test_half_precision_logits_are_compared_in_single_precision(temperature):
    everything = torch.ones(1, 3, dtype=torch.bool)
    student, teacher = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 2.0, 3.5]])
    distillation = Logits(temperature=temperature)
    exact = distillation.loss(Prediction((student,), None, everything), Prediction((teacher,), None, everything))
    half = distillation.loss(
        Prediction((student.bfloat16(),), everything, everything),
        Prediction((teacher.bfloat16(),), everything, everything),
    )
    assert half.dtype == torch.float32
    assert half.item() == exact.item()  # these logits are the same numbers in both


@PROPERTY
@given(batch=span_batches(), data=st.data())
def test_the_label_loss_is_the_cross_entropy_over_real_tokens(batch, data):
    student, _, lengths = batch
    rows = len(lengths)
    labels = [[data.draw(st.integers(0, length - 1)) for length in lengths] for _ in student.logits]
    each = [
        -math.log(max(softened(logits[row, :length].double().tolist(), 1.0)[label[row]], 1e-300))
        for logits, label in zip(student.logits, labels, strict=True)
        for row, length in enumerate(lengths)
    ]
    loss = label_loss(student, tuple(torch.tensor(label) for label in labels))
    assert loss.item() == pytest.approx(sum(each) / (2 * rows), rel=1e-4, abs=1e-5)


def test_a_teacher_with_another_number_of_heads_is_refused():
    everything = torch.ones(1, 3, dtype=torch.bool)
    one, two = (Prediction((torch.zeros(1, 3),) * heads, None, everything) for heads in (1, 2))
    with pytest.raises(ValueError, match="shorter"):
        Logits().loss(two, one)


@st.composite
def tagged_batches(draw):
    """Student, teacher, lengths: [batch, tokens, classes] logits, some of it padding."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    width, classes = max(lengths) + draw(st.integers(0, 3)), draw(st.integers(2, 4))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tokens = real_tokens(lengths, width)
    student, teacher = (
        Prediction((3 * torch.randn(len(lengths), width, classes, generator=random),), None, tokens) for _ in range(2)
    )
    return student, teacher, lengths


@PROPERTY
@given(batch=tagged_batches())
def test_a_head_that_answers_at_each_token_is_compared_at_the_real_ones(batch):
    student, teacher, lengths = batch
    each = [
        kl(student.logits[0][row, at].double().tolist(), teacher.logits[0][row, at].double().tolist(), 2.0) * 4
        for row, length in enumerate(lengths)
        for at in range(length)
    ]
    assert Logits().loss(student, teacher).item() == pytest.approx(sum(each) / len(each), rel=1e-4, abs=1e-5)
    assert student.real is not None
    assert student.real.sum().item() == sum(lengths) * student.logits[0].shape[-1]


@PROPERTY
@given(batch=tagged_batches(), data=st.data())
def test_the_label_loss_of_tokens_leaves_out_those_without_a_label(batch, data):
    student, _, lengths = batch
    classes = student.logits[0].shape[-1]
    labels = torch.full(student.tokens.shape, IGNORED)
    each = []
    for row, length in enumerate(lengths):
        for at in range(length):
            label = data.draw(st.sampled_from([IGNORED, *range(classes)])) if row or at else 0
            labels[row, at] = label
            if label != IGNORED:
                each.append(-math.log(softened(student.logits[0][row, at].double().tolist(), 1.0)[label]))
    assert label_loss(student, (labels,)).item() == pytest.approx(sum(each) / len(each), rel=1e-4, abs=1e-5)


@PROPERTY
@given(spans=span_batches(), tagged=tagged_batches(), data=st.data())
def test_examples_without_labels_count_with_a_loss_of_zero(spans, tagged, data):
    """Of n examples, k with labels: k / n times the loss of these alone."""
    for student, lengths in ((spans[0], spans[2]), (tagged[0], tagged[2])):
        known = torch.tensor([data.draw(st.booleans()) for _ in lengths])
        if student.logits[0].dim() == 2:
            labels = tuple(torch.tensor([data.draw(st.integers(0, n - 1)) for n in lengths]) for _ in student.logits)
        else:
            labels = (torch.where(student.tokens & known[:, None], 1, IGNORED),)
        alone = 0.0
        if known.any():
            choices = None if student.choices is None else student.choices[known]
            part = Prediction(tuple(each[known] for each in student.logits), choices, student.tokens[known])
            alone = label_loss(part, tuple(each[known] for each in labels)).item()
        share = known.float().mean().item()
        assert label_loss(student, labels, known).item() == pytest.approx(alone * share, rel=1e-4, abs=1e-5)
        if share == 1:
            assert label_loss(student, labels).item() == pytest.approx(alone, rel=1e-6)


def test_numbers_without_labels_count_with_a_loss_of_zero() -> None:
    student = Prediction((torch.tensor([[1.0], [2.0], [5.0]]),), None, torch.ones(3, 4, dtype=torch.bool), numbers=True)
    known, labels = torch.tensor([True, False, True]), torch.tensor([3.0, 0.0, 4.0])
    assert label_loss(student, (labels,), known).item() == pytest.approx((4 + 1) / 3)
    assert label_loss(student, (labels,), torch.zeros(3, dtype=torch.bool)).item() == 0


def test_a_batch_without_any_label_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    student = Prediction((logits,), None, torch.ones(2, 3, dtype=torch.bool))
    loss = label_loss(student, (torch.full((2, 3), IGNORED),))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not bool(logits.grad.any())


def test_numbers_are_compared_by_their_squared_error():
    everything = torch.ones(3, 4, dtype=torch.bool)
    student, teacher = (
        Prediction((torch.tensor(values)[:, None],), None, everything, numbers=True)
        for values in ([1.0, 2.0, 5.0], [1.0, 4.0, 2.0])
    )
    expected = (0 + 4 + 9) / 3
    assert Logits(temperature=3.0).loss(student, teacher).item() == pytest.approx(expected)
    assert label_loss(student, (torch.tensor([1.0, 4.0, 2.0]),)).item() == pytest.approx(expected)


@PROPERTY
@given(batch=span_batches())
def test_simkd_is_the_mean_squared_error_over_real_tokens(batch):
    student, teacher, lengths = batch
    errors = [
        (float(student.hidden[-1][row, token, k]) - float(teacher.hidden[-1][row, token, k])) ** 2
        for row, length in enumerate(lengths)
        for token in range(length)
        for k in range(5)
    ]
    assert SimKD().loss(student, teacher).item() == pytest.approx(sum(errors) / len(errors), rel=1e-4)


@st.composite
def layered_batches(draw):
    """Student of 2 layers and width 4, teacher of 3 layers and width 6, lengths: both with two attention heads."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    width = max(lengths) + draw(st.integers(0, 2))
    random = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    tokens = real_tokens(lengths, width)

    def said(layers, hidden):
        logits = tuple(torch.randn(len(lengths), width, generator=random) for _ in range(2))
        states = tuple(torch.randn(len(lengths), width, hidden, generator=random) for _ in range(layers + 1))
        scores = [3 * torch.randn(len(lengths), 2, width, width, generator=random) for _ in range(layers)]
        weights = tuple(each.masked_fill(~tokens[:, None, None, :], -math.inf).softmax(-1) for each in scores)
        return Prediction(logits, tokens, tokens, states, weights)

    return said(2, 4), said(3, 6), lengths


STUDENT, TEACHER = EncoderShape(layers=2, width=4, heads=2), EncoderShape(layers=3, width=6, heads=2)


def errors_of_states(student, teacher, lengths, projection):
    """Squared errors at the real tokens, by loops."""
    for row, length in enumerate(lengths):
        for at in range(length):
            for out in range(teacher.shape[-1]):
                parts = zip(projection.weight[out].tolist(), student[row, at].tolist(), strict=True)
                made = sum(w * x for w, x in parts) + projection.bias[out].item()
                yield (made - teacher[row, at, out].item()) ** 2


def divergences(student, teacher, lengths):
    """KL divergence of each head and real token, over the real tokens, by loops."""
    for row, length in enumerate(lengths):
        for head in range(student.shape[1]):
            for at in range(length):
                p, q = (x[row, head, at, :length].double().tolist() for x in (teacher, student))
                yield sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@PROPERTY
@given(batch=layered_batches(), layers=st.sampled_from([{}, {1: 2, 2: 3}, {0: 0, 2: 1}, {2: 3}]))
def test_hidden_states_and_attention_are_compared_layer_by_layer(batch, layers):
    student, teacher, lengths = batch
    how = HiddenStates(hidden_weight=2.0, attention_weight=3.0, logits_weight=0.5, layers=layers)
    torch.manual_seed(0)
    projections = how.projections(STUDENT, TEACHER)
    mapped = layers or {0: 0, 1: 2, 2: 3}  # 1 * 3 / 2 is rounded up
    assert projections.keys() == mapped.keys()
    hidden = [list(errors_of_states(student.hidden[s], teacher.hidden[t], lengths, projections[s]))
              for s, t in mapped.items()]  # fmt: skip
    attention = [list(divergences(student.attentions[s - 1], teacher.attentions[t - 1], lengths))
                 for s, t in mapped.items() if s]  # fmt: skip
    expected = 2.0 * sum(sum(each) / len(each) for each in hidden) / len(hidden)
    expected += 3.0 * sum(sum(each) / len(each) for each in attention) / len(attention)
    expected += 0.5 * Logits(temperature=2.0).loss(student, teacher).item()
    loss = how.loss(projected(student, projections), teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def variance_of_states(states, lengths):
    """Variance of all numbers at the real tokens, by lists."""
    numbers = [
        value for row, length in enumerate(lengths) for at in range(length) for value in states[row, at].tolist()
    ]
    mean = sum(numbers) / len(numbers)
    return sum((value - mean) ** 2 for value in numbers) / len(numbers)


@PROPERTY
@given(batch=layered_batches(), layers=st.sampled_from([{}, {1: 2, 2: 3}, {0: 0, 2: 1}, {2: 3}]),
       weights=st.sampled_from([(1.0, 20.0), (4.5, 20.0), (0.5, 3.0)]))  # fmt: skip
def test_logits_and_hidden_states_in_one_loss_with_each_layer_divided_by_the_teachers_variance(batch, layers, weights):
    student, teacher, lengths = batch
    how = LogitsHidden(weight=weights[0], hidden_weight=weights[1], temperature=3.0, layers=layers)
    torch.manual_seed(0)
    projections = how.projections(STUDENT, TEACHER)
    mapped = layers or {1: 2, 2: 3}  # without the embeddings unless they are named
    assert projections.keys() == mapped.keys()
    each = []
    for s, t in mapped.items():
        errors = list(errors_of_states(student.hidden[s], teacher.hidden[t], lengths, projections[s]))
        each.append(sum(errors) / len(errors) / variance_of_states(teacher.hidden[t], lengths))
    expected = weights[0] * Logits(temperature=3.0).loss(student, teacher).item() + weights[1] * sum(each) / len(each)
    loss = how.weight * how.loss(projected(student, projections), teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@PROPERTY
@given(batch=layered_batches(), scale=st.sampled_from([1e-3, 7.0, 1e3]))
def test_the_size_of_a_layers_states_and_their_padding_do_not_change_its_share(batch, scale):
    student, teacher, _ = batch
    student = replace(student, hidden=tuple(states.double() for states in teacher.hidden))
    hidden = tuple(states.double() + 0.1 * torch.randn(states.shape).double() for states in teacher.hidden)
    teacher, how = replace(teacher, hidden=hidden), LogitsHidden()
    garbage = (~student.tokens[..., None]).double() * 1e6
    larger = [replace(of, hidden=tuple(scale * (each + garbage) for each in of.hidden)) for of in (student, teacher)]
    assert how.loss(*larger).item() == pytest.approx(how.loss(student, teacher).item(), rel=1e-4)


def test_a_layer_that_repeats_its_teacher_has_no_error_and_one_without_variance_no_infinite_one():
    tokens = torch.ones(1, 3, dtype=torch.bool)
    same, still = torch.randn(1, 3, 4), torch.ones(1, 3, 4)
    student = Prediction((torch.zeros(1, 3),), None, tokens, (same, same, still))
    assert LogitsHidden().loss(student, student).item() == 0.0


@PROPERTY
@given(batch=layered_batches(), attention=st.booleans())
def test_layers_are_compared_at_the_real_tokens_only(batch, attention):
    student, teacher, _ = batch
    how = HiddenStates(attention_weight=1.0) if attention else LogitsHidden(layers={0: 0, 1: 2, 2: 3})
    projections = how.projections(STUDENT, TEACHER)
    if not attention:
        student = replace(student, attentions=())
    leaves = (*student.hidden, *student.attentions)
    for leaf in leaves:
        leaf.requires_grad_()
    how.loss(projected(student, projections), teacher).backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
        at = ~student.tokens if leaf.dim() == 3 else (~student.tokens)[:, None, :].expand(leaf.shape[:3])
        assert not bool(leaf.grad[at].any())
    for attention in student.attentions:
        to_padding = (~student.tokens)[:, None, None, :].expand(attention.shape)
        assert not bool(attention.grad[to_padding].any())
    for module in projections.values():
        weight = module.get_parameter("weight")
        assert weight.grad is not None
        assert bool(weight.grad.any())


def test_a_student_that_attends_as_its_teacher_has_no_divergence():
    tokens = torch.ones(1, 3, dtype=torch.bool)
    attention = torch.tensor([[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]]])  # zeros have no logarithm
    said = Prediction((torch.zeros(1, 3),), None, tokens, (torch.zeros(1, 3, 2),) * 2, (attention,))
    how = HiddenStates(hidden_weight=0.0, attention_weight=1.0)
    assert how.loss(said, said).item() == pytest.approx(0.0, abs=1e-6)
    assert how.projections(EncoderShape(1, 2, 1), EncoderShape(1, 8, 1)) == {}  # no hidden states are compared


def test_a_model_that_does_not_tell_its_attention_is_refused():
    tokens = torch.ones(1, 3, dtype=torch.bool)
    hidden, attention = (torch.zeros(1, 3, 2),) * 2, torch.eye(3)[None, None]
    silent, told = (Prediction((torch.zeros(1, 3),), None, tokens, hidden, given) for given in ((), (attention,)))
    with pytest.raises(PruningError, match=r"the teacher does not give .* set attention_weight=0"):
        HiddenStates(attention_weight=1.0).loss(told, silent)
    assert HiddenStates().loss(told, silent).item() == 0.0


@pytest.mark.parametrize(("student", "teacher", "expected"), [
    (2, 2, {0: 0, 1: 1, 2: 2}),
    (4, 12, {0: 0, 1: 3, 2: 6, 3: 9, 4: 12}),  # as TinyBERT's of 4 layers
    (4, 6, {0: 0, 1: 2, 2: 3, 3: 5, 4: 6}),
    (6, 2, {0: 0, 1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 2}),
])  # fmt: skip
def test_layers_are_spread_evenly(student, teacher, expected):
    assert HiddenStates().mapped(student, teacher) == expected
    assert LogitsHidden().mapped(student, teacher) == {s: t for s, t in expected.items() if s}
    assert LogitsHidden(layers={1: 2, 0: 0}).mapped(student, teacher) == {0: 0, 1: 2}


@pytest.mark.parametrize(("how", "student", "teacher", "words"), [
    (HiddenStates(layers={3: 1}), STUDENT, TEACHER, "the student has no layer 3; it has 1 to 2"),
    (HiddenStates(layers={-1: 1}), STUDENT, TEACHER, "the student has no layer -1"),
    (HiddenStates(layers={1: 4}), STUDENT, TEACHER, "the teacher has no layer 4; it has 1 to 3"),
    (LogitsHidden(layers={1: 4}), STUDENT, TEACHER, "the teacher has no layer 4; it has 1 to 3"),
    (HiddenStates(attention_weight=1.0), STUDENT, EncoderShape(2, 4, 3),
     "the student has 2 attention heads in a layer and the teacher 3, .*set attention_weight=0"),
])  # fmt: skip
def test_a_teacher_that_cannot_be_compared_is_refused(how, student, teacher, words):
    with pytest.raises(PruningError, match=words):
        how.projections(student, teacher)


def test_a_projection_is_made_only_where_the_widths_differ():
    same = EncoderShape(layers=5, width=4, heads=7)
    assert HiddenStates().projections(STUDENT, same) == {}
    assert LogitsHidden().projections(STUDENT, same) == {}
    assert SimKD().projections(STUDENT, same) == {}
    student = Prediction((torch.zeros(1, 3),), None, torch.ones(1, 3, dtype=torch.bool))
    assert projected(student, {}) is student
    (made,) = SimKD().projections(STUDENT, TEACHER).items()
    assert (made[0], type(made[1]), made[1](torch.zeros(2, 4)).shape) == (2, torch.nn.Linear, (2, 6))
    (made,) = SimKD(projector=Projector.mlp).projections(STUDENT, TEACHER).items()
    assert [tuple(p.shape) for p in made[1].parameters()] == [(6, 4), (6,), (6, 6), (6,)]


@pytest.mark.parametrize(
    "build",
    [
        lambda: HiddenStates(hidden_weight=0.0),
        lambda: HiddenStates(hidden_weight=-1.0),
        lambda: HiddenStates(attention_weight=-1.0),
        lambda: HiddenStates(logits_weight=0.0),  # the head would learn nothing
        lambda: HiddenStates(temperature=0.0),
        lambda: HiddenStates(attention_weight=1.0, layers={0: 0}),
        lambda: LogitsHidden(hidden_weight=0.0),
        lambda: LogitsHidden(weight=0.0, label_weight=1.0),  # the logits train the head
        lambda: LogitsHidden(temperature=0.0),
        lambda: Distillation(weight=-1.0),
        lambda: Logits(weight=0.0, label_weight=0.0),
        lambda: Logits(label_weight=-0.1),
        lambda: SimKD(weight=0.0),
        lambda: Logits(temperature=0.0),
        lambda: Logits(temperature=-2.0),
        lambda: NoDistillation(weight=1.0),
        lambda: NoDistillation(label_weight=0.0),
    ],
)
def test_arguments_that_make_no_sense_are_refused(build):
    with pytest.raises(PruningError, match=r"^(layers|\w*weight|temperature)="):
        build()


def test_what_each_distillation_needs():
    needs = {
        cls.__name__: (cls.needs_teacher, cls.needs_hidden, cls.shares_head) for cls in Distillation.__subclasses__()
    }
    assert needs["Logits"] == (True, False, False)
    assert needs["SimKD"] == (True, True, True)
    assert needs["HiddenStates"] == (True, True, False)
    assert needs["NoDistillation"] == (False, False, False)
    assert (LogitsHidden.needs_teacher, LogitsHidden.needs_hidden, LogitsHidden.shares_head) == (True, True, False)
    assert [each.needs_attention for each in (HiddenStates(), HiddenStates(attention_weight=0.1))] == [False, True]
    assert (NoDistillation().weight, NoDistillation().label_weight) == (0.0, 1.0)


# --- several teachers ---------------------------------------------------------------------------------------


@PROPERTY
@given(st.lists(span_batches(), min_size=1, max_size=1), st.integers(1, 4), st.sampled_from([0.5, 1.0, 2.0, 8.0]))
def test_the_loss_against_several_teachers_is_that_against_their_mean_probabilities(batches, count, temperature):
    student, first, lengths = batches[0]
    random = torch.Generator().manual_seed(7)
    teachers = [first] + [
        replace(first, logits=tuple(torch.randn(z.shape, generator=random) * 10 for z in first.logits), hidden=())
        for _ in range(count - 1)
    ]
    total = 0.0
    for head in range(2):
        for row, length in enumerate(lengths):
            mine = softened(student.logits[head][row, :length].tolist(), temperature)
            theirs = [softened(each.logits[head][row, :length].tolist(), temperature) for each in teachers]
            mean = [sum(odds) / count for odds in zip(*theirs, strict=True)]
            total += sum(p * (math.log(p) - math.log(max(q, 1e-300))) for p, q in zip(mean, mine, strict=True) if p)
    wanted = total / len(lengths) / 2 * temperature**2
    mean_teacher = averaged(teachers, temperature)
    assert float(Logits(temperature=temperature).loss(student, mean_teacher)) == pytest.approx(wanted, 1e-3, 1e-4)
    assert all(bool(head.isfinite().all()) for head in mean_teacher.logits)
    assert mean_teacher.hidden is first.hidden


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 4)])
def test_the_mean_of_teachers_of_classes(shape):
    random = torch.Generator().manual_seed(0)
    tokens = real_tokens([5, 2, 4], 5)
    teachers = [
        Prediction((torch.randn(shape, generator=random).half() * 3,), choices=None, tokens=tokens) for _ in range(3)
    ]
    made = (averaged(teachers, 2.0).logits[0] / 2).softmax(-1)
    wanted = sum((each.logits[0].double() / 2).softmax(-1) for each in teachers) / 3
    assert made.dtype is torch.float32
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-6)
    other = averaged(teachers, 1.0).logits[0] / 2
    assert float((other.softmax(-1).double() - wanted).abs().max()) > 1e-3


def test_the_mean_of_teachers_of_numbers_and_of_one():
    tokens = real_tokens([2, 2], 2)
    both = [Prediction((torch.tensor([[1.0], [value]]),), None, tokens, numbers=True) for value in (3.0, 6.0)]
    assert averaged(both, 4.0).logits[0].tolist() == [[1.0], [4.5]]
    assert averaged(both[:1], 4.0) is both[0]
