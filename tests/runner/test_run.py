"""The whole path through the real command line: YAML to a verified model, MLflow and the table."""

import gzip
import hashlib
import json
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from runner import tracking
from runner.models.verify import Verification
from runner.records.identity import Identity
from runner.records.result import Result
from runner.stages.prepare import finished
from runner.system import files
from tests.conftest import Cli, save_small_model
from tests.loopback_hub import serve

SHORT = (
    "dataset=demo", "dataset.train_examples=96", "dataset.eval_examples=40", "recipe=published", "schedule=short",
    "train.max_steps=30", "train.per_device_train_batch_size=8", "train.warmup_steps=2", "train.learning_rate=1e-3",
    "finetune.max_steps=5", "finetune.per_device_train_batch_size=8",
)  # fmt: skip


def run_folders(folder: Path) -> list[Path]:
    return sorted(p.parent for p in (folder / "outputs").glob("*/result.json"))


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_one_run_leaves_a_checked_model_and_a_row(
    cli: Cli, rows: Callable[[], list[dict]], small_model: Path, tmp_path: Path
) -> None:
    done = ok(cli("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", *SHORT))
    assert "relative drop" in done.stdout
    assert "0 violations" in done.stdout
    (folder,) = run_folders(tmp_path)
    assert folder.name.startswith("small-model-demo-4x1-s0-")
    assert {"model", "config.yaml", "result.json", "checkpoints", "run.log"} <= {p.name for p in folder.iterdir()}
    result = json.loads((folder / "result.json").read_text())

    # The saved model, read by the plain library: 80 % of the encoder's weights, in whole blocks of four rows.
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    model = AutoModelForQuestionAnswering.from_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model").is_fast
    weights = {n: p for n, p in model.named_parameters() if "encoder" in n and p.dim() == 2}
    assert len(weights) == 12
    zeros = sum(int((p == 0).sum()) for p in weights.values())
    total = sum(p.numel() for p in weights.values())
    assert zeros == 4 * round(0.8 * total / 4)
    for p in weights.values():
        share = (p.view(p.shape[0] // 4, 4, -1) == 0).float().mean(1)
        assert bool(((share == 0) | (share == 1)).all())
    head = model.qa_outputs.weight.numel()
    assert result["verification"]["linear_ratio"] == pytest.approx(zeros / (total + head))
    pruning = json.loads((folder / "model" / "pruning.json").read_text())
    assert pruning["pattern"]["name"] == "4x1"
    assert sum(layer["zeros"] for layer in pruning["layers"]) == zeros
    assert pruning["sparse"]["f1"] == result["sparse"]["f1"]

    (row,) = rows()
    assert (row["model"], row["dataset"], row["pattern"], row["seeds"]) == ("small-model", "demo", "4x1", [0])
    assert row["ratio"] == pytest.approx(result["verification"]["linear_ratio"])
    assert row["dense_max"] == pytest.approx(result["dense"]["f1"])
    assert row["sparse_max"] == pytest.approx(result["sparse"]["f1"])
    assert 0 <= row["sparse_max"] <= 1

    # What MLflow holds, and where: beside the database, not in ./mlruns.
    assert not (tmp_path / "mlruns").exists()
    artifacts = {p.name: p for p in (tmp_path / "mlartifacts").glob("*/artifacts/**/*") if p.is_file()}
    assert artifacts.keys() == {
        "config.yaml", "overrides.txt", "layers.json", "updates.json", "predictions.json", "dense_predictions.json",
        "scores.json", "model_card.md", "training.png", "layers.png", "updates.png",
    }  # fmt: skip
    scores = json.loads(artifacts["scores.json"].read_text())
    assert len(set(scores["id"])) == 40
    for kind in ("dense", "sparse"):
        assert sum(scores[kind]) / 40 == pytest.approx(result[kind]["f1"])
    updates = json.loads(artifacts["updates.json"].read_text())
    assert sum(sum(update["removed"].values()) for update in updates) == zeros
    assert not any(update["returned"] for update in updates)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        params = dict(store.execute("select key, value from params"))
        logged = {key for (key,) in store.execute("select distinct key from metrics")}
        steps = [s for (s,) in store.execute("select step from metrics where key='train/sparsity' order by step")]
        once = dict(store.execute("select key, value from latest_metrics where step = 0"))
        tags = dict(store.execute("select key, value from tags"))
        data = store.execute("select name, digest, dataset_profile from datasets").fetchall()
        (view,) = store.execute("select value from experiment_tags where key = 'mlflow.sharedViewState.results'")
    file = folder / "model" / "model.safetensors"
    assert once["size/bytes"] == file.stat().st_size
    assert once["size/compressed_bytes"] == pytest.approx(len(gzip.compress(file.read_bytes(), 6)), rel=0.001)
    assert once["macs/dense"] - once["macs/sparse"] == 128 * zeros  # for each token of the longest example
    assert (tags["examples.train"], tags["examples.evaluation"]) == ("96", "40")
    assert "official.train" not in tags  # there is no official split
    assert tags["prune_distill.stage.prune"] == hashlib.sha256(
        file.name.encode() + hashlib.sha256(file.read_bytes()).digest()).hexdigest()  # fmt: skip
    assert list(result["stages"]) == ["prepare", "finetune", "evaluate_dense", "teacher", "prune", "evaluate"]
    assert sorted(json.loads(profile)["num_rows"] for _, _, profile in data) == [40, 96]
    assert {name for name, _, _ in data} == {"demo"}
    assert "metrics.`sparse/f1`" in json.loads(view[0])["selectedColumns"]
    assert {"train/loss", "train/sparsity", "train/learning_rate", "finetune/loss", "dense/f1", "sparse/f1",
            "relative_drop", "sparsity/linear", "sparsity/target", "pattern/violations",
            "seconds/prepare", "seconds/teacher", "seconds/train", "seconds/update", "seconds/evaluate",
            "padding", "tokens_per_second", "peak_memory_bytes"} <= logged  # fmt: skip
    assert steps == sorted(set(steps))
    assert steps[-1] == 30
    assert len(params) < 60
    assert params["train.max_steps"] == "30"  # not the default, so it is shown

    # What it cost. The teacher saw 96 features once; the student 240 in 30 steps.
    cost = result["cost"]
    assert cost["steps"] == 30
    assert cost["tokens"] == pytest.approx(cost["real_tokens"] / (1 - cost["padding"]))
    assert "the teacher runs once over 96 features" in done.stderr
    assert len(json.loads((folder / "predictions.json").read_text())) == 40

    # Scored again by itself: the same number.
    done = ok(cli("-m", "runner.evaluate", str(folder / "model"), *SHORT[:3]))
    assert json.loads(done.stdout)["f1"] == result["sparse"]["f1"]


def test_a_finished_run_is_not_run_again(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = ("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", *SHORT)
    ok(cli(*command))
    (folder,) = run_folders(tmp_path)
    store, before = tmp_path / "mlflow.db", (folder / "model" / "model.safetensors").stat().st_mtime_ns

    def runs() -> int:
        with sqlite3.connect(store) as database:
            return database.execute("select count(*) from runs").fetchone()[0]

    done = ok(cli(*command))
    assert "already finished" in done.stderr
    assert "relative drop" in done.stdout  # the result is told again
    assert runs() == 1
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert "already finished" not in ok(cli(*command, "force=true")).stderr
    assert (runs(), len(run_folders(tmp_path))) == (2, 1)
    assert json.loads((folder / "result.json").read_text())["cost"]["steps"] == 30  # from the first step


def test_what_counts_as_finished(tmp_path: Path) -> None:
    where = tracking.Tracking(uri=f"sqlite:///{tmp_path}/mlflow.db")
    with tracking.start(where, "run", {}) as tracker:
        assert not tracking.is_finished(where, tracker.run_id)  # it still runs
    assert tracking.is_finished(where, tracker.run_id)
    assert not tracking.is_finished(where, "another")
    assert not tracking.is_finished(tracking.Tracking(uri=f"sqlite:///{tmp_path}/none.db"), tracker.run_id)

    folder = tmp_path / "run"
    with files.atomic_folder(folder / "model") as model:
        (model / "config.json").write_text("{}")
    scores = {"f1": 0.5}
    result = Result("m", "d", "4x1", 0, "f1", scores, scores, 0.0, Verification(0.8, 0.4, 0.8, 0), "identity", "group",
                    str(folder), tracker.run_id, {"seconds": {}})  # fmt: skip
    file = folder / "result.json"
    files.write_json(file, asdict(result))

    def found(identity: str = "identity") -> Result | None:
        return finished([file], Identity(identity, "", "", "", ""), where)

    assert found() == result
    assert found("another") is None
    for text in ("", "{", "[]", json.dumps(asdict(result)), file.read_text().replace("0.5", "0.6", 1)):
        file.write_text(text)
        assert found() is None
    files.write_json(file, {**asdict(result), "of another version": 1})
    assert found() is None
    files.write_json(file, asdict(result))
    assert found() == result
    (folder / "model" / "config.json").unlink()
    assert found() is None
    (folder / "model" / "config.json").write_text("{}")
    with sqlite3.connect(tmp_path / "mlflow.db") as database:  # as the UI deletes it: gone from the table
        database.execute("update runs set lifecycle_stage='deleted'")
    assert found() is None


def test_a_sweep_shares_the_dense_model_and_pools_seeds(
    cli: Cli, rows: Callable[[], list[dict]], small_model: Path, tmp_path: Path
) -> None:
    model = ("model=hub", f"model.path={small_model}")
    done = ok(cli("-m", "runner", "-m", *model, "pattern=dense,2:4", "seed=0,1", *SHORT))
    assert done.stderr.count("fine-tuning the dense model") == 2  # one a seed, not one a run
    assert done.stderr.count("the dense model is cached") == 2
    assert done.stderr.count("the teacher runs once") == 2
    assert done.stderr.count("the teacher's logits are cached") == 2
    table = {row["pattern"]: row for row in rows()}
    assert set(table) == {"dense", "2:4"}
    assert all(row["seeds"] == [0, 1] for row in table.values())
    assert table["dense"]["ratio"] == 0
    assert table["dense"]["dense_mean"] == table["2:4"]["dense_mean"]
    results = [json.loads((f / "result.json").read_text()) for f in run_folders(tmp_path)]
    mine = [r["sparse"]["f1"] for r in results if r["pattern"] == "2:4"]
    assert table["2:4"]["sparse_mean"] == pytest.approx(sum(mine) / 2)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        parents = list(store.execute("select count(*) from tags where key='mlflow.parentRunId' group by value"))
        (parent,) = store.execute("select run_uuid, status from runs where name='sweep pattern=dense,2:4 seed=0,1'")
    assert parents == [(4,)]
    assert parent[1] == "FINISHED"


def test_prune_false_only_makes_the_dense_model(
    cli: Cli, rows: Callable[[], list[dict]], small_model: Path, tmp_path: Path
) -> None:
    ok(cli("-m", "runner", "model=hub", f"model.path={small_model}", "prune=false", *SHORT))
    (folder,) = run_folders(tmp_path)
    assert json.loads((folder / "result.json").read_text())["sparse"] is None
    assert (folder / "model" / "model.safetensors").is_file()
    assert rows() == []


def squad_on_a_hub(root: Path) -> None:
    """A few of the demo's questions under SQuAD's id."""
    import datasets

    from runner.demo.text import examples

    folder = root / "datasets" / "rajpurkar" / "squad" / "plain_text"
    for split, count, seed in (("train", 64, 0), ("validation", 16, 1)):
        table = datasets.Dataset.from_list([dict(e) for e in examples(count, seed)])
        folder.mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    (folder.parent / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n  - split: train\n    path: plain_text/train-*\n"
        "  - split: validation\n    path: plain_text/validation-*\n---\n"
    )


@pytest.mark.slow
def test_the_eight_published_rows_load_by_their_ids_and_train(
    cli: Cli, rows: Callable[[], list[dict]], tmp_path: Path
) -> None:
    hub = tmp_path / "hub"
    squad_on_a_hub(hub)
    mini = save_small_model(hub / "models" / "google" / "bert_uncased_L-4_H-256_A-4")
    # As older repositories are: weights only as a pickle, and a config.json that does not name its architecture.
    torch.save(load_file(mini / "model.safetensors"), mini / "pytorch_model.bin")
    (mini / "model.safetensors").unlink()
    config = json.loads((mini / "config.json").read_text())
    del config["model_type"], config["architectures"]
    (mini / "config.json").write_text(json.dumps(config))
    save_small_model(hub / "models" / "distilbert" / "distilbert-base-uncased", "distilbert")
    save_small_model(hub / "models" / "google-bert" / "bert-base-uncased", num_hidden_layers=3)
    save_small_model(hub / "models" / "google-bert" / "bert-large-uncased", num_hidden_layers=4)
    with serve(hub, tmp_path / "home") as env:
        done = cli(
            "-m", "runner", "-m", "model=bert-mini,distilbert,bert-base,bert-large", "pattern=4x1,2:4",
            "schedule=short", "train.max_steps=20", "train.warmup_steps=2", "finetune.max_steps=2",
            env=env, timeout=600,
        )  # fmt: skip
    ok(done)
    table = rows()
    assert len(table) == 8
    assert {row["model"] for row in table} == {"bert-mini", "distilbert", "bert-base", "bert-large"}
    for row in table:
        assert row["dataset"] == "squad"
        assert row["ratio"] == pytest.approx({"4x1": 0.8, "2:4": 0.5}[row["pattern"]], abs=0.01)


def test_the_summary_is_aligned_whatever_the_metric() -> None:
    counted = Verification(0.8, 0.4, 0.8, 0)

    def told(metric: str) -> list[str]:
        result = Result(
            "m", "d", "4x1", 0, metric, {metric: 0.5}, {metric: 0.4}, -0.2, counted, "i", "g", "/f", "r", {}
        )
        return result.summary.splitlines()

    assert told("f1")[1:4] == [
        "  dense F1          0.5000",
        "  sparse F1         0.4000",
        "  relative drop     -20.00%",
    ]
    assert told("matthews_correlation")[1:4] == [
        "  dense Matthews correlation   0.5000",
        "  sparse Matthews correlation  0.4000",
        "  relative drop                -20.00%",
    ]
