from dataclasses import replace

import pytest

from results import caveats, published
from results.controls import Control
from results.rows import Row

CONTROL = Control(0.8, 0.82, -0.1, -0.1, [-0.12, -0.08], [0, 1], ["c0", "c1"])
SOUND = Row(
    model="bert-mini",
    dataset="squad",
    pattern="4x1",
    seeds=[0, 1],
    ratio=0.8,
    dense_mean=0.8,
    dense_max=0.81,
    sparse_mean=0.7,
    sparse_max=0.72,
    drop_max=-0.11,
    drop_mean=-0.12,
    metric="f1",
    differs={},
    runs=["r0", "r1"],
    drop_interval=[-0.14, -0.1],
    control=CONTROL,
    dense_models=2,
    train_examples=100,
    official_train=100,
    evaluation_examples=1000,
    official_evaluation=1000,
    hidden_dropout="0.1",
    attention_dropout="0.0",
    precision="bf16",
)
OTHER = replace(SOUND, pattern="2:4", runs=["s0", "s1"])


def notes(*rows):
    return [row.notes for row in caveats.add(list(rows))]


def test_sound_rows_have_no_caveats():
    assert notes(SOUND, OTHER, replace(SOUND, pattern="dense", control=None)) == [[], [], []]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"drop_max": 0.01}, "the drop of the maxima and the drop of the means differ in sign"),
        (
            {"control": replace(CONTROL, drop_max=0.01)},
            "against the control, the drop of the maxima and the drop of the means differ in sign",
        ),
        (
            {"drop_interval": [-0.1, 0.0]},
            "the interval of the drop of means includes zero: too few seeds or examples to know its sign",
        ),
        (
            {"plain": replace(CONTROL, interval=[-0.1, 0.1])},
            "the interval against the control includes zero: too few seeds or examples to know its sign",
        ),
        ({"dense_models": 1}, "the dense maximum is over 1 model, the sparse one over 2"),
        ({"train_examples": 50}, "trained on 50 of 100 examples"),
        ({"train_examples": 5000, "official_train": 87599, "evaluation_examples": 500},
         "trained on 5,000 of 87,599 examples, evaluated on 500 of 1,000 examples"),
        ({"finetuned": "org/bert"}, "the dense model is org/bert (model.finetuned), not fine-tuned by the run"),
        ({"finetuned": "/home/me/one|org/two"},
         "the dense model is one or org/two (model.finetuned), not fine-tuned by the run"),
        ({"control": None}, "no same-budget dense control: pattern=dense, and all else as here"),
        ({"control": replace(CONTROL, seeds=[0])}, "a control has other seeds, which cannot be paired with these"),
        ({"control": replace(CONTROL, rivals=2)},
         "several groups of runs could be a control: the one with most seeds is"),
    ],
)  # fmt: skip
def test_caveats_of_a_row(change, note):
    assert notes(replace(SOUND, **change), OTHER) == [[note], []]


@pytest.mark.parametrize(
    "change",
    [
        {"drop_max": None},
        {"drop_max": 0.0},
        {"drop_interval": [0.0, 0.0], "drop_mean": 0.0},  # nothing is claimed
        {"drop_interval": None},
        {"dense_models": None},
        {"official_train": None, "train_examples": 5},
        {"train_examples": None},
        {"train_examples": 1000},
    ],
)
def test_no_caveat_without_a_reason(change):
    assert notes(replace(SOUND, **change)) == [[]]


def test_one_seed():
    alone = replace(SOUND, seeds=[0], dense_models=1, runs=["r0"], control=replace(CONTROL, seeds=[0]))
    assert notes(alone) == [["one seed: its intervals are over examples alone"]]
    assert notes(replace(alone, drop_interval=None)) == [["one seed: how much seeds differ is not known"]]


def test_unequal_numbers_of_seeds():
    more = replace(OTHER, seeds=[0, 1, 2], dense_models=3, control=replace(CONTROL, seeds=[0, 1, 2]))
    elsewhere = replace(more, model="distilbert")
    note = "bert-mini squad: the maxima are over 2 to 3 seeds, and more reach higher"
    assert notes(SOUND, more, elsewhere) == [[note], [note], []]
    assert notes(SOUND, replace(more, metric="accuracy"), replace(more, dataset="demo")) == [[], [], []]


def test_a_table_of_means_has_no_notes_on_maxima():
    more = replace(
        OTHER, seeds=[0, 1, 2], dense_models=2, precision="float32", control=replace(CONTROL, seeds=[0, 1, 2])
    )
    noted = caveats.add([SOUND, more])
    assert ["maxim" in note for note in noted[1].notes].count(True) == 2
    assert [row.notes for row in caveats.without_maxima(noted)] == [
        ["bert-mini squad: trained with different precision (bf16, float32)"]
    ] * 2


@pytest.mark.parametrize(
    ("change", "note"),
    [
        ({"precision": "float32"}, "bert-mini squad: trained with different precision (bf16, float32)"),
        ({"hidden_dropout": "0.0"}, "bert-mini squad: trained with different dropout (0, 0.1)"),
        ({"attention_dropout": "0.1"},
         "bert-mini squad: trained with different dropout of attention weights (0, 0.1)"),
        ({"precision": "bf16|fp16"}, "bert-mini squad: trained with different precision (bf16, fp16)"),
    ],
)  # fmt: skip
def test_different_trainings(change, note):
    assert notes(SOUND, replace(OTHER, **change)) == [[note], [note]]


@pytest.mark.parametrize("change", [{"precision": None}, {"hidden_dropout": "0.10"}, {"attention_dropout": "0"}])
def test_trainings_that_are_not_known_to_differ(change):
    assert notes(SOUND, replace(OTHER, **change)) == [[], []]


def test_notes_are_added_once():
    twice = replace(SOUND, notes=["mine", "mine"], dense_models=1)
    assert notes(twice) == [["mine", "the dense maximum is over 1 model, the sparse one over 2"]]


def test_published_rows_alone_have_no_caveats():
    rows = published.compare([SOUND])
    assert len(rows) > 8
    assert [row.notes for row in caveats.add(rows)] == [[]] * len(rows)
