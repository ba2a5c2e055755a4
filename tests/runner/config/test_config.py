"""From YAML and command line to an `Experiment`: the published recipes, precedence, labels and identity."""

import importlib.util
import itertools
import re
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from transformers import BertConfig

import conf
import pruning
from pruning import (
    OBS,
    Block,
    Dense,
    DiagonalFisher,
    Distillation,
    Global,
    Gradient,
    Gradual,
    GroupLasso,
    LayerOverride,
    Locked,
    Magnitude,
    Movement,
    NofM,
    OneShot,
    Platon,
    Random,
    Regularizer,
    Snip,
    SnipMomentum,
    TrainingLength,
    Uniform,
)
from runner.config.compose import compose, compose_experiment, register
from runner.config.distillation import DistillationSettings, HiddenStates, Logits, LogitsHidden, NoDistillation, SimKD
from runner.config.experiment import GROUPS, Experiment, Origin
from runner.config.training import SchedulerType
from runner.models import Checkpoint
from runner.records.identity import Contents, Identity, identify
from runner.stages.announce import params
from runner.system.errors import UserError
from runner.system.spelling import N_OF_M
from tests.conftest import Cli
from tests.pruning.training import updates_of

CONF = Path(conf.__file__).parent
FEATURES = 88_524  # of SQuAD v1.1's train split at 384 tokens and a stride of 128


@dataclass
class Published:
    """A row of the published recipes, as in the reference; the rest is common to all and written in the test."""

    path: str
    learning_rate: float
    batch: int
    epochs: int
    cooldown: int
    weight_decay: float
    distill_weight: float
    end: int
    """The end of pruning, int(F // batch * (epochs - cool-down)), by hand."""


# fmt: off
PUBLISHED = {
    "bert-mini": Published("google/bert_uncased_L-4_H-256_A-4", 4.5e-4, 16, 10, 5, 1e-7, 4.5, 27_660),
    "distilbert": Published("distilbert/distilbert-base-uncased", 1e-4, 16, 20, 10, 1e-7, 3.0, 55_320),
    "bert-base": Published("google-bert/bert-base-uncased", 7e-5, 12, 10, 4, 1e-7, 4.5, 44_262),
    "bert-large": Published("google-bert/bert-large-uncased", 5e-5, 24, 40, 10, 0.0, 3.0, 110_640),
}
# fmt: on
TARGETS = {"4x1": 0.8, "2:4": 0.5}
ROWS = list(itertools.product(PUBLISHED, TARGETS))


@cache
def both(*overrides: str) -> tuple[Experiment, Origin]:
    """Through the door; each only once, a composition takes a third of a second."""
    return compose_experiment(overrides)


@cache
def composed(*overrides: str) -> Experiment:
    """Without the origin, which is a composition more."""
    register()
    experiment = OmegaConf.to_object(compose(overrides))
    assert isinstance(experiment, Experiment)
    return experiment


def labels(*overrides: str) -> dict[str, str]:
    return both(*overrides)[1].labels


def length(batch: int, epochs: int) -> TrainingLength:
    """As the runner counts it for the features of SQuAD."""
    return TrainingLength(steps=epochs * -(-FEATURES // batch), steps_per_epoch=FEATURES // batch, epochs=epochs)


# --- the published rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "pattern"), ROWS)
def test_model_and_pattern_alone_compose_the_published_recipe(model: str, pattern: str) -> None:
    row, (experiment, origin) = PUBLISHED[model], both(f"model={model}", f"pattern={pattern}")
    assert origin.labels == {"model": model, "dataset": "squad", "pattern": pattern}
    assert origin.choices["recipe"] == f"squad-{model}"
    assert origin.changed == {}
    assert experiment.prune
    assert experiment.model.path == row.path
    assert experiment.model.finetuned is None
    assert experiment.recipe.name == f"squad-{model}"
    train = experiment.train
    assert train.learning_rate == row.learning_rate
    assert train.lr_scheduler_type is SchedulerType.linear
    assert train.warmup_steps == 1000
    assert train.per_device_train_batch_size == row.batch
    assert train.gradient_accumulation_steps == 1
    assert train.num_train_epochs == row.epochs
    assert train.max_steps == -1
    assert train.weight_decay == row.weight_decay
    assert (train.adam_beta1, train.adam_beta2) == (0.9, 0.9)
    assert train.max_grad_norm == 0  # no clipping
    assert experiment.pattern == (Block(4, 1, target_sparsity=0.8) if pattern == "4x1" else NofM(2, 4))
    assert experiment.pattern.target == TARGETS[pattern]
    assert experiment.schedule == Gradual(
        start="1000", decay="exp", initial="0", end=None, frequency="1000", cooldown=f"{row.cooldown} epochs",
    )  # fmt: skip
    assert experiment.distill == Logits(weight=row.distill_weight, label_weight=0.0, temperature=2.0, teacher=None)
    assert experiment.criterion == SnipMomentum(reduce="mean", momentum=0.9, scale=1)
    assert experiment.allocation == Global(max_per_layer=0.98, min_per_layer=0, regrow=False, layers={})
    assert experiment.regularizer == Regularizer()  # none
    data = experiment.dataset
    assert data.path == "rajpurkar/squad"
    settings = {"max_seq_length": 384, "doc_stride": 128, "n_best": 20, "max_answer_length": 30}
    assert {key: getattr(data, key) for key in settings} == settings
    assert (data.max_train_samples, data.max_eval_samples, data.holdout) == (None, None, 0)


@pytest.mark.parametrize(("model", "pattern"), ROWS)
def test_published_rows_update_their_masks_at_the_published_steps(model: str, pattern: str) -> None:
    row, experiment = PUBLISHED[model], both(f"model={model}", f"pattern={pattern}")[0]
    assert isinstance(experiment.schedule, Gradual)
    assert FEATURES // row.batch * (row.epochs - row.cooldown) == row.end
    count = (row.end - 1000 + 1000) // 1000 - 1  # the reference's n
    when = length(row.batch, row.epochs)
    assert experiment.schedule.last_step(when) == row.end
    updates = updates_of(experiment.schedule, when, experiment.pattern.target)
    assert list(updates) == [1000 + 1000 * t for t in range(count + 1)]
    assert updates[1000] == 0  # the first prunes nothing
    assert updates[max(updates)] == TARGETS[pattern]
    middle = 1 - (1 - TARGETS[pattern]) ** (3 / count)  # "exp" of the reference, from 0
    assert updates[4000] == pytest.approx(middle, rel=1e-9)


def test_dense_fine_tuning_of_bert_mini_is_the_published_one() -> None:
    finetune = composed("model=bert-mini").finetune
    assert finetune.learning_rate == 5e-5
    assert finetune.lr_scheduler_type is SchedulerType.linear
    assert finetune.per_device_train_batch_size == 8
    assert finetune.num_train_epochs == 5
    assert finetune.weight_decay == 0


@pytest.mark.parametrize("model", ["distilbert", "bert-base", "bert-large"])
def test_dense_fine_tuning_of_the_others_is_the_usual_one(model: str) -> None:
    finetune = composed(f"model={model}").finetune
    assert 3e-5 <= finetune.learning_rate <= 5e-5
    assert 12 <= finetune.per_device_train_batch_size <= 32
    assert (finetune.num_train_epochs, finetune.lr_scheduler_type) == (2, SchedulerType.linear)


@pytest.mark.parametrize(("model", "pattern"), [("bert-large", "4x1"), ("bert-mini", "2:4")])
def test_command_line_shows_the_published_recipe(cli, model: str, pattern: str, tmp_path: Path) -> None:
    done = cli("-m", "runner", f"model={model}", f"pattern={pattern}", "--cfg", "job", "--resolve")
    assert done.returncode == 0, done.stderr
    shown, row = yaml.safe_load(done.stdout), PUBLISHED[model]
    expected = {
        "learning_rate": row.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": 1000,
        "per_device_train_batch_size": row.batch,
        "num_train_epochs": row.epochs,
        "weight_decay": row.weight_decay,
        "adam_beta1": 0.9,
        "adam_beta2": 0.9,
        "max_grad_norm": 0,
    }
    # PyYAML reads 1e-07 as text: compare as numbers where they are numbers.
    assert {key: _number(shown["train"][key]) for key in expected} == expected
    assert shown["schedule"] == {"decay": "exp", "initial": "0", "start": "1000", "end": None, "frequency": "1000",
                                 "cooldown": f"{row.cooldown} epochs"}  # fmt: skip
    assert shown["criterion"] == {"reduce": "mean", "momentum": 0.9, "scale": 1}
    assert shown["allocation"] == {"max_per_layer": 0.98, "min_per_layer": 0, "regrow": False, "layers": {},
                                   "cost": "parameters", "latency": None}  # fmt: skip
    assert shown["regularizer"] == {}
    assert shown["distill"] == {"weight": row.distill_weight, "label_weight": 0, "teacher": None, "cache": True,
                                    "temperature": 2}  # fmt: skip
    assert shown["model"]["path"] == row.path
    assert (shown["dataset"]["path"], shown["dataset"]["max_seq_length"]) == ("rajpurkar/squad", 384)
    if pattern == "4x1":
        assert shown["pattern"] == {"target_sparsity": 0.8, "rows": 4, "cols": 1}
    else:  # the target follows from n and m
        assert shown["pattern"] == {"target_sparsity": None, "n": 2, "m": 4, "mix": False}
    assert list(tmp_path.iterdir()) == []


def _number(value: object) -> object:
    try:
        return float(str(value))
    except ValueError:
        return value


# --- what there is ------------------------------------------------------------------------------------------


def test_without_arguments_it_is_bert_mini_on_squad_4x1() -> None:
    experiment, origin = both()
    assert origin.labels == {"model": "bert-mini", "dataset": "squad", "pattern": "4x1"}
    assert origin.choices == {
        **{"model": "bert-mini", "dataset": "squad", "pattern": "4x1", "criterion": "snip_momentum"},
        **{"allocation": "global", "schedule": "recipe", "regularizer": "none", "distill": "logits"},
        **{"recipe": "squad-bert-mini", "benchmark": "none"},
    }
    assert origin.changed == {}
    assert experiment == both("model=bert-mini", "pattern=4x1")[0]


# Published rows of text classification: learning rate, epochs, cool-down, weight decay, distillation weight, steps
# between updates, tokens.
CLASSIFIED = {
    "mrpc-bert-mini": (1e-3, 15, 5, 1e-3, 5.0, 50, 128),
    "mrpc-distilbert": (1e-4, 120, 40, 0.0, 2.0, 50, 256),
    "sst2-bert-mini": (5e-5, 15, 5, 5e-5, 2.0, 500, 128),
}


@pytest.mark.parametrize("pattern", TARGETS)
@pytest.mark.parametrize("name", CLASSIFIED)
def test_published_rows_of_text_classification_compose_too(name: str, pattern: str) -> None:
    rate, epochs, cooldown, decay, weight, frequency, tokens = CLASSIFIED[name]
    dataset, model = name.split("-", 1)
    experiment, origin = both(f"model={model}", f"dataset={dataset}", f"pattern={pattern}")
    assert origin.labels == {"model": model, "dataset": dataset, "pattern": pattern}
    assert (origin.choices["recipe"], origin.choices["distill"], origin.changed) == (name, "simkd", {})
    train, schedule = experiment.train, experiment.schedule
    assert (train.learning_rate, train.num_train_epochs, train.weight_decay) == (rate, epochs, decay)
    assert (train.lr_scheduler_type, train.warmup_steps) == (SchedulerType.constant, 0)
    assert (train.per_device_train_batch_size, experiment.dataset.max_seq_length) == (16, tokens)
    assert experiment.pattern.target == {"4x1": 0.9, "2:4": 0.5}[pattern]
    assert experiment.distill == SimKD(weight=weight)
    assert schedule == Gradual(decay="exp", start="1 epochs", frequency=str(frequency), cooldown=f"{cooldown} epochs")
    assert experiment.dataset.metric == {"mrpc": "f1", "sst2": "accuracy"}[dataset]


@pytest.mark.parametrize(
    ("schedule", "steps"), [("recipe", 1000), ("short", 0.1), ("large_first", 0.1), ("one_shot", 0.1), ("early", 0.1)]
)
def test_only_the_published_schedule_brings_the_published_warmup(schedule: str, steps: float) -> None:
    assert composed("model=bert-base", "dataset=squad", f"schedule={schedule}").train.warmup_steps == steps
    assert composed("model=bert-base", f"schedule={schedule}", "train.warmup_steps=7").train.warmup_steps == 7


def test_the_recipes_choice_of_distillation_is_overridden_by_the_command_line() -> None:
    published = composed("dataset=mrpc")
    assert (published.recipe.distill, type(published.distill)) == ("simkd", SimKD)
    assert isinstance(composed("dataset=mrpc", "distill=logits").distill, Logits)
    assert isinstance(composed("experiment=mrpc-bert-mini-4x1", "distill=none").distill, NoDistillation)


def test_only_a_recipe_chooses_the_distillation() -> None:
    for pair in (["dataset=rte"], ["dataset=mrpc", "model=bert-base"], ["dataset=sst2", "model=hub", "model.path=x"]):
        experiment = composed(*pair)
        assert (experiment.recipe.name, experiment.recipe.distill) == (BEST, "logits_hidden")
        assert isinstance(experiment.distill, LogitsHidden), pair
    asked = composed("recipe=mrpc-bert-mini", "model=hub", "model.path=x")
    assert asked.distill == SimKD(weight=5.0)
    assert isinstance(composed("dataset=mrpc", "recipe=squad-distilbert").distill, Logits)


def test_the_recipes_distillation_is_changed_by_choosing_another_option() -> None:
    with pytest.raises(UserError, match="has no effect: distill=simkd is chosen; set distill=none"):
        compose_experiment(["dataset=mrpc", "recipe.distill=none"])


def test_a_recipe_of_the_users_chooses_the_distillation(cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    own = "defaults:\n  - /schema/recipe/Recipe\nname: mine\ndistill: hidden\ndistill_weight: 7\n"
    (tmp_path / "mine" / "recipe" / "rte-bert-mini.yaml").write_text(own, encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "mine", "--cfg", "job", "--resolve", "dataset=rte")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert (shown["recipe"]["distill"], shown["distill"]["weight"]) == ("hidden", 7)
    assert "attention_weight" in shown["distill"]


BEST = "best"  # an experiment for any model and dataset; the others are rows
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem != BEST)


def test_there_is_an_experiment_file_for_each_published_row() -> None:
    rows = [(f"squad-{model}", pattern) for model, pattern in ROWS] + list(itertools.product(CLASSIFIED, TARGETS))
    assert set(EXPERIMENTS) == {f"{name}-{pattern.replace(':', 'of')}" for name, pattern in rows}
    assert len(EXPERIMENTS) == 14


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiment_file_is_its_groups_and_opens_with_its_command(name: str) -> None:
    dataset, _, rest = name.partition("-")
    model, _, pattern = rest.rpartition("-")
    by_file, origin = compose_experiment([f"experiment={name}"])
    by_groups, plain = both(f"model={model}", f"dataset={dataset}", f"pattern={pattern.replace('2of4', '2:4')}")
    assert by_file == by_groups
    assert origin.labels == plain.labels
    assert origin.changed == plain.changed == {}
    header = [line for line in (CONF / f"experiment/{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert f"# Command: python -m runner experiment={name}" in header
    assert any(line.startswith(("# Published F1 ", "# Published accuracy ")) for line in header)
    assert any(line.startswith("# Hardware and time:") for line in header)


def test_the_best_recipe_is_for_any_model_dataset_and_pattern() -> None:
    experiment, origin = compose_experiment([f"experiment={BEST}", "model=minilm-l6", "dataset=sst2", "pattern=2:4"])
    check_best(experiment, origin)
    assert (experiment.train.learning_rate, experiment.model.attention_dropout) == (3e-4, 0)
    assert origin.labels == {"model": "minilm-l6", "dataset": "sst2", "pattern": "2:4"}


def check_best(experiment: Experiment, origin: Origin) -> None:
    """Check the options of recipe=best."""
    chosen = {key: origin.choices[key] for key in ("recipe", "criterion", "schedule", "distill")}
    assert chosen == {"recipe": BEST, "criterion": "obs_sequential", "schedule": "early", "distill": "logits_hidden"}
    assert experiment.criterion == OBS(sequential=True)
    assert isinstance(experiment.distill, LogitsHidden)
    assert experiment.schedule == Gradual(decay="cubic", initial="75%", start="0", frequency="15%", cooldown="69%")
    assert (experiment.train.num_train_epochs, experiment.train.adam_beta2) == (3, 0.999)
    assert experiment.train.hidden_dropout == 0


def test_the_best_recipe_updates_masks_three_times_in_trainings_of_38_steps_and_more() -> None:
    schedule = composed("recipe=best", "model=minilm-l6", "dataset=sst2").schedule
    for steps in range(38, 3000):
        updates = list(schedule.steps(TrainingLength(steps)))
        assert len(updates) == 3, steps
        assert updates[0] == 0
        assert updates[-1] <= 0.31 * steps + 0.5


@pytest.mark.parametrize("overrides", [
    ["model=minilm-l6"], ["model=bert-base", "dataset=sst2"], ["model=hub", "model.path=x", "dataset=rte"],
    ["model=bert-base", "recipe=best"], ["model=minilm-l6", "criterion=obs_sequential", "schedule=early"],
])  # fmt: skip
def test_pairs_without_a_published_recipe_take_the_best(overrides: list[str]) -> None:
    experiment, origin = compose_experiment(overrides)
    check_best(experiment, origin)
    assert experiment.train.learning_rate == 1e-4
    assert origin.changed.keys() <= {"model.path"}


@pytest.mark.parametrize(("overrides", "criterion", "schedule"), [
    (["schedule=short"], "snip_momentum", "short"),
    (["schedule=one_shot"], "snip_momentum", "one_shot"),
    (["criterion=fisher"], "fisher", "recipe"),
    (["criterion=obs", "schedule=one_shot"], "obs", "one_shot"),
    (["recipe=published"], "snip_momentum", "recipe"),
    (["recipe=squad-bert-base"], "snip_momentum", "recipe"),
    (["model=bert-base"], "snip_momentum", "recipe"),
    (["model=bert-base", "criterion=obs"], "obs", "recipe"),
    (["model=bert-base", "recipe=best", "criterion=magnitude"], "magnitude", "recipe"),
], ids=str)  # fmt: skip
def test_another_criterion_or_schedule_than_the_recipes_has_the_usual_other_half(
    overrides: list[str], criterion: str, schedule: str
) -> None:
    experiment, origin = compose_experiment(["model=minilm-l6", *overrides])
    assert (origin.choices["criterion"], origin.choices["schedule"]) == (criterion, schedule)
    assert experiment.train.hidden_dropout is None  # gradients of a copy of its teacher come from dropout


def test_the_published_recipe_for_any_pair_is_that_of_bert_base_in_parts_of_the_training() -> None:
    own, any_pair = composed("model=bert-base"), composed("model=minilm-l6", "recipe=published")
    in_parts = {"start", "frequency", "cooldown", "warmup_steps", "name", "batch_size"}
    differs = {key for key, value in asdict(own.recipe).items() if value != asdict(any_pair.recipe)[key]}
    assert differs <= in_parts
    assert isinstance(any_pair.schedule, Gradual)
    assert (any_pair.schedule.start, any_pair.schedule.frequency, any_pair.schedule.cooldown) == ("10%", "2%", "40%")


@pytest.fixture
def recipes(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """`recipes(name, text)` writes a recipe to a folder of hydra.searchpath, and returns the override."""

    def write(name: str, text: str) -> list[str]:
        (tmp_path / "recipe").mkdir(exist_ok=True)
        (tmp_path / f"recipe/{name}.yaml").write_text(text, encoding="utf-8")
        return [f"hydra.searchpath=['file://{tmp_path}']", "model=minilm-l6"]

    return write


WHOLE = "defaults: [/schema/recipe/Recipe]\nname: mine\ncriterion: magnitude\nschedule: short\n"


def test_a_recipe_of_the_searchpath_that_names_options_asks_for_them(recipes: Callable[[str, str], list[str]]) -> None:
    searched = recipes("mine", WHOLE)
    with pytest.raises(UserError, match=r"recipe\.criterion=magnitude has no effect: .*=snip_momentum is chosen"):
        compose_experiment([*searched, "recipe=mine"])
    typed, _ = compose_experiment([*searched, "recipe=mine", "criterion=magnitude", "schedule=short"])
    assert (type(typed.criterion), typed.recipe.name) == (Magnitude, "mine")
    recipes("squad-minilm-l6", WHOLE)  # the pair's own
    chosen = "criterion=obs_sequential is chosen"
    with pytest.raises(UserError, match=rf"recipe\.criterion=magnitude has no effect: {chosen}"):
        compose_experiment(searched)


def test_no_recipe_is_not_half_of_one() -> None:
    chosen = "criterion=snip_momentum is chosen"
    with pytest.raises(UserError, match=rf"recipe\.criterion=obs_sequential has no effect: {chosen}"):
        compose_experiment(["model=bert-mini", "~recipe"])
    experiment, origin = compose_experiment(["model=minilm-l6", "recipe=squad-minilm-l6"])  # it has none
    check_best(experiment, origin)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rate: 2\n", (2, 3, "obs_sequential", "early", "logits_hidden")),  # the rest is that of recipe=best
        ("criterion: magnitude\nschedule: short\n", (1e-4, 3, "magnitude", "short", "logits_hidden")),
        ("defaults: [/schema/recipe/Recipe]\nname: mine\nepochs: 5\n", (7e-5, 5, "snip_momentum", "recipe", "logits")),
    ],
)
def test_a_recipe_of_ones_own_has_the_values_of_its_schema_or_of_the_best(
    text: str, expected: tuple[Any, ...], cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "own.yaml").write_text(text, encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "mine", "--cfg", "job", "--resolve", "model=minilm-l6", "recipe=own")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    learned, epochs, *named = expected
    assert (shown["train"]["learning_rate"], shown["train"]["num_train_epochs"]) == (learned, epochs)
    assert [shown["recipe"][group] for group in ("criterion", "schedule", "distill")] == named
    assert ("samples" in shown["criterion"], "hidden_weight" in shown["distill"]) == (
        "obs_sequential" in named, "logits_hidden" in named
    )  # fmt: skip


def test_a_dropout_in_ones_own_model_file_counts(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    text = "defaults: [/schema/model/Model]\npath: x\nattention_dropout: 0.2\n"
    (tmp_path / "mine" / "model" / "own.yaml").write_text(text, encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "mine", "--cfg", "job", "--resolve", "model=own")
    assert yaml.safe_load(done.stdout)["model"]["attention_dropout"] == 0.2


@pytest.mark.parametrize("group", ["criterion", "schedule", "distill"])
def test_an_option_named_in_the_recipe_where_nothing_reads_it_is_refused(group: str) -> None:
    with pytest.raises(UserError, match=rf"recipe\.{group}=x has no effect: .* is chosen; set {group}=x instead"):
        compose_experiment(["model=minilm-l6", f"recipe.{group}=x"])


def test_the_seed_of_a_criterion_follows_that_of_the_run() -> None:
    def of(*overrides: str) -> tuple[Identity, dict[str, str]]:
        experiment, origin = compose_experiment(["model=tiny", "dataset=demo", "criterion=obs", *overrides])
        return identify(experiment, Contents("model", "data")), origin.changed

    (first, plain), (second, changed) = of("seed=0"), of("seed=1")
    assert first.run != second.run
    assert first.group == second.group
    assert plain == changed  # a row of three seeds does not list it as a difference
    fixed, own = of("seed=1", "criterion.seed=7")
    assert fixed.group != second.group
    assert own == changed | {"criterion.seed": "7"}


def test_the_dropout_of_the_pruning_is_not_that_of_its_control() -> None:
    contents = Contents("model", "data")

    def of(*overrides: str) -> Identity:
        return identify(compose_experiment(["model=tiny", "dataset=demo", *overrides])[0], contents)

    pruned, own, control = of("train.hidden_dropout=0"), of(), of("pattern=dense", "train.hidden_dropout=0")
    assert pruned.run != own.run
    assert (pruned.dense, pruned.control, pruned.budget) == (own.dense, own.control, own.budget)
    assert control == of("pattern=dense")
    assert control.control == pruned.control


def test_the_fine_tuning_has_the_dropout_of_the_model() -> None:
    with pytest.raises(UserError, match=r"finetune.hidden_dropout=0.1: .* set model.hidden_dropout, or train"):
        composed("finetune.hidden_dropout=0.1")
    with pytest.raises(UserError, match=r"hidden_dropout=1.0 is out of range in train"):
        composed("train.hidden_dropout=1")


def options() -> list[tuple[str, str]]:
    """Every option of every group: from the files, and those of N:M, whose names cannot be file names."""
    others = ("schema", "hparams_search", "debug")
    files = [(path.parent.name, path.stem) for path in sorted(CONF.glob("*/*.yaml")) if path.parent.name not in others]
    return files + [("pattern", f"{n}:{m}") for n, m in N_OF_M]


# What there is at least, group by group, where people choose how to prune.
CHOICES = {
    "pattern": {
        *("1x1", "2x2", "4x4", "8x8", "16x16", "32x32", "4x1", "8x1", "1x4", "1x8", "block", "rows", "columns"),
        *("nm", "2:4", "1:4", "3:4", "2:8", "4:8", "1:2", "1:8", "2:16", "4:16", "dense", "locked"),
    },
    "criterion": {
        *("snip_momentum", "magnitude", "gradient", "snip", "movement", "platon", "fisher", "random"),
    },
    "schedule": {"recipe", "short", "one_shot", "large_first", "early"},
    "regularizer": {"none", "group_lasso"},
    "allocation": {"global", "uniform"},
    "distill": {"logits", "logits_hidden", "hidden", "simkd", "none"},
    "benchmark": {"none", "cpu"},
}


def test_options_were_found() -> None:
    by_group = {group: {o for g, o in options() if g == group} for group, _ in options()}
    assert by_group.keys() == {*CHOICES, "model", "dataset", "recipe", "experiment"}
    assert {group: names - by_group[group] for group, names in CHOICES.items() if not names <= by_group[group]} == {}
    least = {"model": 16, "dataset": 16, "pattern": 16 + 9, "criterion": 8, "allocation": 2, "schedule": 4,
             "regularizer": 2, "distill": 4, "recipe": 10, "experiment": 14, "benchmark": 2}  # fmt: skip
    assert {group: len(names) for group, names in by_group.items() if len(names) < least[group]} == {}
    assert len(options()) == len(set(options())) >= sum(least.values()) == 103


def schema(group: str, option: str) -> str:
    """The class that an option's file names in its defaults list; those without a file are N:M."""
    file = CONF / group / f"{option}.yaml"
    if not file.is_file():
        return NofM.__name__
    (entry,) = [e for e in yaml.safe_load(file.read_text())["defaults"] if str(e).startswith("/schema/")]
    assert entry.startswith(f"/schema/{group}/")
    return entry.rpartition("/")[2]


@pytest.mark.parametrize(("group", "option"), options())
def test_every_option_composes_and_becomes_its_object(group: str, option: str) -> None:
    needed = {"hub": ["model.path=x"]}.get(option, ["dataset.path=x"] if option in ("classify", "span", "tag") else [])
    experiment = composed(f"{group}={option}", *needed)
    if group != "experiment":
        assert type(getattr(experiment, group)).__name__ == schema(group, option)
    if group == "pattern" and option not in ("block", "nm"):
        assert str(experiment.pattern) == option
    if group == "recipe":
        assert experiment.recipe.name == option


def test_every_pattern_by_name_is_the_pattern() -> None:
    assert composed("pattern=1x4").pattern == Block(1, 4, target_sparsity=0.8)
    assert composed("pattern=8x1").pattern == Block(8, 1, target_sparsity=0.8)
    assert composed("pattern=dense").pattern == Dense()
    assert composed("pattern=locked").pattern == Locked()
    assert composed("pattern=rows").pattern == Block(1, 0, target_sparsity=0.8)
    assert composed("pattern=columns").pattern == Block(0, 1, target_sparsity=0.8)
    assert composed("pattern=1:4").pattern == NofM(1, 4)
    assert composed("pattern=1:4").pattern.target == 0.75
    assert composed("pattern=block", "pattern.rows=6", "pattern.cols=2").pattern == Block(6, 2, target_sparsity=0.8)
    assert composed("pattern=nm", "pattern.n=3", "pattern.m=8").pattern == NofM(3, 8)
    assert composed("pattern=nm", "pattern.n=3", "pattern.m=8").pattern.target == 0.625
    mix = composed("pattern=2:4", "pattern.mix=true", "pattern.target_sparsity=0.3").pattern
    assert mix == NofM(2, 4, mix=True, target_sparsity=0.3)
    assert composed("pattern.target_sparsity=0.9").pattern == Block(4, 1, target_sparsity=0.9)


def test_other_groups_by_name_are_their_objects() -> None:
    for option, criterion in (
        ("snip_momentum", SnipMomentum()), ("magnitude", Magnitude()), ("gradient", Gradient()), ("snip", Snip()),
        ("movement", Movement()), ("platon", Platon()), ("fisher", DiagonalFisher()), ("random", Random()),
    ):  # fmt: skip
        assert composed(f"criterion={option}").criterion == criterion
    assert composed("criterion=platon", "criterion.beta2=0.9", "criterion.reduce=max").criterion == Platon(
        beta2=0.9, reduce="max"
    )
    assert composed("allocation=uniform", "allocation.max_per_layer=0.9").allocation == Uniform(max_per_layer=0.9)
    assert composed("schedule=one_shot", "schedule.start=25%").schedule == OneShot(start="25%")
    large = composed("schedule=large_first").schedule
    assert isinstance(large, Gradual)
    assert (large.decay, large.initial) == ("cubic", "85%")
    assert composed("regularizer=group_lasso", "regularizer.weight=0.01").regularizer == GroupLasso(weight=0.01)
    assert composed("distill=none").distill == NoDistillation()
    assert composed("distill=simkd").distill == SimKD(weight=4.5)  # the recipe's weight
    layers = composed("distill=hidden", "+distill.layers={1: 2, 2: 4}", "distill.attention_weight=0.5").distill
    assert layers == HiddenStates(weight=4.5, attention_weight=0.5, temperature=2.0, layers={1: 2, 2: 4})
    assert composed("dataset=demo", "model=tiny").recipe.name == "demo-tiny"


def test_every_file_opens_with_what_it_is() -> None:
    files = sorted(CONF.glob("**/*.yaml"))
    assert len(files) >= 90
    for file in files:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line != "# @package _global_"]
        assert re.match(r"# \S.{20,}", lines[0]), file


@pytest.mark.parametrize(
    ("model", "dataset", "pattern"),
    [("tiny", "demo", "2:4"), ("bert-mini", "mrpc", "4x1"), ("roberta-base", "mnli", "1x1")],
)
def test_a_debug_run_is_short_and_apart_from_all_others(model: str, dataset: str, pattern: str) -> None:
    groups = [f"model={model}", f"dataset={dataset}", f"pattern={pattern}"]
    (plain, origin), (debug, its) = both(*groups), both("debug=default", *groups)
    assert (debug.train.max_steps, debug.finetune.max_steps) == (8, 4)
    assert (debug.dataset.max_train_samples, debug.dataset.max_eval_samples) == (64, 32)
    assert 0 < debug.train.save_steps < debug.train.max_steps
    assert max(updates_of(debug.schedule, TrainingLength(8), debug.pattern.target)) < 8
    assert debug.train.learning_rate == plain.train.learning_rate  # the rest is that of the run
    assert debug.force
    assert debug.tracking.uri == f"sqlite:///{debug.output_dir}/mlflow.db"
    for other in ("output_dir", "cache_dir", "tracking"):
        assert getattr(debug, other) != getattr(plain, other)
    assert its.labels == origin.labels
    quick = {"schedule": "short", "criterion": "snip_momentum"}
    assert its.choices == {**origin.choices, **quick}  # debug is no choice of the run's
    assert composed("debug=default", "train.max_steps=3", "schedule=one_shot").train.max_steps == 3


@pytest.mark.slow
def test_a_debug_run_is_in_no_table(cli, tmp_path: Path) -> None:
    done = cli("-m", "runner", "debug=default", "model=tiny", "dataset=demo", "pattern=2:4")
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs" / "debug").glob("tiny-demo-*")
    assert (folder / "result.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "outputs"]
    assert "there is no MLflow database" in cli("-m", "results").stderr


WITHOUT_OPTUNA = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is not None, reason="the extra optuna is installed"
)


@WITHOUT_OPTUNA
@pytest.mark.parametrize("option", ["hparams_search=optuna", "hydra/sweeper=optuna"])
def test_a_search_without_its_plugin_is_one_message(option: str, refused) -> None:
    assert refused("-m", option) == (
        "error: hydra/sweeper=optuna needs the plugin of Hydra for Optuna: .venv/bin/pip install -e '.[optuna]'\n"
    )


@WITHOUT_OPTUNA
def test_a_search_is_over_keys_of_a_run_and_on_a_part_of_train(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ("direction", "n_trials", "n_jobs", "study_name", "storage", "params")  # the plugin's own
    stand_in = {"_target_": "none", "sampler": {"seed": None, "n_startup_trials": 10}, **dict.fromkeys(keys)}
    register()
    sweepers = ConfigStore.instance().repo["hydra"]["sweeper"]
    node = replace(sweepers["basic.yaml"], name="optuna.yaml", node=OmegaConf.create(stand_in))
    monkeypatch.setitem(sweepers, "optuna.yaml", node)
    config = compose(["hparams_search=optuna", "model=tiny", "dataset=demo"], with_hydra=True)
    sweeper = config.hydra.sweeper
    assert config.dataset.holdout == 0.1  # which runner/sweeps/callback.py demands
    assert (sweeper.direction, sweeper.n_trials, sweeper.sampler.seed) == ("maximize", 20, 0)
    assert set(sweeper) == set(stand_in)
    assert set(sweeper.params) == {"train.learning_rate", "distill.weight"}
    parser = OverridesParser.create()
    for key, space in sweeper.params.items():
        assert OmegaConf.select(config, key) is not None
        assert parser.parse_override(f"{key}={space}").is_interval_sweep()


# --- exceptions by layer ------------------------------------------------------------------------------------

BERT = Checkpoint("somewhere", None, BertConfig(), "model.path")
LAYERS = "+allocation.layers={*.query:{target:0.3},*.key:{frozen:true}}"


def test_layers_can_be_given_on_the_command_line() -> None:
    layers = composed(LAYERS).allocation.layers
    assert layers == {"*.query": LayerOverride(target=0.3), "*.key": LayerOverride(frozen=True)}
    assert list(layers) == ["*.query", "*.key"]  # later ones come last
    both_ways = composed("allocation=uniform", "+allocation.layers={bert.encoder.layer.0.*:{excluded:true}}").allocation
    assert both_ways == Uniform(layers={"bert.encoder.layer.0.*": LayerOverride(excluded=True)})
    for quoted in ("2:4", "'2:4'"):  # Hydra's grammar has no such numbers
        layers = composed(f"+allocation.layers={{*.value:{{pattern:{quoted}}}}}").allocation.layers
        assert layers == {"*.value": LayerOverride(pattern="2:4")}


YAML = """\
# @package _global_
allocation:
  layers:
    "*.query": {target: 0.3}
    "*.key":
      frozen: true
    "*.value":
      pattern: "2:4"
"""


def test_layers_can_be_given_in_a_file(cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "apart.yaml").write_text(YAML, encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "mine", "--cfg", "job", "--resolve", "experiment=apart")
    assert done.returncode == 0, done.stderr
    layers = yaml.safe_load(done.stdout)["allocation"]["layers"]
    assert {name: LayerOverride(**values) for name, values in layers.items()} == {
        "*.query": LayerOverride(target=0.3),
        "*.key": LayerOverride(frozen=True),
        "*.value": LayerOverride(pattern="2:4"),
    }
    assert list(layers) == ["*.query", "*.key", "*.value"]


@pytest.mark.parametrize("overrides", [
    [LAYERS], ["+allocation.layers={encoder:{target:0.3}}"], ["regularizer=group_lasso", "regularizer.weight=0.01"],
    ["schedule=one_shot", "schedule.start=5"], ["pattern=locked", "model.sparse=some/where"],
    ["pattern=nm", "pattern.mix=true", "pattern.target_sparsity=0.3"], ["prune=false", LAYERS],
], ids=" ".join)  # fmt: skip
def test_mlflow_takes_the_name_of_every_param(overrides: list[str]) -> None:
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, _validate_param_name

    experiment, origin = compose_experiment(overrides)
    logged = params(experiment, origin, BERT)
    assert len(logged) >= 14
    for name in logged:
        _validate_param_name(name)
        assert len(name) < MAX_ENTITY_KEY_LENGTH


def test_params_show_what_was_chosen_and_changed() -> None:
    logged = params(*compose_experiment([LAYERS, "regularizer=group_lasso", "regularizer.weight=0.01", "seed=2"]), BERT)
    assert (logged["criterion"], logged["regularizer"], logged["seed"]) == ("snip_momentum", "group_lasso", 2)
    assert logged["regularizer.weight"] == "0.01"
    assert logged["schedule.initial"] == "0"
    assert (logged["model.hidden_dropout"], logged["model.attention_dropout"]) == (0.1, 0.1)
    shown = str(logged["allocation.layers"])
    assert all(text in shown for text in ("*.query", "0.3", "*.key", "frozen"))
    assert "allocation.layers" not in params(*both(), BERT)


# --- precedence ---------------------------------------------------------------------------------------------


def test_recipe_overrides_the_groups_defaults() -> None:
    plain = composed("model=hub", "model.path=x")
    mini = composed("model=bert-mini")
    assert isinstance(plain.schedule, Gradual)
    assert isinstance(mini.schedule, Gradual)
    assert plain.train.learning_rate == 1e-4  # documented in conf/recipe/best.yaml
    assert mini.train.learning_rate == 4.5e-4
    assert plain.schedule.cooldown == "69%"
    assert mini.schedule.cooldown == "5 epochs"


def test_a_model_of_the_users_borrows_no_recipe() -> None:
    experiment, origin = compose_experiment(["model=hub", "model.path=google/bert_uncased_L-4_H-256_A-4"])
    assert experiment.recipe.name == BEST
    assert origin.choices["recipe"] == BEST
    assert composed("model=minilm-l6").recipe.name == BEST
    assert composed("dataset=demo").recipe.name == BEST


def test_recipe_can_be_asked_for_by_name() -> None:
    experiment, origin = compose_experiment(["model=hub", "model.path=x", "recipe=squad-distilbert"])
    assert experiment.recipe.name == origin.choices["recipe"] == "squad-distilbert"
    assert experiment.train.learning_rate == 1e-4
    assert isinstance(experiment.schedule, Gradual)
    assert experiment.schedule.cooldown == "10 epochs"
    assert origin.changed == {"model.path": "x"}


@pytest.fixture
def own_yaml(tmp_path: Path) -> Path:
    """A folder for --config-dir with an experiment that overrides its recipe."""
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "long.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: distilbert\n  - override /pattern: '2:4'\n"
        "train:\n  learning_rate: 2.0e-5\n  num_train_epochs: 7\n",
        encoding="utf-8",
    )
    return folder.parent


def test_experiment_overrides_recipe_and_command_line_overrides_both(cli, own_yaml: Path) -> None:
    arguments = ["-m", "runner", "--config-dir", str(own_yaml), "--cfg", "job", "--resolve", "experiment=long"]
    done = cli(*arguments, "train.num_train_epochs=3")
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["model"]["path"] == "distilbert/distilbert-base-uncased"
    assert _number(shown["train"]["learning_rate"]) == 2e-5  # the experiment's, not the recipe's 1e-4
    assert shown["train"]["num_train_epochs"] == 3  # the command line's, not the experiment's 7
    assert shown["train"]["per_device_train_batch_size"] == 16  # the recipe's
    assert shown["schedule"]["cooldown"] == "10 epochs"  # the recipe's
    assert shown["train"]["adam_epsilon"] == 1e-8  # the default


def test_command_line_overrides_recipe() -> None:
    experiment, origin = compose_experiment(["train.learning_rate=1e-3", "schedule.cooldown=2 epochs"])
    assert experiment.train.learning_rate == 1e-3
    assert isinstance(experiment.schedule, Gradual)
    assert experiment.schedule.cooldown == "2 epochs"
    assert experiment.train.num_train_epochs == 10
    assert origin.changed == {"train.learning_rate": "0.001", "schedule.cooldown": "2 epochs"}
    assert origin.overrides == ["train.learning_rate=1e-3", "schedule.cooldown=2 epochs"]


def test_a_change_of_the_recipe_reaches_all_that_reads_it() -> None:
    experiment = composed("recipe.distill_weight=9", "recipe.epochs=3", "recipe.block_sparsity=0.7")
    assert experiment.distill.weight == 9
    assert experiment.train.num_train_epochs == 3
    assert experiment.pattern.target == 0.7


@pytest.mark.parametrize("model", PUBLISHED)
def test_short_schedule_ignores_the_recipes_times(model: str) -> None:
    experiment, row = composed(f"model={model}", "schedule=short"), PUBLISHED[model]
    assert experiment.train.warmup_steps == 0.1  # a fraction of the training
    schedule = experiment.schedule
    assert isinstance(schedule, Gradual)
    assert (schedule.start, schedule.frequency, schedule.cooldown, schedule.end) == ("10%", "2%", "30%", None)
    assert experiment.train.learning_rate == row.learning_rate  # the rest is still the recipe's
    assert experiment.distill.weight == row.distill_weight
    for steps in (20, 100, 333, 5000):  # it fits any length
        updates = updates_of(schedule, TrainingLength(steps, max(1, steps // 2), 2), 0.8)
        assert updates[max(updates)] == 0.8
        assert 0 < min(updates) < max(updates) <= 0.75 * steps


@pytest.mark.parametrize("option", ["short", "one_shot", "large_first"])
def test_schedules_in_fractions_are_the_same_for_all_models_and_fit_any_length(option: str) -> None:
    schedules = [composed(f"model={model}", f"schedule={option}").schedule for model in PUBLISHED]
    assert len({repr(schedule) for schedule in schedules}) == 1
    for steps in (20, 100, 333, 5000):
        updates = updates_of(schedules[0], TrainingLength(steps), 0.8)
        assert updates[max(updates)] == 0.8
        assert (len(updates) == 1) is (option == "one_shot")
        if option == "large_first":
            assert updates[min(updates)] == pytest.approx(0.85 * 0.8)


# --- labels -------------------------------------------------------------------------------------------------


def test_labels_are_the_choices_while_nothing_defining_is_overridden() -> None:
    assert labels("model=bert-base", "pattern=2:4", "train.learning_rate=1e-3", "model.hidden_dropout=0") == {
        **{"model": "bert-base", "dataset": "squad", "pattern": "2:4"},
    }
    assert labels("model.path=google/bert_uncased_L-4_H-256_A-4")["model"] == "bert-mini"  # its own value


def test_labels_show_the_value_where_the_choice_would_lie(tmp_path: Path) -> None:
    assert labels("model.path=some/other")["model"] == "some/other"
    assert labels("model=hub", "model.path=some/other")["model"] == "some/other"
    assert labels("model.finetuned=org/minilm-squad")["model"] == "org/minilm-squad"
    assert labels("model.revision=abc123")["model"] == "bert-mini@abc123"
    assert labels("dataset.path=org/other-qa")["dataset"] == "org/other-qa"
    assert labels("dataset.revision=abc123")["dataset"] == "squad@abc123"
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert labels(f"model.finetuned={folder}")["model"] == "my-model"  # a folder by its name


def test_a_model_that_was_asked_for_keeps_its_name_with_a_finetuned_checkpoint() -> None:
    given = ("model.finetuned=org/minilm-squad", "model.finetuned_revision=abc123")
    experiment, origin = both("model=minilm-l6", *given)
    assert origin.labels["model"] == "minilm-l6"
    assert origin.changed["model.finetuned"] == experiment.model.finetuned == "org/minilm-squad"
    assert labels("experiment=squad-bert-base-4x1", *given)["model"] == "bert-base"
    assert labels("model=minilm-l6", "model.path=some/other", *given)["model"] == "some/other"
    assert labels("model=minilm-l6", "model.revision=abc123", *given)["model"] == "minilm-l6@abc123"


def test_pattern_label_is_the_pattern_itself() -> None:
    assert labels("pattern=nm", "pattern.n=3", "pattern.m=8")["pattern"] == "3:8"
    assert labels("pattern=4x1", "pattern.rows=2")["pattern"] == "2x1"
    assert labels("prune=false")["pattern"] == "dense"


def test_yaml_of_the_origin_is_whole_and_resolved() -> None:
    experiment, origin = compose_experiment(["model=bert-base", "seed=3", "output_dir=there"])
    assert origin.changed == {}  # seed and places are no settings
    written = OmegaConf.create(origin.yaml)
    assert "${" not in origin.yaml
    assert written.train.learning_rate == experiment.train.learning_rate == 7e-5
    assert written.seed == 3
    assert "hydra" not in written


# --- identity -----------------------------------------------------------------------------------------------


@cache
def plain_config() -> DictConfig:
    register()
    return compose([])


def experiment_with(*overrides: str) -> Experiment:
    """As `composed`, but without a composition of its own where only values change, which is five times as fast."""
    if any(one.split("=")[0] in GROUPS or set("[{") & set(one) for one in overrides):
        return composed(*overrides)
    experiment = OmegaConf.to_object(OmegaConf.merge(plain_config(), OmegaConf.from_dotlist(list(overrides))))
    assert isinstance(experiment, Experiment)
    return experiment


def identity(
    *overrides: str,
    model: str = "m",
    data: str = "d",
    teacher: str | None = None,
    sparse: str | None = None,
    unlabelled: str = "",
) -> Identity:
    return identify(experiment_with(*overrides), Contents(model, data, teacher, sparse, unlabelled))


def test_values_set_without_a_composition_are_as_with_one() -> None:
    for override in ("train.learning_rate=1e-3", "schedule.end=9000", "recipe.epochs=3", "model.finetuned=x"):
        assert experiment_with(override) == composed(override) != composed()


# fmt: off
DETERMINING = [
    "train.learning_rate=1e-3", "train.num_train_epochs=1", "train.max_steps=7", "train.precision=bf16",
    "train.gradient_accumulation_steps=2", "train.warmup_steps=5", "train.average_weights=0.99",
    "train.lr_rewind=0.5",
    "pattern=2:4", "pattern=1x4", "pattern.target_sparsity=0.7", "pattern=rows", "pattern=3:4", "pattern=locked",
    "criterion=magnitude", "criterion=movement", "criterion.momentum=0.5", "criterion.reduce=max",
    "criterion=obs", "criterion=wanda", "criterion=calibrated_snip", "criterion=calibrated_fisher",
    "allocation=uniform", "allocation.max_per_layer=0.9", "allocation.min_per_layer=0.1", "allocation.regrow=true",
    LAYERS, LAYERS.replace("0.3", "0.4"), "+allocation.layers={*.query:{pattern:2:4}}",
    "+allocation.layers={*.query:{criterion:magnitude}}", "+allocation.layers={*.query:{max_per_layer:0.9}}",
    "schedule=short", "schedule=one_shot", "schedule.decay=cubic", "schedule.end=9000", "schedule.initial=50%",
    "regularizer=group_lasso",
    "distill=none", "distill=simkd", "distill=hidden", "distill=logits_hidden",
    "distill.weight=1", "distill.label_weight=1", "distill.temperature=1",
    "dataset.max_seq_length=256", "dataset.doc_stride=64", "dataset.n_best=5", "dataset.max_answer_length=9",
    "model.excluded=[*query]", "model.prunable=[*query]", "model.hidden_dropout=0.2", "model.frozen=[head]",
    "prune=false",
    "finetune.num_train_epochs=1", "finetune.learning_rate=1e-5",
]
IRRELEVANT = [
    "dry_run=true", "output_dir=elsewhere", "cache_dir=elsewhere", "tracking.uri=sqlite:///other.db",
    "tracking.experiment=other",
    "train.logging_steps=3", "train.save_steps=77", "train.save_total_limit=2", "train.dataloader_num_workers=2",
    "finetune.logging_steps=3", "dataset.validation=0.1",
    # These say which examples there are, and the hash of their contents says it too.
    "dataset.max_train_samples=100", "dataset.max_eval_samples=100", "dataset.holdout=0.1", "dataset.data_seed=1",
]
# fmt: on


@pytest.mark.parametrize("override", DETERMINING)
def test_what_determines_the_result_changes_run_and_group(override: str) -> None:
    before, after = identity(), identity(override)
    assert after.run != before.run
    assert after.group != before.group


@pytest.mark.parametrize("override", IRRELEVANT)
def test_what_does_not_determine_the_result_changes_no_identity(override: str) -> None:
    assert identity(override) == identity()


@pytest.mark.parametrize("override", ["dataset.n_best=5", "dataset.max_answer_length=9", "dataset.metric=exact_match"])
def test_how_it_is_scored_trains_no_dense_model_again(override: str) -> None:
    before, after = identity(), identity(override)
    assert after.dense == before.dense
    assert after.run != before.run
    assert after.control != before.control


def test_the_order_of_the_layers_determines_the_result() -> None:
    one, other = "*.query:{target:0.3}", "*.layer.0.*:{target:0.6}"
    ways = [identity(f"+allocation.layers={{{a},{b}}}") for a, b in ((one, other), (other, one))]
    assert ways[0].run != ways[1].run
    assert ways[0].group != ways[1].group
    assert ways[0].dense == ways[1].dense


def test_every_two_of_the_determining_settings_differ() -> None:
    assert len({identity(override).run for override in DETERMINING}) == len(DETERMINING) >= 44


@pytest.mark.parametrize("value", ["samples=64", "seed=1", "damping=0.1", "rounds=[0.5,1]", "sequential=true"])
def test_calibration_is_part_of_the_identity(value: str) -> None:
    assert identity("criterion=obs", f"criterion.{value}").run != identity("criterion=obs").run


LAYERS_BY_CRITERION = "+allocation.layers={*.query:{target:0.3,criterion:magnitude},*.key:{frozen:true}}"
ESTABLISHED = {
    (): ("076c4656f08b03cb", "68bb01c643ec26f1", "268571482b6baba8", "f0656c36e9098294", "784d4457252335e6"),
    ("pattern=2:4", "schedule=short", "model.finetuned=x"): (
        "32d5eb7081ce6426",
        "a02d6fe2a4c766b2",
        "46169d4b32e7eab8",
        "4ff8b1ac20b730d4",
        "7eae8432d75f2cf4",
    ),
    ("pattern=dense", "distill=logits_hidden", "train.max_steps=7", "seed=3"): (
        "1e8c10565569c5da",
        "2ce65c3285c871f0",
        "e2cb06331376e7f1",
        "11cd631ac64bf707",
        "08dd9928fb63a615",
    ),
    ("criterion=obs", "pattern=4x1", "schedule=one_shot"): (
        "84bd8d7d80cce68b",
        "1a532d5326ab03d7",
        "268571482b6baba8",
        "6c694f55d6058180",
        "9c72b20d2ff8c43d",
    ),
    ("criterion=obs", "criterion.rounds=[0.5,1]", LAYERS_BY_CRITERION): (
        "6d3191a0f0e63b12",
        "d45112d8fd59080f",
        "268571482b6baba8",
        "f0656c36e9098294",
        "784d4457252335e6",
    ),
}
"""Overrides -> identity, as of finished runs. A new option must leave these as they are."""


@pytest.mark.parametrize("overrides", ESTABLISHED)
def test_finished_runs_are_found_again(overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"prepare": 2, "finetune": 2, "teacher": 1, "prune": 4, "evaluate": 1}
    monkeypatch.setattr("runner.records.identity.VERSIONS", stages)
    assert astuple(identity(*overrides)) == ESTABLISHED[overrides]


def test_contents_determine_the_result() -> None:
    before = identity()
    for other in (identity(model="n"), identity(data="e")):
        assert len({before.run, other.run}) == len({before.group, other.group}) == 2
        assert before.dense != other.dense
    other = identity(teacher="t")
    assert (other.run != before.run, other.group != before.group, other.dense == before.dense) == (True, True, True)
    locked = identity("pattern=locked", "model.sparse=x", sparse="s")
    for other in (identity("pattern=locked", "model.sparse=x", sparse="t"), identity("pattern=locked")):
        assert other.run != locked.run
        assert other.group != locked.group
        assert other.dense == locked.dense
    assert identity("pattern=locked", "model.sparse=elsewhere", sparse="s") == locked  # contents, not places
    assert identity("pattern=4x1", "model.sparse=x", sparse="s").run != identity("pattern=4x1").run


def test_examples_without_labels_are_part_of_run_and_control_and_not_of_the_dense_model() -> None:
    before, after, other = identity(), identity(unlabelled="u"), identity(unlabelled="v")
    for key in ("run", "group", "control", "budget"):
        assert len({getattr(each, key) for each in (before, after, other)}) == 3, key
    assert before.dense == after.dense
    assert identity("dataset.unlabelled=x", unlabelled="u") == after  # contents, not places
    assert identity("pattern=dense", unlabelled="u").control == after.control


def test_where_the_same_contents_are_does_not_matter() -> None:
    assert identity("dataset.path=/a/copy", "model.path=/another/copy") == identity()


def test_seeds_share_a_group_and_not_a_run() -> None:
    seeds = [identity(f"seed={seed}") for seed in range(4)]
    assert len({one.run for one in seeds}) == 4
    assert len({one.group for one in seeds}) == 1
    assert len({one.dense for one in seeds}) == 4  # each fine-tunes its own dense model


def test_a_given_dense_model_is_the_same_for_all_seeds() -> None:
    given = [identity("model.finetuned=x", f"seed={seed}") for seed in range(3)]
    assert len({one.dense for one in given}) == 1
    assert len({one.run for one in given}) == 3


def test_dense_model_depends_on_fine_tuning_and_not_on_pruning() -> None:
    dense = identity().dense
    for same in ("pattern=2:4", "train.learning_rate=1e-3", "distill=none", "schedule=short", "prune=false",
                 "model.frozen=[head]"):  # fmt: skip
        assert identity(same).dense == dense, same
    for other in ("finetune.learning_rate=1e-5", "seed=1", "dataset.doc_stride=64", "model.hidden_dropout=0.3"):
        assert identity(other).dense != dense, other


def test_dense_control_does_not_depend_on_what_only_pruning_reads() -> None:
    control = identity("pattern=dense")
    for same in ("criterion=magnitude", "allocation=uniform", "schedule.decay=cubic", "model.excluded=[*query]",
                 "regularizer=group_lasso", "allocation.min_per_layer=0.1"):  # fmt: skip
        assert identity("pattern=dense", same) == control, same
    assert identity("pattern=dense", "+allocation.layers={*.query:{pattern:2:4}}") != control
    assert identity("pattern=dense", "schedule=short") != control  # its warm-up is the training's


def test_a_run_and_its_same_budget_control_are_known_by_a_hash() -> None:
    control = identity("pattern=dense").control
    for same in ("pattern=2:4", "criterion=magnitude", "allocation=uniform", "schedule.decay=cubic", "seed=3",
                 "model.excluded=[*query]", "regularizer=group_lasso"):  # fmt: skip
        assert identity(same).control == control, same
    for other in ("train.num_train_epochs=1", "distill.temperature=1", "distill=none", "model.hidden_dropout=0.2",
                  "finetune.learning_rate=1e-5", "dataset.doc_stride=64", "train.precision=bf16"):  # fmt: skip
        assert identity(other).control != control, other
    assert identity(data="other").control != control
    assert identity(teacher="other").control != control


def test_the_budget_is_the_control_whatever_the_distillation() -> None:
    budget = identity("pattern=dense", "distill=none").budget
    for same in ("distill.temperature=1", "distill=simkd", "pattern=2:4"):
        assert identity(same).budget == budget, same
    for other in ("train.num_train_epochs=1", "train.learning_rate=1e-3", "model.hidden_dropout=0.2"):
        assert identity(other).budget != budget, other


def test_run_without_pruning_does_not_depend_on_pruning() -> None:
    dense = identity("prune=false")
    for same in ("pattern=2:4", "train.learning_rate=1e-3", "distill=none"):
        assert identity("prune=false", same) == dense, same


def test_identity_is_the_same_for_an_equal_experiment_made_otherwise() -> None:
    experiment = composed()
    copied = replace(experiment, pattern=Block(4, 1, target_sparsity=0.8))
    assert identify(copied, Contents("m", "d")) == identity()


def test_missing_value_names_key_and_remedy() -> None:
    with pytest.raises(UserError, match=r"model\.path.*model=hub needs model\.path=ID_OR_FOLDER"):
        compose_experiment(["model=hub"])


def test_every_loss_of_the_engine_can_be_configured() -> None:
    losses = {cls.__name__ for cls in Distillation.__subclasses__() if cls.__module__.startswith("pruning.")}
    configured = [
        cls for cls in DistillationSettings.__subclasses__() if cls.__module__ == "runner.config.distillation"
    ]
    assert {cls.__name__ for cls in configured} == losses
    assert all(issubclass(cls, getattr(pruning, cls.__name__)) for cls in configured)
