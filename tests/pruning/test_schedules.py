"""Schedules: closed forms, the published recipes, and refusals."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import PruningError, Schedule, TrainingLength
from pruning.schedules import DECAYS, span_in_steps

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
LENGTH = TrainingLength(steps=1000, steps_per_epoch=100, epochs=10)

CLOSED_FORMS = {
    "exp": lambda x, s: 1 - math.exp(x * math.log(1 - s)),
    "linear": lambda x, s: x * s,
    "cos": lambda x, s: s - s * math.sin(math.pi / 2 * (1 - x)),
    "cubic": lambda x, s: s + (0 - s) * (1 - x) ** 3,
}


def test_every_decay_has_its_closed_form_here():
    assert len(DECAYS) == 4
    assert DECAYS.keys() == CLOSED_FORMS.keys()


@pytest.mark.parametrize("decay", CLOSED_FORMS)
@PROPERTY
@given(progress=st.floats(0, 1), target=st.floats(0, 0.99))
def test_a_decay_is_its_closed_form(decay, progress, target):
    expected = CLOSED_FORMS[decay](progress, target)
    assert Schedule(decay=decay).sparsity(progress, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decay", DECAYS)
@PROPERTY
@given(target=st.floats(0, 0.99))
def test_a_decay_starts_dense_and_ends_at_the_target_exactly(decay, target):
    schedule = Schedule(decay=decay)
    assert schedule.sparsity(0, target) == 0
    assert schedule.sparsity(1, target) == target
    assert schedule.sparsity(1.5, target) == target


@pytest.mark.parametrize("decay", DECAYS)
@PROPERTY
@given(a=st.floats(0, 1), b=st.floats(0, 1), target=st.floats(0, 0.99))
def test_a_decay_is_monotone_and_bounded(decay, a, b, target):
    schedule = Schedule(decay=decay)
    early, late = schedule.sparsity(min(a, b), target), schedule.sparsity(max(a, b), target)
    assert -1e-12 <= early <= late + 1e-12
    assert late <= target + 1e-12


@pytest.mark.parametrize(
    ("decay", "half"), [("exp", 1 - math.sqrt(0.2)), ("linear", 0.4), ("cos", 0.8 - 0.8 / math.sqrt(2)), ("cubic", 0.7)]
)
def test_half_way_to_80_percent(decay, half):
    assert Schedule(decay=decay).sparsity(0.5, 0.8) == pytest.approx(half)


FEATURES = 88_524  # of SQuAD v1.1 in windows of 384 tokens, stride 128
RECIPES = {  # batch, epochs, cool-down epochs, first and last update
    "bert-mini": (16, 10, 5, 1000, 27_000),
    "distilbert": (16, 20, 10, 1000, 55_000),
    "bert-base": (12, 10, 4, 1000, 44_000),
    "bert-large": (24, 40, 10, 1000, 110_000),
}


@pytest.mark.parametrize("target", [0.8, 0.5])
@pytest.mark.parametrize("model", RECIPES)
def test_updates_of_the_published_recipes(model, target):
    batch, epochs, cooldown, first, last = RECIPES[model]
    per_epoch = FEATURES // batch
    start, frequency = 1000, 1000
    end = int(per_epoch * (epochs - cooldown))
    n = math.floor((end - start + frequency) / frequency) - 1
    expected = {start + t * frequency: 1 - (1 - 0.0) * ((1 - target) / (1 - 0.0)) ** (t / n) for t in range(n + 1)}

    length = TrainingLength(math.ceil(FEATURES / batch) * epochs, per_epoch, epochs)
    schedule = Schedule(decay="exp", start="1000", frequency="1000", cooldown=f"{cooldown} epochs")
    updates = schedule.updates(length, target)
    assert list(updates) == list(expected)
    assert updates == pytest.approx(expected)
    assert (min(updates), max(updates)) == (first, last)
    assert updates[first] == 0
    assert updates[last] == target


@PROPERTY
@given(
    start=st.integers(0, 900), frequency=st.integers(1, 400), end=st.integers(1, 1000), decay=st.sampled_from([*DECAYS])
)
def test_updates_are_evenly_spaced_and_the_last_has_the_target(start, frequency, end, decay):
    schedule = Schedule(decay=decay, start=str(start), frequency=str(frequency), end=str(end))
    if start + frequency > end:  # not even a second update
        with pytest.raises(PruningError, match="does not fit"):
            schedule.updates(LENGTH, 0.8)
        return
    updates = schedule.updates(LENGTH, 0.8)
    assert list(updates) == list(range(start, end + 1, frequency))
    values = list(updates.values())
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 0.8)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0", 0),
        ("100", 100),
        ("100.0", 100),
        (" 100 steps ", 100),
        ("1 step", 1),
        ("2ep", 200),
        ("2 epochs", 200),
        ("1 epoch", 100),
        ("2.5 epochs", 250),
        ("10%", 100),
        ("0.5 %", 5),
        ("100%", 1000),
    ],
)
def test_lengths_of_time(text, steps):
    assert span_in_steps(text, LENGTH, "start") == steps


@pytest.mark.parametrize(
    "text", ["", "soon", "1.5", "2.5 steps", "-5", "-5%", "10 percent", "1e3", "1,000", "5 epoch s"]
)
@pytest.mark.parametrize("key", ["start", "end", "frequency", "cooldown"])
def test_bad_lengths_are_refused_when_the_schedule_is_built(text, key):
    with pytest.raises(PruningError, match=rf"schedule\.{key}="):
        Schedule(**{key: text})


def test_an_unknown_decay_is_refused_and_the_known_are_named():
    with pytest.raises(PruningError, match=r"cube.*exp, linear, cos, cubic"):
        Schedule(decay="cube")


@pytest.mark.parametrize(
    ("schedule", "updates"),
    [
        (Schedule(start="100", frequency="300", cooldown="100"), [100, 400, 700]),
        (Schedule(start="10%", frequency="30%", cooldown="10%"), [100, 400, 700]),
        (Schedule(start="1 epoch", frequency="3 epochs", cooldown="1 ep"), [100, 400, 700]),
        (Schedule(start="100", frequency="450", end="100%"), [100, 550, 1000]),
        (Schedule(start="100", frequency="450", end="1000", cooldown="90%"), [100, 550, 1000]),  # end wins
    ],
)
def test_when_updates_come(schedule, updates):
    assert list(schedule.updates(LENGTH, 0.8)) == updates


def test_a_cooldown_in_epochs_counts_whole_batches_from_the_front():
    """As the published recipes do; the last, short batch of each epoch makes the training itself longer."""
    length = TrainingLength(steps=1010, steps_per_epoch=100, epochs=10)
    assert max(Schedule(start="1", frequency="1", cooldown="5 epochs").updates(length, 0.8)) == 500
    assert max(Schedule(start="1", frequency="1", cooldown="500").updates(length, 0.8)) == 510


def test_a_frequency_below_one_step_is_every_step():
    short = TrainingLength(steps=10, steps_per_epoch=5, epochs=2)
    assert list(Schedule(start="10%", frequency="2%", cooldown="30%").updates(short, 0.8)) == list(range(1, 8))


def test_a_schedule_longer_than_the_training_is_refused():
    with pytest.raises(PruningError, match="longer than the training: it ends at step 1001 of 1000"):
        Schedule(start="1", frequency="10", end="1001").updates(LENGTH, 0.8)


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(start="1000", frequency="1000", cooldown="5 epochs"),
        Schedule(start="100", frequency="10", cooldown="12 epochs"),
        Schedule(start="500", frequency="10", end="400"),
        Schedule(start="500", frequency="501", end="1000"),
    ],
)
def test_a_training_too_short_is_refused(schedule):
    with pytest.raises(PruningError, match="does not fit into the training of 1000 steps"):
        schedule.updates(LENGTH, 0.8)
