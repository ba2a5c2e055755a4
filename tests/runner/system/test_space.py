"""The disk space of a run is known before it starts."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from runner.config.compose import compose_experiment
from runner.stages.prepare import resolve
from runner.system import disk
from runner.system.disk import DiskNeed
from runner.system.errors import UserError
from tests.conftest import save_small_model

GB = 10**9


@pytest.fixture
def space(monkeypatch: pytest.MonkeyPatch):
    """Sets what is free, whatever the folder."""

    def free(count: int) -> None:
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: SimpleNamespace(free=count))

    return free


def test_what_does_not_fit_is_refused_before_anything_is_written(space, tmp_path: Path) -> None:
    needs = [
        DiskNeed(tmp_path / "outputs" / "run", "checkpoints", 6 * GB),
        DiskNeed(tmp_path / "cache", "teacher", 3 * GB),
    ]
    space(9 * GB)
    disk.check(needs)
    space(9 * GB - 1)
    with pytest.raises(UserError) as caught:
        disk.check(needs)
    assert "9.0 GB more than there is now" in str(caught.value)
    assert f"checkpoints 6.0 GB in {tmp_path}/outputs/run, teacher 3.0 GB in {tmp_path}/cache" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_already_is_counted(space, tmp_path: Path) -> None:
    """A run that resumes has its checkpoints already."""
    (tmp_path / "run" / "deeper").mkdir(parents=True)
    (tmp_path / "run" / "deeper" / "weights").write_bytes(bytes(700))
    (tmp_path / "run" / "gone").symlink_to(tmp_path / "nowhere")
    assert 700 <= disk.size_of(tmp_path / "run") < 1000
    assert disk.size_of(tmp_path / "none") == 0
    space(300)
    disk.check([DiskNeed(tmp_path / "run", "checkpoints", 1000)])
    with pytest.raises(UserError):
        disk.check([DiskNeed(tmp_path / "run", "checkpoints", 2000)])
    disk.check([DiskNeed(tmp_path / "run", "checkpoints", 10), DiskNeed(tmp_path / "other", "model", 300)])


def test_the_bytes_of_a_training_are_those_that_it_writes(tmp_path: Path) -> None:
    """Against what torch and safetensors write for the same parameters."""
    import torch
    from safetensors.torch import save_file

    model = torch.nn.Linear(300, 500)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 300)).sum().backward()
    optimizer.step()
    for i in range(3):  # two that stay, and one that is written
        save_file(model.state_dict(), tmp_path / f"{i}.safetensors")
        torch.save(optimizer.state_dict(), tmp_path / f"{i}.pt")
    count = sum(p.numel() for p in model.parameters())
    assert disk.training_bytes(count, checkpoints=2) == pytest.approx(disk.size_of(tmp_path), rel=0.01)
    assert disk.model_bytes(count) == pytest.approx((tmp_path / "0.safetensors").stat().st_size, rel=0.01)


def test_a_run_is_refused_before_it_trains(space, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m")
    request = compose_experiment([
        "model=hub", f"model.path={folder}", "dataset=demo", "dataset.train_examples=40", "dataset.eval_examples=4",
        "recipe=published", "schedule=short", "train.max_steps=20", "train.save_total_limit=2",
        f"cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/outputs",
    ])  # fmt: skip
    space(10**9)
    folder = resolve(*request).folder
    space(10**6)
    with pytest.raises(UserError) as caught:
        resolve(*request)
    for words in ("the model", "the dense model", "checkpoints of the fine-tuning", "the teacher's logits",
                  f"in {folder}/checkpoints", f"in {tmp_path}/cache/teacher", "save_total_limit"):  # fmt: skip
        assert words in str(caught.value)


@pytest.mark.parametrize(("count", "words"), [
    (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (58_400_000, "58 MB"), (1_340_000_000, "1.3 GB"),
])  # fmt: skip
def test_bytes_for_people(count: int, words: str) -> None:
    assert disk.human_bytes(count) == words
