"""Bad input: one message that names the key, the value and the remedy; exit status 1, and nothing half-written."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from runner import __main__ as command_line
from runner.config.compose import compose_experiment
from runner.stages.prepare import resolve
from runner.system import hub
from runner.system.errors import UserError
from runner.system.files import write_json
from runner.system.process import exit_status, message
from tests.conftest import NO_DATA, Cli, Refused, check_refusal, save_small_model


def told(*overrides: str) -> str:
    """What the user reads when the configuration is refused."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - Hydra's, OmegaConf's and our own
        compose_experiment(overrides)
    text = message(caught.value)
    assert text is not None, f"a defect, not a message: {caught.value!r}"
    return text


# --- the configuration --------------------------------------------------------------------------------------

# fmt: off
WRONG = [
    (["model=nope"], ["model/nope", "Available options", "bert-mini"]),
    (["pattern=nope"], ["pattern/nope", "Available options", "4x1", "2:4", "dense"]),
    (["experiment=nope"], ["experiment/nope", "Available options", "squad-bert-mini-4x1"]),
    (["modle=bert-mini"], ["modle"]),
    (["train.learning_rat=1"], ["learning_rat"]),
    (["pattern.row=4"], ["row"]),
    (["pattern=2:4", "pattern.rows=4"], ["rows"]),
    (["train.learning_rate=fast"], ["fast", "learning_rate"]),
    (["seed=one"], ["one", "seed"]),
    (["prune=perhaps"], ["perhaps", "prune"]),
    (["train.lr_scheduler_type=step"], ["step", "lr_scheduler_type", "linear", "cosine"]),
    (["train.optimizer=lomo"], ["lomo", "optimizer", "adamw_torch", "adafactor"]),
    (["train.optimizer=sgd", "criterion=fisher"],
     ["train.optimizer=sgd: DiagonalFisher reads the second moment of AdamW", "another criterion"]),
    (["model.prunable=all"], ["prunable"]),
    (["train.learning_rate=0"], ["learning_rate=0", "above 0"]),
    (["train.learning_rate=-1e-3"], ["learning_rate=-0.001", "above 0"]),
    (["finetune.per_device_train_batch_size=0"], ["per_device_train_batch_size=0", "above 0"]),
    (["train.num_train_epochs=0"], ["num_train_epochs=0", "above 0"]),
    (["train.num_train_epochs=-1"], ["num_train_epochs=-1", "above 0"]),
    (["train.num_train_epochs=0", "schedule=one_shot"], ["SnipMomentum observes training steps", "criterion=obs"]),
    (["train.num_train_epochs=0", "criterion=obs"], ["num_train_epochs=0", "one mask update", "schedule=one_shot"]),
    (["train.num_train_epochs=0", "criterion=obs", "schedule=one_shot", "train.evaluate=epochs"],
     ["train.evaluate=epochs scores while the student trains", "leave it out"]),
    (["finetune.num_train_epochs=0"], ["finetune.num_train_epochs=0", "model.finetuned"]),
    (["criterion=obs", "criterion.damping=0"], ["criterion.damping=0", "above 0"]),
    (["criterion=obs", "criterion.reduce=max"], ["criterion.reduce=max", "leave reduce out"]),
    (["criterion=obs", "criterion.rounds=[0.5,0.4,1]"], ["rounds=[0.5, 0.4, 1.0]", "rise to 1"]),
    (["criterion=wanda", "criterion.samples=0"], ["samples=0", "at least 1"]),
    (["train.logging_steps=0"], ["logging_steps=0", "above 0"]),
    (["train.adam_epsilon=-1"], ["adam_epsilon=-1", "not negative"]),
    (["train.weight_decay=nan"], ["weight_decay=nan", "not negative"]),
    (["train.weight_decay=-1"], ["weight_decay=-1", "not negative"]),
    (["train.adam_beta2=1"], ["adam_beta2=1", "below 1"]),
    (["train.lr_rewind=2"], ["lr_rewind=2", "from 0 to 1"]),
    (["train.lr_rewind=0.5", "train.lr_scheduler_type=constant"], ["lr_rewind=0.5", "choose linear or cosine"]),
    (["finetune.lr_rewind=0.5"], ["finetune.lr_rewind=0.5", "set train.lr_rewind"]),
    (["train.patience=0"], ["patience=0", "at least 1"]),
    (["train.patience=2"], ["patience=2", "set train.evaluate=epochs"]),
    (["train.best_checkpoint=true", "train.evaluate=updates"], ["best_checkpoint=True", "set train.evaluate=epochs"]),
    (["train.best_checkpoint=true", "train.evaluate=epochs", "train.average_weights=0.9"], ["leave one of them out"]),
    (["train.evaluate=epochs"], ["train.evaluate=epochs", "set dataset.validation"]),
    (["train.evaluate=steps"], ["steps", "updates", "epochs"]),
    (["finetune.evaluate=epochs"], ["finetune.evaluate=epochs", "set train.evaluate"]),
    (["dataset.unlabelled=x", "distill=none"], ["dataset.unlabelled=x: distill=none", "choose distill=logits"]),
    (["dataset.unlabelled=x", "distill.weight=0", "distill.label_weight=1"], ["distill.weight=0", "set it above 0"]),
    (["dataset.unlabelled=x", "prune=false"], ["dataset.unlabelled=x: prune=false", "leave it out"]),
    (["dataset.unlabelled=x", "train.num_train_epochs=0", "criterion=obs", "schedule=one_shot"],
     ["dataset.unlabelled=x: train.num_train_epochs=0 trains nothing"]),
    (["dataset.unlabelled=x", "dataset.evaluation_splits=[x]"], ["not scored on what it is trained on"]),
    (["dataset.max_unlabelled_samples=5"], ["max_unlabelled_samples=5", "needs dataset.unlabelled"]),
    (["dataset.unlabelled=x", "dataset.max_unlabelled_samples=0"], ["max_unlabelled_samples=0", "at least 1"]),
    (["dataset.validation=1"], ["dataset.validation=1", "below 1"]),
    (["train.average_weights=1.5"], ["average_weights=1.5", "above 0, and 1 at most"]),
    (["train.warmup_steps=1.5"], ["warmup_steps=1.5", "whole steps"]),
    (["model.hidden_dropout=1"], ["model.hidden_dropout=1", "below 1"]),
    (["model.path="], ["model.path", "a hub id or a folder"]),
    *(([f"{key}="], [f"{key}=: an empty text names nothing; leave the key out"])
      for key in ("model.finetuned", "model.sparse", "model.revision", "model.finetuned_revision", "model.model_type",
                  "dataset.path", "dataset.unlabelled", "dataset.name", "dataset.revision", "dataset.train_split",
                  "distill.teacher", "allocation.latency")),
    (["model.finetuned=''"], ["model.finetuned=: an empty text names nothing"]),
    (["dataset.holdout=1.5"], ["dataset.holdout=1.5", "below 1"]),
    (["dataset.max_train_samples=0"], ["dataset.max_train_samples=0", "at least 1"]),
    (["dataset.max_seq_length=64"], ["doc_stride=128 does not fit", "such as dataset.doc_stride=16"]),
    (["dataset=tag", "dataset.path=x", "dataset.max_seq_length=10"], ["such as dataset.doc_stride=2"]),
    (["dataset.doc_stride=384"], ["dataset.doc_stride=384", "dataset.max_seq_length=384"]),
    (["pattern.target_sparsity=0"], ["pattern.target_sparsity=0", "in (0, 1)", "pattern=dense"]),
    (["pattern.target_sparsity=1"], ["pattern.target_sparsity=1", "in (0, 1)"]),
    (["pattern.target_sparsity=80"], ["pattern.target_sparsity=80", "in (0, 1)"]),
    (["pattern=dense", "pattern.target_sparsity=0.5"], ["pattern.target_sparsity=0.5", "leave it out"]),
    (["pattern=2:4", "pattern.target_sparsity=0.8"], ["pattern.target_sparsity=0.8", "2:4", "which is 0.5", "choose"]),
    (["pattern=nm", "pattern.n=4", "pattern.m=4"], ["pattern.n=4", "pattern.m=4", "0 < n < m"]),
    (["pattern=nm", "pattern.n=0", "pattern.m=4"], ["pattern.n=0", "0 < n < m"]),
    (["pattern=block", "pattern.rows=0", "pattern.cols=0"], ["pattern.rows=0", "pattern.cols=0", "at least one"]),
    (["pattern=block", "pattern.rows=-4"], ["pattern.rows=-4", "at least one"]),
    (["pattern=locked", "pattern.target_sparsity=0.5"], ["pattern.target_sparsity=0.5", "leave it out"]),
    (["pattern=nm", "pattern.target_sparsity=0.3"], ["pattern.target_sparsity=0.3", "2:4", "pattern.mix=True"]),
    (["pattern=nm", "pattern.mix=true", "pattern.target_sparsity=0.7"], ["pattern.target_sparsity=0.7", "2:4 mix"]),
    (["criterion=nope"], ["criterion/nope", "fisher", "movement", "platon", "snip_momentum"]),
    (["criterion.reduce=median"], ["criterion.reduce='median'", "mean, sum, max"]),
    (["criterion=platon", "criterion.beta1=1"], ["criterion.beta1=1.0 must be in (0, 1)"]),
    (["criterion=fisher", "criterion.momentum=0.9"], ["momentum"]),
    (["allocation.max_per_layer=0"], ["allocation.max_per_layer=0", "in (0, 1]"]),
    (["allocation.max_per_layer=1.5"], ["allocation.max_per_layer=1.5", "in (0, 1]"]),
    (["allocation.min_per_layer=0.99"], ["allocation.min_per_layer=0.99", "allocation.max_per_layer=0.98"]),
    (["allocation.min_per_layer=-0.1"], ["allocation.min_per_layer=-0.1", "from 0"]),
    (["+allocation.layers={*.query:{target:1.5}}"], ["allocation.layers['*.query'].target=1.5", "in (0, 1)"]),
    (["+allocation.layers={*.query:{target:most}}"], ["most", "target"]),
    (["+allocation.layers={*.query:{sparsity:0.5}}"], ["sparsity"]),
    (["+allocation.layers={*.query:{allocation:local}}"], ["allocation.layers['*.query'].allocation=local", "uniform"]),
    (["+allocation.layers={*.query:{schedule:5}}"], ["schedule"]),
    (["criterion.momentum=-1"], ["momentum=-1"]),
    (["schedule.decay=sudden"], ["schedule.decay='sudden'", "exp, linear, cos, cubic"]),
    (["schedule.start=soon"], ["schedule.start='soon'", "epochs", "%"]),
    (["schedule.cooldown=-5"], ["schedule.cooldown='-5'"]),
    (["schedule.frequency=1.5"], ["schedule.frequency='1.5'", "whole number"]),
    (["schedule.initial=lots"], ["schedule.initial='lots'", "0.7", "85%"]),
    (["schedule.initial=100%"], ["schedule.initial='100%'", "below 100%"]),
    (["schedule=one_shot", "schedule.frequency=2%"], ["frequency"]),
    (["schedule.warmup_steps=5"], ["there is no schedule.warmup_steps", "train.warmup_steps"]),
    (["+schedule.warmup_steps=5"], ["there is no schedule.warmup_steps", "train.warmup_steps"]),
    (["regularizer=nope"], ["regularizer/nope", "none", "group_lasso"]),
    (["regularizer=group_lasso", "regularizer.weight=0"], ["regularizer.weight=0", "regularizer=none"]),
    (["regularizer.weight=1e-4"], ["weight"]),
    (["distill.temperature=0"], ["distill.temperature=0", "above 0"]),
    (["distill.weight=0"], ["distill.weight=0", "not both zero"]),
    (["distill=none", "distill.weight=1"], ["distill.weight=1", "distill=none"]),
    (["distill=none", "distill.teacher=some/model"], ["distill.teacher=some/model", "distill=none", "leave it out"]),
    (["distill=none", "distill.teacher=[a,b]"], ["distill.teacher=[a,b]", "distill=none", "leave it out"]),
    (["distill=simkd", "distill.teacher=[a,b]"], ["distill.teacher=[a,b]", "several teachers", "name one teacher"]),
    (["distill=hidden", "distill.logits_weight=0", "distill.label_weight=1", "distill.teacher=[a,b]"],
     ["distill.teacher=[a,b]", "several teachers", "distill.logits_weight above 0"]),
    (["distill.teacher=[a,5]"], ["distill.teacher=[a,5]", "a list of texts", "in quotes"]),
    (["distill.teacher={a:b}"], ["distill.teacher=", "a list of texts"]),
    (["distill.teacher=true"], ["distill.teacher=True", "a list of texts"]),
    (["distill.teacher=1e3"], ["distill.teacher=1e3", "reads as the number 1000.0", '"1e3"']),
    (["distill.teacher=[]"], ["distill.teacher=[]", "an empty list"]),
    (["distill.teacher=[a,'']"], ["distill.teacher=[a,]", "an empty name"]),
    (["model=hub"], ["model.path", "model=hub needs model.path=ID_OR_FOLDER"]),
    (["tracking.experiment="], ["tracking.experiment", "give it a name"]),
]
# fmt: on


def test_there_are_enough_of_them() -> None:
    assert len(WRONG) >= 63
    assert {overrides[0].lstrip("+").split("=")[0].split(".")[0] for overrides, _ in WRONG} >= {
        *("model", "dataset", "pattern", "criterion", "allocation", "schedule", "regularizer", "distill", "train"),
        *("finetune", "seed"),
    }


@pytest.mark.parametrize(("overrides", "words"), WRONG, ids=[" ".join(overrides) for overrides, _ in WRONG])
def test_wrong_configuration_is_told_with_key_value_and_remedy(overrides: list[str], words: list[str]) -> None:
    text = told(*overrides)
    assert [word for word in words if word not in text] == []
    assert "Traceback" not in text
    assert "object_type=" not in text  # OmegaConf's internals


@pytest.mark.parametrize("overrides", [
    ["model=nope"], ["train.learning_rat=1"], ["seed=one"], ["pattern.target_sparsity=80"], ["model=hub"],
    ["pattern=2:4", "pattern.target_sparsity=0.8"], ["schedule.decay=sudden"],
], ids=" ".join)  # fmt: skip
def test_command_line_ends_with_status_1_and_leaves_nothing(overrides: list[str], refused: Refused) -> None:
    assert told(*overrides).splitlines()[-1] in refused(*overrides)


def test_in_a_debugger_too(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """There OmegaConf makes some errors their own cause, as this variable does."""
    monkeypatch.setenv("OC_CAUSE", "1")
    assert "most" in refused("+allocation.layers={*.query:{target:most}}")


def test_the_real_command_line_does_so_too(cli: Cli, tmp_path: Path) -> None:
    done = cli("-m", "runner", "model=hub")
    assert (done.returncode, done.stdout) == (1, "")
    check_refusal(done.stderr)
    assert "no value for model.path" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --- models -------------------------------------------------------------------------------------------------


def test_model_folder_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    text = refused("model=hub", f"model.path={tmp_path}/nowhere")
    assert f"model.path={tmp_path}/nowhere: there is no such folder" in text
    assert "model.finetuned=./nowhere: there is no such folder" in refused("model.finetuned=./nowhere")
    assert "distill.teacher=./nowhere: there is no such folder" in refused(
        "model=hub", f"model.path={save_small_model(tmp_path / 'm')}", "distill.teacher=./nowhere"
    )


def test_model_folder_without_configuration(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    assert f"model.path={tmp_path}/m: there is no config.json" in refused("model=hub", f"model.path={tmp_path}/m")


def test_model_folder_without_weights(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    text = refused("model=hub", f"model.path={folder}")
    assert f"model.path={folder}: there are no weights in this folder" in text
    assert "model.safetensors or pytorch_model.bin" in text


def test_model_folder_whose_architecture_is_not_known(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "nope"}))
    assert "does not know the architecture 'nope'" in refused("model=hub", f"model.path={folder}")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k != "model_type"}))
    assert "set model.model_type" in refused("model=hub", f"model.path={folder}")
    (folder / "config.json").write_text("{")
    assert f"model.path={folder}" in refused("model=hub", f"model.path={folder}")


def test_layers_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    text = refused("model=hub", f"model.path={folder}", "dataset=demo", "model.excluded=[*qeury*]")
    assert "model.excluded: '*qeury*' matches none of the encoder's Linear and Conv layers" in text


def test_a_pattern_that_fits_no_layer_is_told_before_data_are_read(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    arguments = ["model=hub", f"model.path={folder}", f"dataset.path={NO_DATA}"]
    assert "5x1" in refused(*arguments, "pattern=block", "pattern.rows=5")
    assert "target sparsity 0.99 is above what allocation.max_per_layer=0.98" in refused(
        *arguments, "pattern=1x1", "pattern.target_sparsity=0.99"
    )
    assert f"dataset.path={NO_DATA}: " in refused(*arguments)


# --- how to prune -------------------------------------------------------------------------------------------


def test_exceptions_that_make_no_sense_are_told_before_data_are_read(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    arguments = ["model=hub", f"model.path={folder}", f"dataset.path={NO_DATA}"]
    text = refused(*arguments, "+allocation.layers={*.qeury:{target:0.3}}")
    assert "allocation.layers['*.qeury'] matches no layer (such as bert.encoder.layer.0.attention" in text
    for layer, words in (
        ("*.query:{pattern:nope}", ["allocation.layers, for", "query", "'nope'", "4x1, 2:4"]),
        ("*.query:{pattern:4:4}", ["allocation.layers, for", "query", "0 < n < m"]),
        ("*.query:{pattern:'124'}", ["allocation.layers.*.query.pattern=124", "unless it is quoted"]),
        ("*:{excluded:true}", ["no layer can be pruned with pattern 4x1", "allocation.layers excludes it"]),
        ("*:{frozen:true}", ["no layer can be pruned with pattern 4x1", "allocation.layers freezes it"]),
    ):
        text = refused(*arguments, f"+allocation.layers={{{layer}}}")
        assert [word for word in words if word not in text] == [], layer


@pytest.mark.parametrize("layer", ["pattern:2:4,target:0.8", "pattern:dense,target:0.5"])
def test_a_target_that_a_layers_pattern_cannot_have_is_not_ignored(
    layer: str, refused: Refused, tmp_path: Path
) -> None:
    """As pattern=2:4 pattern.target_sparsity=0.8 is not."""
    folder = save_small_model(tmp_path / "m")
    arguments = ["model=hub", f"model.path={folder}", f"dataset.path={NO_DATA}"]
    text = refused(*arguments, f"+allocation.layers={{*.query:{{{layer}}}}}")
    assert "allocation.layers" in text
    assert layer[-3:] in text


def test_yaml_that_reads_a_pattern_as_a_number_is_told_so(cli: Cli, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = '# @package _global_\nallocation:\n  layers:\n    "*.query":\n      pattern: 2:4\n'
    (tmp_path / "mine" / "experiment" / "apart.yaml").write_text(text, encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "mine", "experiment=apart", "model=hub", f"model.path={folder}",
               "dataset=demo")  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    check_refusal(done.stderr)
    assert "allocation.layers.*.query.pattern=124 is no pattern" in done.stderr
    assert "YAML reads 2:4 as a number unless it is quoted" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m", "mine"}


@pytest.mark.parametrize(("file", "text"), [
    ("schedule/mine", "defaults:\n  - /schema/schedule/Gradual\nwarmup_steps: 5\n"),
    ("experiment/mine", "# @package _global_\nschedule:\n  warmup_steps: 5\n"),
])  # fmt: skip
def test_yaml_with_the_former_key_of_the_warmup_gets_the_new_one(
    file: str, text: str, cli: Cli, tmp_path: Path
) -> None:
    place = tmp_path / "mine" / f"{file}.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(text, encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "mine", file.replace("/", "="), "dataset=demo")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there is no schedule.warmup_steps: it is now train.warmup_steps, set that instead\n"


def test_settings_that_do_not_go_together_are_told_before_training(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    arguments = [
        *("model=hub", f"model.path={folder}", "dataset=demo", "dataset.train_examples=40", "dataset.eval_examples=4"),
        *("schedule=short", "train.max_steps=20", f"cache_dir={tmp_path}/cache"),
    ]
    updates = resolve(*compose_experiment([*arguments, "criterion=fisher"])).updates  # these are accepted
    assert updates[max(updates)] == 0.8
    for overrides, words in (
        (["schedule.initial=0.9"], ["schedule.initial=0.9", "0.8", "85%"]),
        (["schedule.initial=0.8"], ["schedule.initial=0.8", "0.8"]),
        (["schedule=large_first", "schedule.initial=0.6", "+allocation.layers={*.query:{target:0.5}}"],
         ["schedule.initial=0.6", "0.5"]),
        (["regularizer=group_lasso", "pattern=2:4"], ["regularizer=group_lasso", "2:4", "block"]),
        (["regularizer=group_lasso", "+allocation.layers={*.query:{pattern:2:4}}"], ["group_lasso", "2:4"]),
        (["schedule=one_shot", "schedule.start=21"], ["schedule.start=21", "after the last of 20 steps"]),
        (["allocation.min_per_layer=0.9"], ["0.8", "allocation.min_per_layer=0.9"]),
        (["train.batch_tokens=10"], ["batch_tokens=10", "does not fit into a batch of 10"]),
        (["train.precision=tf32"], ["precision=tf32", "NVIDIA GPU"]),
    ):  # fmt: skip
        text = refused(*arguments, *overrides)
        assert [word for word in words if word not in text] == [], overrides


def test_zeros_to_keep_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    arguments = ["model=hub", f"model.path={folder}", f"dataset.path={NO_DATA}"]
    locked = [*arguments, "pattern=locked"]
    text = refused(*locked)
    assert "pattern=locked keeps the zeros of a checkpoint: name one with model.sparse" in text
    dense = save_small_model(tmp_path / "dense", seed=1)
    for key in ("model.sparse", "model.finetuned"):
        text = refused(*locked, f"{key}={dense}")
        assert f"{key}={dense}: none of its 12 prunable weights has a zero" in text
    assert "model.sparse=./none: there is no such folder" in refused(*locked, "model.sparse=./none")
    text = refused(*arguments, "pattern=4x1", f"model.sparse={dense}")
    assert f"model.sparse={dense}: none of its 12 prunable weights has a zero" in text
    assert "model.finetuned" in text
    text = refused(*arguments, "pattern=dense", f"model.sparse={dense}")
    assert f"model.sparse={dense}: pattern=dense would let its zeros come back; pattern=locked keeps them" in text
    assert "prune=false would let" in refused(*arguments, "prune=false", f"model.sparse={dense}")


def test_a_pattern_that_the_zeros_of_a_sparse_checkpoint_break(refused: Refused, tmp_path: Path) -> None:
    dense, sparse = save_small_model(tmp_path / "m"), save_small_model(tmp_path / "sparse")
    tensors = load_file(sparse / "model.safetensors")
    for name in (name for name in tensors if "layer" in name and tensors[name].dim() == 2):
        tensors[name][::2] = 0
    save_file(tensors, sparse / "model.safetensors", {"format": "pt"})
    arguments = ["model=hub", f"model.path={dense}", f"dataset.path={NO_DATA}", f"model.sparse={sparse}"]
    text = refused(*arguments, "pattern=1x1", "pattern.target_sparsity=0.4")
    assert f"model.sparse={sparse}: pattern.target_sparsity=0.4 cannot hold with the zeros" in text
    assert "the least is 0.5000" in text
    assert "so choose another pattern" in refused(*arguments, "pattern=4x1")
    text = refused(*arguments, "pattern=1x1", "allocation.regrow=true")
    assert "allocation.regrow=True would bring back zeros" in text
    for pattern in ("1x1", "2:4"):  # so far all is well
        assert "this folder has no .csv" in refused(*arguments, f"pattern={pattern}")
    run = tmp_path / "run"
    run.mkdir()
    write_json(run / "result.json", {"mlflow_run": "x", "sparse": None})
    (run / "config.yaml").write_text("seed: 0")
    text = refused(*arguments[:-1], f"model.sparse={run}")
    assert f"model.sparse={run}: this run has prune=false, so its model is dense" in text


def test_zeros_to_keep_in_some_layers_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    """Known before the dense model is fine-tuned, as it is with pattern=locked for all layers."""
    folder = save_small_model(tmp_path / "m")
    arguments = ["model=hub", f"model.path={folder}", f"model.finetuned={folder}", f"dataset.path={NO_DATA}"]
    text = refused(*arguments, "pattern=4x1", "+allocation.layers={*.query:{pattern:locked}}")
    assert "locked" in text
    assert "has a zero" in text


def test_a_sparse_checkpoint_of_another_kind_is_told_before_data_are_read(refused: Refused, tmp_path: Path) -> None:
    dense, sparse = save_small_model(tmp_path / "m"), save_small_model(tmp_path / "sparse")
    tensors = load_file(sparse / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    tensors[name][:4] = 0
    save_file(tensors, sparse / "model.safetensors", {"format": "pt"})
    arguments = ["model=hub", f"model.path={dense}", f"dataset.path={NO_DATA}", "pattern=locked"]
    assert "this folder has no .csv" in refused(*arguments, f"model.sparse={sparse}")  # so far all is well
    tokens = json.loads((sparse / "tokenizer.json").read_text())
    tokens["model"]["vocab"] = {f"x{word}" if i > 99 else word: i for word, i in tokens["model"]["vocab"].items()}
    (sparse / "tokenizer.json").write_text(json.dumps(tokens))
    text = refused(*arguments, f"model.sparse={sparse}")
    assert f"model.sparse={sparse}: its tokenizer is not that of {dense}" in text


def test_a_sparse_checkpoint_of_other_sizes_is_told_before_data_are_read(refused: Refused, tmp_path: Path) -> None:
    """model.sparse is "of the same architecture": else the dense model is no control of it."""
    dense, other = save_small_model(tmp_path / "m"), save_small_model(tmp_path / "other", num_hidden_layers=3)
    tensors = load_file(other / "model.safetensors")
    tensors["bert.encoder.layer.0.attention.self.query.weight"][:4] = 0
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    arguments = ["model=hub", f"model.path={dense}", f"dataset.path={NO_DATA}", "pattern=locked"]
    assert f"model.sparse={other}" in refused(*arguments, f"model.sparse={other}")


# --- the hub ------------------------------------------------------------------------------------------------


def test_hub_that_cannot_be_reached(cli: Cli, tmp_path: Path) -> None:
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    done = cli("-m", "runner", "model=bert-mini", env=env, timeout=60)
    assert done.returncode == 1
    check_refusal(done.stderr)
    (line,) = done.stderr.strip().splitlines()  # nothing about retries
    assert "model.path=google/bert_uncased_L-4_H-256_A-4" in line
    assert "the hub at http://127.0.0.1:9 cannot be reached" in line
    for remedy in ("HF_ENDPOINT", "HF_HOME", "set model.path to a local folder"):
        assert remedy in line
    assert {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_hub_that_may_not_be_asked(refused: Refused) -> None:  # HF_HUB_OFFLINE=1: see conftest.py
    text = refused("model=bert-mini")
    assert "model.path=google/bert_uncased_L-4_H-256_A-4" in text
    assert "HF_ENDPOINT" in text


def test_dataset_of_a_hub_that_cannot_be_reached(refused: Refused, tmp_path: Path) -> None:
    text = refused("model=hub", f"model.path={save_small_model(tmp_path / 'm')}")
    assert "dataset.path=rajpurkar/squad" in text
    assert "set dataset.path to a local folder" in text


def test_an_address_is_tried_once_for_a_process_and_not_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(hub.socket, "create_connection", refuse)
    monkeypatch.setattr(hub.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert not hub._listens("https://one.example")
    assert not hub._listens("https://one.example")
    assert tried == [("one.example", 443)] * 2  # a second try after a pause, then never again
    assert not hub._listens("http://two.example:8080/prefix")
    assert tried[2:] == [("two.example", 8080)] * 2
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub._listens("https://three.example")
    assert len(tried) == 4


# --- sweeps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sweep", "words"), [
    (["pattern=4x1,nope"], ["pattern/nope"]),
    (["pattern=4x1,2:4", "pattern.target_sparsity=0.8"], ["pattern.target_sparsity=0.8 is impossible for 2:4"]),
    (["train.learning_rate=1e-3,-1"], ["learning_rate=-1"]),
], ids=" ".join)  # fmt: skip
def test_a_bad_job_stops_a_sweep_before_its_first(
    sweep: list[str], words: list[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.experiment.run", lambda *_: pytest.fail("a job was started"))
    text = refused("-m", *sweep)
    assert [word for word in words if word not in text] == []


@pytest.mark.slow
def test_a_bad_job_stops_the_real_sweep(cli: Cli, tmp_path: Path) -> None:
    done = cli("-m", "runner", "-m", "pattern=4x1,2:4", "pattern.target_sparsity=0.8")
    assert (done.returncode, done.stdout) == (1, "")
    check_refusal(done.stderr)
    assert "impossible for 2:4" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_defect_while_a_sweep_is_checked_stops_it_with_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a defect of the program")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runner.sweeps.callback.Composer", broken)
    monkeypatch.setattr("runner.experiment.run", lambda *_: pytest.fail("a job was started"))
    monkeypatch.setattr(sys, "argv", ["python -m runner", "-m", "seed=0,1"])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == 1
    assert "ZeroDivisionError: a defect of the program" in capfd.readouterr().err


# --- the edge -----------------------------------------------------------------------------------------------


def test_the_edge_tells_errors_of_the_users_and_lets_defects_through(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(error: BaseException) -> Callable[[], None]:
        def program() -> None:
            raise error

        return program

    assert exit_status(lambda: None) == 0
    assert exit_status(raising(UserError("key=value: remedy"))) == 1
    assert capsys.readouterr().err == "error: key=value: remedy\n"
    assert exit_status(raising(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        exit_status(raising(ZeroDivisionError()))
    assert message(ZeroDivisionError()) is None
    monkeypatch.setenv("PRUNE_DISTILL_TRACEBACK", "1")
    with pytest.raises(UserError):
        exit_status(raising(UserError("with its traceback")))
