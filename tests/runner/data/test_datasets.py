"""Every dataset of `conf/dataset/` by its YAML: those of the hub in small, with their columns and kinds, and the real
ones that are at hand."""

import json
from pathlib import Path

import pytest
import yaml

import conf
from tests import small_data
from tests.conftest import Cli
from tests.loopback_hub import serve

DATASETS = Path(conf.__file__).parent / "dataset"
OWN = {"classify", "span", "tag"}
"""Options for one's own data."""

READ = """
import json, sys
from runner.config.compose import compose_experiment
out = {}
for name in sys.argv[1:]:
    task = compose_experiment([f"dataset={name}", "model=hub", "model.path=x"])[0].dataset
    read = task.read()
    columns = read.evaluation.features
    label = columns.get("label") or getattr(columns.get("tags"), "feature", None)
    out[name] = {
        "train": len(read.train), "evaluation": len(read.evaluation), "names": getattr(label, "names", None),
        "columns": sorted(columns), "first": read.train[0], "metric": task.metric,
        "splits": sorted(set(read.evaluation["split"])) if "split" in columns else [],
    }
print(json.dumps(out))
"""


@pytest.mark.slow
def test_every_yaml_reads_its_dataset_from_the_hub(cli: Cli, tmp_path: Path) -> None:
    files = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(DATASETS.glob("*.yaml"))}
    names = [name for name, content in files.items() if "path" in content]
    assert set(files) - set(names) == OWN | {"demo"}
    assert len(names) == 12
    with serve(small_data.make(tmp_path / "hub"), tmp_path / "home") as env:
        done = cli("-c", READ, *names, "demo", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    three = (("premise", "hypothesis"), ("entailment", "neutral", "contradiction"))
    for name in ("snli", *small_data.TABLES):
        texts, classes = small_data.TABLES.get(name, three)
        columns = {"id", "label", "text", *(["text_pair"] if len(texts) == 2 else [])}
        assert found[name]["names"] == (None if classes is None else list(classes)), name
        assert set(found[name]["columns"]) - {"split"} == columns, name
    for name in ("squad", "squad_v2"):
        assert found[name]["columns"] == ["answers", "context", "id", "question"]
    assert found["conll2003"]["names"] == list(small_data.TAGS)
    counts = {name: (one["train"], one["evaluation"]) for name, one in found.items()}
    # Three pairs of SNLI have no label; MNLI has two development sets.
    assert counts == dict.fromkeys(names, (60, 20)) | {"snli": (57, 20), "mnli": (60, 40), "demo": (4000, 1000)}
    assert found["mnli"]["splits"] == ["validation_matched", "validation_mismatched"]
    metrics = {name: one["metric"] for name, one in found.items()}
    assert metrics == {
        **dict.fromkeys(("mnli", "qnli", "rte", "sst2", "snli"), "accuracy"),
        **dict.fromkeys(("mrpc", "qqp", "squad", "squad_v2", "conll2003", "demo"), "f1"),
        "cola": "matthews_correlation", "stsb": "pearson",
    }  # fmt: skip


@pytest.mark.slow
def test_the_real_ones_are_read(prepared_hub: Path, cli: Cli, tmp_path: Path) -> None:
    with serve(prepared_hub, tmp_path / "home") as env:
        done = cli("-c", READ, "sst2", "snli", env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["sst2"]["train"], found["sst2"]["evaluation"]) == (6920, 872)
    assert (found["snli"]["train"], found["snli"]["evaluation"]) == (8842, 1000)
    assert found["sst2"]["first"] == {
        "text": "a stirring , funny and finally transporting re imagining of beauty and the beast and 1930s horror "
        "films",
        "id": "0",
        "label": 1,
    }
