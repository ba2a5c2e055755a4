"""Distillation losses against loops over single examples and tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import IGNORED, Distillation, Logits, NoDistillation, Prediction, PruningError, SimKD, label_loss

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


@pytest.mark.parametrize(
    "build",
    [
        lambda: Distillation(weight=-1.0),
        lambda: Logits(weight=0.0, label_weight=0.0),
        lambda: Logits(label_weight=-0.1),
        lambda: SimKD(weight=0.0),
        lambda: Logits(temperature=0.0),
        lambda: Logits(temperature=-2.0),
        lambda: NoDistillation(weight=1.0),
        lambda: NoDistillation(teacher="bert-base-uncased"),
        lambda: NoDistillation(label_weight=0.0),
    ],
)
def test_arguments_that_make_no_sense_are_refused(build):
    with pytest.raises(PruningError, match="distill"):
        build()


def test_what_each_distillation_needs():
    needs = {
        cls.__name__: (cls.needs_teacher, cls.needs_hidden, cls.shares_head) for cls in Distillation.__subclasses__()
    }
    assert needs["Logits"] == (True, False, False)
    assert needs["SimKD"] == (True, True, True)
    assert needs["NoDistillation"] == (False, False, False)
    assert (NoDistillation().weight, NoDistillation().label_weight) == (0.0, 1.0)
