"""The sentence of a row: what it claims, and what it says that it cannot claim."""

from dataclasses import replace

import pytest

from results import sentences
from results.controls import Control
from results.rows import Published, Row
from results.speed import Latency

CONTROL = Control(0.742, 0.75, -0.03, -0.03, [-0.04, -0.02], [0, 1, 2], ["c0"], change_interval=[-0.03, -0.014])
ROW = Row(
    **{"model": "minilm-l6", "dataset": "squad", "pattern": "4x1", "seeds": [0, 1, 2], "ratio": 0.7999},
    **{"dense_mean": 0.74, "dense_max": 0.75, "sparse_mean": 0.72, "sparse_max": 0.73, "drop_max": -0.027},
    **{"drop_mean": -0.027, "metric": "f1", "differs": {}, "runs": ["r0", "r1", "r2"], "control": CONTROL},
    **{"change_interval": [-0.028, -0.012], "sparse_others": {"exact_match": 0.6}},
    latency=Latency(4.0, 2.41, "sparse", "bfloat16", 1, 128, 1, "Fast CPU", 3),
)
COST = "minilm-l6 on squad: 4x1 at 80 % costs 2.2 points of F1 (95 %, three seeds: 1.4 to 3.0) against an equally "
COST += "trained dense model"
SPEED = ", and runs 2.4x faster than the best dense runtime on Fast CPU (bf16, one thread, 128 tokens)"


def test_cost_against_the_control_and_speed():
    assert sentences.sentence(ROW) == f"{COST}{SPEED}."


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"latency": None}, f"{COST}."),
        ({"control": None}, "costs 2.0 points of F1 (95 %, three seeds: 1.2 to 2.8) against the dense model it started "
                            "from, and runs"),
        ({"control": None, "change_interval": None}, "costs 2.0 points of F1 against the dense model it started from "
                                                     "(three seeds, no interval), and"),
        ({"seeds": [0]}, "points of F1 (95 %, one seed, over questions alone: 1.4 to 3.0) against"),
        ({"seeds": [0], "sparse_others": {}}, "(95 %, one seed, over examples alone: 1.4 to 3.0)"),
        ({"seeds": [0], "control": None, "change_interval": None}, "(one seed, no interval)"),
        ({"control": replace(CONTROL, change_interval=[-0.03, 0.0])},
         "4x1 at 80 % shows no clear difference in F1 from an equally trained dense model: -2.2 points (95 %, three "
         "seeds: -3.0 to +0.0), and"),
        ({"control": replace(CONTROL, mean=0.7176, change_interval=[-0.002, 0.007])},
         "from an equally trained dense model: +0.24 points (95 %, three seeds: -0.20 to +0.70)"),
        ({"control": replace(CONTROL, change_interval=[-0.03, -0.0001])},
         "costs 2.20 points of F1 (95 %, three seeds: 0.01 to 3.00) against"),
        ({"control": replace(CONTROL, mean=0.71, change_interval=[0.005, 0.015])},
         "gains 1.0 points of F1 (95 %, three seeds: 0.5 to 1.5) against"),
        ({"control": replace(CONTROL, mean=0.72, change_interval=[0.0, 0.0])},
         "scores as an equally trained dense model does: no question changes its F1, and"),
        ({"evaluation_examples": 1500, "official_evaluation": 10570}, "tokens); scored on 1,500 of 10,570 questions."),
        ({"evaluation_examples": 1500, "official_evaluation": 1500, "train_examples": 4000, "official_train": 87599},
         "tokens); trained on 4,000 of 87,599 questions."),
        ({"ratio": None}, "minilm-l6 on squad: 4x1 costs 2.2"),
        ({"metric": "matthews_correlation"}, "costs 2.2 points of Matthews correlation"),
    ],
)  # fmt: skip
def test_what_it_cannot_claim_is_in_it(change, part):
    text = sentences.sentence(replace(ROW, **change))
    assert part in text
    assert text.endswith(".")
    assert text.count(".") - sum(text.count(f".{digit}") for digit in range(10)) == 1  # one sentence


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"ratio_to_best_dense": None}, "and takes 4.0 ms on Fast CPU (bf16, one thread, 128 tokens)."),
        ({"ratio_to_best_dense": 0.8}, "and runs at 0.80 of the speed of the best dense runtime on Fast CPU"),
        ({"precision": "float32", "threads": 2, "batch": 8}, "(fp32, two threads, 128 tokens, batches of 8)."),
    ],
)
def test_speed(change, part):
    assert ROW.latency is not None
    assert part in sentences.sentence(replace(ROW, latency=replace(ROW.latency, **change)))


def test_a_control_is_compared_with_the_dense_model():
    text = sentences.sentence(replace(ROW, pattern="dense", control=None, ratio=0.0))
    assert text == (
        "minilm-l6 on squad, trained further without pruning, costs 2.0 points of F1 (95 %, three seeds: 1.2 to 2.8) "
        "against the dense model it started from."
    )


def test_the_published_drop_is_compared_and_another_recipe_named():
    entry = Published("f1", 0.8, None, 0.75, None, 0.74, -0.0133, "A")
    row = replace(ROW, latency=None, published=entry, recipe="default")
    assert sentences.sentence(row) == (
        f"{COST}. Published: -1.33% of the best score, here -2.70%. Recipe: default, not the published one."
    )
    assert sentences.sentence(replace(row, recipe="squad-minilm-l6")).endswith("here -2.70%.")


def test_rows_with_equal_labels_are_told_apart_and_rows_without_runs_left_out():
    rows = [
        replace(ROW, ratio=0.5, differs={"pattern.target_sparsity": "0.5", "criterion": "obs"}),
        replace(ROW, ratio=0.8, differs={"pattern.target_sparsity": "0.8", "criterion": "snip"}),
        replace(ROW, runs=[], seeds=[]),
    ]
    first, second = sentences.of_rows(rows)
    assert first.startswith("minilm-l6 on squad: 4x1 at 50 % (criterion=obs) costs")
    assert second.startswith("minilm-l6 on squad: 4x1 at 80 % (criterion=snip) costs")
    (first, _) = sentences.of_rows([replace(row, ratio=0.8) for row in rows])
    assert "(pattern.target_sparsity=0.5, criterion=obs)" in first
