"""Schedules: closed forms, the published recipes, and refusals."""

import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pruning import Gradual, OneShot, PruningError, Schedule, TrainingLength
from pruning.schedules import DECAYS
from tests.pruning.training import updates_of

PROPERTY = settings(deadline=None, derandomize=True, max_examples=100)
LENGTH = TrainingLength(steps=1000, steps_per_epoch=100, epochs=10)

CLOSED_FORMS = {  # x in [0, 1], from i to s
    "exp": lambda x, i, s: 1 - math.exp((1 - x) * math.log(1 - i) + x * math.log(1 - s)),
    "linear": lambda x, i, s: (1 - x) * i + x * s,
    "cos": lambda x, i, s: s - (s - i) * math.sin(math.pi / 2 * (1 - x)),
    "cubic": lambda x, i, s: s + (i - s) * (1 - x) ** 3,
    "slow_cubic": lambda x, i, s: i + (s - i) * x * x * x,
}
FAST_FIRST, SLOW_FIRST = ("exp", "cubic"), ("cos", "slow_cubic")


def kinds(base: type) -> list[type]:
    return [cls for child in base.__subclasses__() for cls in (child, *kinds(child))]


def test_all_schedules_are_found():
    assert {cls.__name__ for cls in kinds(Schedule) if cls.__module__.startswith("pruning")} == {"Gradual", "OneShot"}


def test_every_decay_has_its_closed_form_here():
    assert len(DECAYS) == 5
    assert DECAYS.keys() == CLOSED_FORMS.keys()
    assert all(name == course.__name__ for name, course in DECAYS.items())


@st.composite
def courses(draw):
    """An initial sparsity and a target above it."""
    target = draw(st.floats(0.01, 0.99))
    return draw(st.one_of(st.just(0.0), st.floats(0, 0.99))) * target, target


@pytest.mark.parametrize("decay", CLOSED_FORMS)
@PROPERTY
@given(progress=st.floats(0, 1), course=courses())
def test_a_decay_is_its_closed_form(decay, progress, course):
    initial, target = course
    expected = CLOSED_FORMS[decay](progress, initial, target)
    assert DECAYS[decay](progress, initial, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decay", CLOSED_FORMS)
@PROPERTY
@given(progress=st.floats(0, 1), target=st.floats(0.01, 0.99), percent=st.integers(0, 99))
def test_a_schedule_takes_its_decay_from_the_initial_sparsity_to_the_target(decay, progress, target, percent):
    expected = CLOSED_FORMS[decay](progress, percent / 100 * target, target)
    schedule = Gradual(decay=decay, initial=f"{percent}%")
    assert schedule.sparsity(progress, target) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decay", DECAYS)
@PROPERTY
@given(course=courses())
def test_a_decay_starts_at_the_initial_sparsity_and_ends_at_the_target(decay, course):
    initial, target = course
    assert DECAYS[decay](0.0, initial, target) == pytest.approx(initial, abs=1e-12)
    assert DECAYS[decay](1.0, initial, target) == pytest.approx(target, abs=1e-12)


@pytest.mark.parametrize("decay", DECAYS)
@PROPERTY
@given(target=st.floats(0, 0.99))
def test_a_schedule_starts_dense_and_ends_at_the_target_exactly(decay, target):
    schedule = Gradual(decay=decay)
    assert schedule.sparsity(0, target) == 0
    assert schedule.sparsity(1, target) == target
    assert schedule.sparsity(1.5, target) == target


@pytest.mark.parametrize("decay", DECAYS)
@PROPERTY
@given(a=st.floats(0, 1), b=st.floats(0, 1), course=courses())
def test_a_decay_is_monotone_and_bounded(decay, a, b, course):
    initial, target = course
    early, late = DECAYS[decay](min(a, b), initial, target), DECAYS[decay](max(a, b), initial, target)
    assert initial - 1e-12 <= early <= late + 1e-12
    assert late <= target + 1e-12


@pytest.mark.parametrize(
    ("decay", "half"),
    [
        ("exp", 1 - math.sqrt(0.2)),
        ("linear", 0.4),
        ("cos", 0.8 - 0.8 / math.sqrt(2)),
        ("cubic", 0.7),
        ("slow_cubic", 0.1),
    ],
)
def test_half_way_to_80_percent(decay, half):
    assert Gradual(decay=decay).sparsity(0.5, 0.8) == pytest.approx(half)


@PROPERTY
@given(progress=st.floats(0.01, 0.99), course=courses())
def test_some_decays_are_fast_first_and_some_slow_first(progress, course):
    """Above and below the straight line; the two cubics are each other turned around."""
    initial, target = course
    assume(target - initial > 1e-3)
    line = DECAYS["linear"](progress, initial, target)
    assert all(DECAYS[decay](progress, initial, target) > line for decay in FAST_FIRST)
    assert all(DECAYS[decay](progress, initial, target) < line for decay in SLOW_FIRST)
    fast, slow = (DECAYS[decay] for decay in ("cubic", "slow_cubic"))
    assert fast(progress, initial, target) - initial == pytest.approx(target - slow(1 - progress, initial, target))


def test_slow_cubic_is_the_cube_of_the_part_of_the_updates():
    updates = updates_of(Gradual(decay="slow_cubic", start="0", frequency="10", end="100"), LENGTH, 0.8)
    assert updates == pytest.approx({10 * t: 0.8 * (t / 10) ** 3 for t in range(11)})
    cubic = updates_of(Gradual(decay="cubic", start="0", frequency="10", end="100"), LENGTH, 0.8)
    assert cubic == pytest.approx({10 * t: 0.8 * (1 - (1 - t / 10) ** 3) for t in range(11)})
    assert all(cubic[step] > updates[step] for step in list(updates)[1:-1])


# --- the published recipes -------------------------------------------------------------------------------------------

FEATURES = 88_524  # of SQuAD v1.1 in windows of 384 tokens, stride 128
RECIPES = {  # batch, epochs, cool-down epochs, number of updates, first and last of them
    "bert-mini": (16, 10, 5, 27, 1000, 27_000),
    "distilbert": (16, 20, 10, 55, 1000, 55_000),
    "bert-base": (12, 10, 4, 44, 1000, 44_000),
    "bert-large": (24, 40, 10, 110, 1000, 110_000),
}


@pytest.mark.parametrize("target", [0.8, 0.5])
@pytest.mark.parametrize("model", RECIPES)
def test_updates_of_the_published_recipes(model, target):
    batch, epochs, cooldown, number, first, last = RECIPES[model]
    per_epoch = FEATURES // batch
    start, frequency = 1000, 1000
    end = int(per_epoch * (epochs - cooldown))
    n = math.floor((end - start + frequency) / frequency) - 1
    expected = {}
    for t in range(n + 1):
        expected[start + t * frequency] = 1 - (1 - 0.0) * ((1 - target) / (1 - 0.0)) ** (t / n)

    length = TrainingLength(math.ceil(FEATURES / batch) * epochs, per_epoch, epochs)
    schedule = Gradual(decay="exp", start="1000", frequency="1000", cooldown=f"{cooldown} epochs")
    updates = updates_of(schedule, length, target)
    assert list(updates) == list(expected)
    assert updates == pytest.approx(expected, rel=1e-12)
    assert list(schedule.steps(length).values()) == [t / n for t in range(n + 1)]
    assert (len(updates), min(updates), max(updates)) == (number, first, last)
    assert updates[first] == 0
    assert updates[last] == target
    assert last <= end < last + frequency


def test_bert_mini_by_hand():
    """88,524 // 16 = 5532 steps an epoch, pruning up to 27,660: 26 updates after that of step 1000."""
    schedule = Gradual(start="1000", frequency="1000", cooldown="5 epochs")
    updates = updates_of(schedule, TrainingLength(55_330, 5532, 10), 0.8)
    assert updates[2000] == pytest.approx(1 - 0.2 ** (1 / 26))
    assert updates[14_000] == pytest.approx(1 - 0.2**0.5)
    assert updates[26_000] == pytest.approx(1 - 0.2 ** (25 / 26))


@PROPERTY
@given(
    steps_per_epoch=st.integers(10, 6000),
    epochs=st.integers(2, 40),
    share=st.floats(0.1, 0.9),
    ragged=st.booleans(),
)
def test_a_cooldown_in_parts_of_an_epoch_ends_as_in_the_recipes(steps_per_epoch, epochs, share, ragged):
    cooldown = round(share * epochs, 3)
    end = int(steps_per_epoch * (epochs - cooldown))
    assume(end >= 2)
    length = TrainingLength((steps_per_epoch + ragged) * epochs, steps_per_epoch, epochs)
    schedule = Gradual(start="1", frequency="1", cooldown=f"{cooldown} epochs")
    assert max(schedule.steps(length)) == schedule.last_step(length) == end


@PROPERTY
@given(
    start=st.integers(0, 900), frequency=st.integers(1, 400), end=st.integers(1, 1000), decay=st.sampled_from([*DECAYS])
)
def test_updates_are_evenly_spaced_and_the_last_has_the_target(start, frequency, end, decay):
    schedule = Gradual(decay=decay, start=str(start), frequency=str(frequency), end=str(end))
    if start + frequency > end:  # not even a second update
        with pytest.raises(PruningError, match="does not fit"):
            updates_of(schedule, LENGTH, 0.8)
        return
    updates = updates_of(schedule, LENGTH, 0.8)
    assert list(updates) == list(range(start, end + 1, frequency))
    values = list(updates.values())
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 0.8)
    progress = list(schedule.steps(LENGTH).values())
    assert (progress[0], progress[-1]) == (0, 1)
    assert progress == pytest.approx([t / (len(values) - 1) for t in range(len(values))])


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
    assert OneShot(start=text).in_steps("start", LENGTH) == steps


@pytest.mark.parametrize(
    "text", ["", "soon", "1.5", "2.5 steps", "-5", "-5%", "10 percent", "1e3", "1,000", "5 epoch s"]
)
@pytest.mark.parametrize("key", ["start", "end", "frequency", "cooldown"])
def test_bad_lengths_are_refused_when_the_schedule_is_built(text, key):
    with pytest.raises(PruningError, match=rf"^{key}="):
        Gradual(**{key: text})
    with pytest.raises(PruningError, match=r"^start="):
        OneShot(start=text)


@pytest.mark.parametrize("decay", ["cube", "", "EXP"])
def test_an_unknown_decay_is_refused_and_the_known_are_named(decay):
    with pytest.raises(PruningError, match=rf"'{decay}' must be one of exp, linear, cos, cubic, slow_cubic"):
        Gradual(decay=decay)


# --- the initial sparsity --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initial", "target", "first"),
    [
        ("0", 0.8, 0.0),
        ("0%", 0.8, 0.0),
        ("0.7", 0.8, 0.7),
        ("0.7", 0.9, 0.7),
        (" 0.7 ", 0.8, 0.7),
        ("85%", 0.8, 0.68),
        ("85%", 0.5, 0.425),
        ("85 %", 0.5, 0.425),
        ("99.9%", 0.5, 0.4995),
    ],
)
@pytest.mark.parametrize("decay", DECAYS)
def test_the_first_update_prunes_the_initial_sparsity_at_once(initial, target, first, decay):
    schedule = Gradual(decay=decay, initial=initial, start="100", frequency="100", end="500")
    updates = updates_of(schedule, LENGTH, target)
    assert updates[100] == pytest.approx(first, abs=1e-12)
    assert updates[500] == target
    assert list(updates.values()) == sorted(updates.values())
    assert len(set(updates.values())) == 5


@pytest.mark.parametrize("initial", ["0.8", "0.80", "0.9"])
def test_an_initial_sparsity_at_or_above_the_target_is_refused(initial):
    schedule = Gradual(initial=initial)
    assert schedule.sparsity(0, 0.95) > 0
    with pytest.raises(PruningError, match=rf"^initial={initial} is not below the target sparsity 0\.8"):
        schedule.sparsity(0, 0.8)
    with pytest.raises(PruningError, match=r"^initial="):
        updates_of(schedule, LENGTH, 0.8)


@pytest.mark.parametrize("initial", ["1", "1.0", "7", "85", "100%", "100.5%", "250%"])
def test_an_initial_sparsity_of_everything_is_refused_when_the_schedule_is_built(initial):
    with pytest.raises(PruningError, match=r"^initial=.* must be in \[0, 1\)"):
        Gradual(initial=initial)


@pytest.mark.parametrize("initial", ["", "-0.1", "-5%", "some", "0,7", "85 percent", "1e-1", "nan", "0.7 of it"])
def test_an_initial_sparsity_that_cannot_be_read_is_refused_when_the_schedule_is_built(initial):
    with pytest.raises(PruningError, match=r"^initial=.*is neither a sparsity"):
        Gradual(initial=initial)


# --- one shot --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "step"), [("0", 0), ("10%", 100), ("3 epochs", 300), ("1000", 1000), ("100%", 1000)])
def test_one_shot_is_one_update_to_the_target(start, step):
    assert OneShot(start=start).steps(LENGTH) == {step: 1.0}
    assert updates_of(OneShot(start=start), LENGTH, 0.5) == {step: 0.5}


@PROPERTY
@given(progress=st.floats(0, 1), target=st.floats(0, 0.99))
def test_one_shot_knows_no_other_sparsity(progress, target):
    assert OneShot().sparsity(progress, target) == target


@pytest.mark.parametrize("start", ["1001", "11 epochs", "101%"])
def test_one_shot_after_the_end_is_refused(start):
    with pytest.raises(PruningError, match=r"^start=.* is after the last of 1000 steps"):
        updates_of(OneShot(start=start), LENGTH, 0.5)


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "updates"),
    [
        (Gradual(start="100", frequency="300", cooldown="100"), [100, 400, 700]),
        (Gradual(start="10%", frequency="30%", cooldown="10%"), [100, 400, 700]),
        (Gradual(start="1 epoch", frequency="3 epochs", cooldown="1 ep"), [100, 400, 700]),
        (Gradual(start="100", frequency="450", end="100%"), [100, 550, 1000]),
        (Gradual(start="100", frequency="450", end="1000", cooldown="90%"), [100, 550, 1000]),  # end wins
    ],
)
def test_when_updates_come(schedule, updates):
    assert list(updates_of(schedule, LENGTH, 0.8)) == updates


def test_a_cooldown_in_epochs_counts_whole_batches_from_the_front():
    """As the published recipes do; the last, short batch of each epoch makes the training itself longer."""
    length = TrainingLength(steps=1010, steps_per_epoch=100, epochs=10)
    assert max(updates_of(Gradual(start="1", frequency="1", cooldown="5 epochs"), length, 0.8)) == 500
    assert max(updates_of(Gradual(start="1", frequency="1", cooldown="500"), length, 0.8)) == 510


def test_a_frequency_below_one_step_is_every_step():
    short = TrainingLength(steps=10, steps_per_epoch=5, epochs=2)
    assert list(updates_of(Gradual(start="10%", frequency="2%", cooldown="30%"), short, 0.8)) == list(range(1, 8))


def test_a_schedule_longer_than_the_training_is_refused():
    with pytest.raises(PruningError, match="longer than the training: it ends at step 1001 of 1000"):
        updates_of(Gradual(start="1", frequency="10", end="1001"), LENGTH, 0.8)


@pytest.mark.parametrize(
    "schedule",
    [
        Gradual(start="1000", frequency="1000", cooldown="5 epochs"),
        Gradual(start="100", frequency="10", cooldown="12 epochs"),
        Gradual(start="500", frequency="10", end="400"),
        Gradual(start="500", frequency="501", end="1000"),
    ],
)
def test_a_training_too_short_is_refused(schedule):
    with pytest.raises(PruningError, match="does not fit into the training of 1000 steps"):
        updates_of(schedule, LENGTH, 0.8)


# --- trainings that are not counted in epochs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (Gradual(start="1 epoch"), "start"),
        (Gradual(frequency="0.5 epochs"), "frequency"),
        (Gradual(end="3 epochs"), "end"),
        (Gradual(cooldown="3 ep"), "cooldown"),
        (OneShot(start="1 epoch"), "start"),
    ],
)
def test_epochs_need_a_training_that_is_counted_in_them(schedule, key):
    assert schedule.steps(LENGTH)
    with pytest.raises(PruningError, match=rf"^{key}=.*the training is not counted in epochs"):
        schedule.steps(TrainingLength(steps=1000))


def test_a_cooldown_in_epochs_needs_to_know_how_many_there_are():
    """From the back it would be another step than that of the recipes, which count from the front."""
    schedule = Gradual(start="1", frequency="1", cooldown="5 epochs")
    with pytest.raises(PruningError, match=r"^cooldown="):
        schedule.steps(TrainingLength(steps=1010, steps_per_epoch=100))


@pytest.mark.parametrize(
    "schedule", [Gradual(), Gradual(start="100", frequency="100", cooldown="300"), OneShot(), OneShot(start="5")]
)
def test_steps_and_fractions_need_no_epochs(schedule):
    assert updates_of(schedule, TrainingLength(steps=1000), 0.8) == updates_of(schedule, LENGTH, 0.8)
    assert list(updates_of(schedule, LENGTH, 0.8).values())[-1] == 0.8


@PROPERTY
@given(percent=st.integers(0, 100), steps=st.integers(1, 5000), per_epoch=st.integers(1, 500))
def test_fractions_of_the_training_and_epochs_in_steps(percent, steps, per_epoch):
    length = TrainingLength(steps, per_epoch, steps / per_epoch)
    assert abs(OneShot(start=f"{percent}%").in_steps("start", length) - percent * steps / 100) <= 0.5
    assert OneShot(start=f"{percent} epochs").in_steps("start", length) == percent * per_epoch
    assert OneShot(start=f"{percent}.5 epochs").in_steps("start", length) == (2 * percent + 1) * per_epoch // 2
