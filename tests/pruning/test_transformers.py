"""`PruningCallback` in transformers' own Trainer: the example of the guide, resuming, and what is refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from pruning import Block, FeedForward, Gradual, Heads, Magnitude, Pattern, PruningError
from pruning.transformers import FILE, PruningCallback, encoder_weights
from tests.test_docs import GUIDE, blocks

EXAMPLE = next(body for _, name, body in blocks(GUIDE) if name == "trainer.py")


def small_bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=16))


class Texts(Dataset):
    """Random token ids whose label is whether the first is even."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(0, 50, (8,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "attention_mask": torch.ones(8, dtype=torch.long), "labels": int(ids[0]) % 2}


def trainer(folder: Path, callback: PruningCallback, **options: Any) -> Trainer:
    settings = {"max_steps": 24, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 10} | options
    arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True, disable_tqdm=True, **settings)
    return Trainer(small_bert(), arguments, train_dataset=Texts(), eval_dataset=Texts(), callbacks=[callback])


def check(weights: dict[str, torch.Tensor], sparsity: float) -> None:
    """Whole blocks of four outputs are zero, exactly as many as the target."""
    names = [name for name in weights if name in encoder_weights(small_bert())]
    assert len(names) == 12
    alive = torch.cat([weights[name].view(-1, 4, weights[name].shape[1]).abs().sum(dim=1).flatten() for name in names])
    zeros = torch.cat([(weights[name] == 0).flatten() for name in names])
    assert int((alive == 0).sum()) == round(sparsity * alive.numel())
    assert int(zeros.sum()) == 4 * round(sparsity * alive.numel())
    assert not torch.signbit(torch.cat([weights[name].flatten() for name in names])[zeros]).any()


@pytest.mark.parametrize("pattern", [Heads(target_sparsity=0.5), FeedForward(target_sparsity=0.5)], ids=str)
def test_heads_and_channels_are_found(pattern: Pattern, tmp_path: Path) -> None:
    callback = PruningCallback(pattern)
    trained = trainer(tmp_path, callback, save_strategy="no")
    trained.train()
    assert callback.pruner is not None
    assert trained.model is not None
    assert {layer.violations for layer in callback.pruner.report()} == {0}
    heads = isinstance(pattern, Heads)
    part = r"attention\.output\.dense\.weight" if heads else r"layer\.\d\.output\.dense\.weight"
    readers = [weight for name, weight in trained.model.named_parameters() if re.search(part, name)]
    dead = sum(int((weight == 0).all(dim=0).sum()) for weight in readers)
    assert dead == (2 * 8 if heads else 32)  # columns: half of four heads of width 8, or of 64 channels


def test_the_example_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    small_bert().save_pretrained("my-model")
    defined: dict[str, Any] = {"dataset": Texts()}
    exec(compile(EXAMPLE, "trainer.py", "exec"), defined)
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 10
    check(load_file(tmp_path / "pruned" / "model.safetensors"), 0.8)
    assert capsys.readouterr().out.count("LayerReport(") == 12


def test_the_head_the_pooler_and_the_embeddings_stay() -> None:
    names = [*encoder_weights(small_bert())]
    assert all(name.startswith("bert.encoder.layer.") for name in names)


def test_a_training_that_resumes_ends_with_the_same_bits(tmp_path: Path) -> None:
    pattern = Block(4, 1, target_sparsity=0.5)
    whole = trainer(tmp_path / "whole", PruningCallback(pattern))
    whole.train()
    callback = PruningCallback(pattern)
    resumed = trainer(tmp_path / "resumed", callback)
    shutil.copytree(tmp_path / "whole" / "checkpoint-10", tmp_path / "resumed" / "checkpoint-10")
    resumed.train(resume_from_checkpoint=True)
    assert whole.model is not None
    assert resumed.model is not None
    theirs, ours = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    check(ours, 0.5)


def test_a_checkpoint_without_masks_is_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path, PruningCallback(Block(4, 1, target_sparsity=0.5)))
    first.train()
    (tmp_path / "checkpoint-24" / FILE).unlink()
    again = trainer(tmp_path, PruningCallback(Block(4, 1, target_sparsity=0.5)))
    with pytest.raises(PruningError, match="is missing: without its masks the resumed training would be dense"):
        again.train(resume_from_checkpoint=True)


def test_a_schedule_in_epochs(tmp_path: Path) -> None:
    callback = PruningCallback(
        Block(4, 1, target_sparsity=0.5), Gradual(start="0", frequency="1 epoch", cooldown="1 epoch")
    )
    trainer(tmp_path, callback, max_steps=-1, num_train_epochs=3).train()
    assert callback.pruner is not None
    assert [update.step for update in callback.pruner.history] == [16, 32]


@pytest.mark.parametrize(("options", "message"), [
    ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 10}, "load_best_model_at_end=True would"),
    ({"max_steps": 4}, "the schedule is longer than the training: it ends at step 5 of 4"),
])  # fmt: skip
def test_what_would_undo_the_pruning_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    callback = PruningCallback(Block(4, 1, target_sparsity=0.5), Gradual(end="5", frequency="1"))
    refused = trainer(tmp_path, callback, **options)
    with pytest.raises(PruningError, match=message):
        refused.train()


def test_a_training_that_ends_early_is_an_error(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step == 5

    stopped = trainer(tmp_path, PruningCallback(Block(4, 1, target_sparsity=0.5), criterion=Magnitude()))
    stopped.add_callback(Stop())
    with pytest.raises(PruningError, match="the training ended after 5 optimizer steps, before the last mask update"):
        stopped.train()
