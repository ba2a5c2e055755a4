"""Trainings with a wider teacher as one of several ranks; started by test_projections in processes of its own.

python ranks_projected.py STUDENT TEACHER OUTPUT: writes the students' weights to OUTPUT/RANK.pt
"""

import os
import sys
from pathlib import Path

import torch

from pruning import HiddenStates, Projector, SimKD
from runner import models
from runner.config.training import Training
from runner.data.demo import Demo
from runner.models import Model
from runner.system import ranks
from runner.system.device import Precision
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import train

QA = "AutoModelForQuestionAnswering"


def main(student: str, teacher: str, output: Path) -> None:
    torch.set_num_threads(1)
    task = Demo(train_examples=44, eval_examples=4)
    examples, tokenizer = task.read(), build_tokenizer()
    assert examples.train is not None
    lesson = TrainingData(task, task.features(examples.train, tokenizer, None, labels=True), tokenizer)
    training = Training(per_device_train_batch_size=8, num_train_epochs=1, learning_rate=1e-3, warmup_steps=0,
                        precision=Precision.float32, logging_steps=1)  # fmt: skip
    made = {}
    for name, how in (("hidden", HiddenStates()), ("simkd", SimKD(projector=Projector.mlp))):
        torch.manual_seed(0)
        taught, teaching = (models.load(QA, models.find(p, "model.path", Model(path=p))) for p in (student, teacher))
        before = {n: p.detach().clone() for n, p in taught.named_parameters() if n.startswith("distilbert")}
        train(
            taught, lesson, training, Supervision(how, teaching), None, 0, output / name, "t", lambda step, values: None
        )
        moved = max(float((taught.get_parameter(n) - p).abs().max()) for n, p in before.items())
        made[name] = {"weights": taught.state_dict(), "moved": moved}
    torch.save(made, output / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    with ranks.group():
        main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
