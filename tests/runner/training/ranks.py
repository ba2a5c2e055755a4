"""A training as one of several ranks; started by test_train in processes of its own.

python ranks.py MODEL OUTPUT: trains MODEL and writes its weights to OUTPUT/RANK.pt
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from pruning import Block, Gradual, Logits, Plan, Pruner, TrainingLength
from runner import models
from runner.config.training import Training
from runner.data.demo import Demo
from runner.models import Model
from runner.system import ranks
from runner.system.device import Precision
from runner.training import teacher_logits
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import train


def main(model: str, output: Path) -> None:
    torch.set_num_threads(1)
    task = Demo(train_examples=44, eval_examples=4)
    examples, tokenizer = task.read(), build_tokenizer()
    assert examples.train is not None
    lesson = TrainingData(task, task.features(examples.train, tokenizer, None, labels=True), tokenizer)
    found = models.find(model, "model.path", Model(path=model))
    training = Training(per_device_train_batch_size=8, num_train_epochs=2, learning_rate=1e-3, warmup_steps=0,
                        adam_epsilon=1e-3, precision=Precision.float32, logging_steps=1)  # fmt: skip
    kept = teacher_logits.teacher_logits(found, tokenizer, task, lesson.features, Precision.float32, output / "cache")
    student = models.load("AutoModelForQuestionAnswering", found)
    student.get_parameter("qa_outputs.weight").data.mul_(-1)  # else there is nothing to learn without dropout
    schedule = Gradual(start="2", decay="linear", end="8", frequency="2")
    parameters = models.prunable_parameters(student, Model(path=model))
    pruner = Pruner(Plan(parameters, Block(4, 1)), schedule, TrainingLength(12))
    rank = os.environ.get("RANK", "0")
    supervision = Supervision(Logits(label_weight=0.5), logits=kept)
    work = train(student, lesson, training, supervision, pruner, 0, output / "run",
                 "t", lambda step, values: None)  # fmt: skip
    torch.save(
        {"weights": student.state_dict(), "steps": work.steps, "tokens": work.real_tokens}, output / f"{rank}.pt"
    )


if __name__ == "__main__":
    with ranks.group() if ranks.world_size() > 1 else nullcontext():
        main(sys.argv[1], Path(sys.argv[2]))
