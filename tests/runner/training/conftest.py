"""Training data that the tests of training share."""

import pytest

from runner.data.demo import Demo
from runner.training.training_data import TrainingData
from tests.tools.pretrain_tiny import build_tokenizer


@pytest.fixture(scope="module")
def lesson() -> TrainingData:
    """48 questions of the demo."""
    task = Demo(train_examples=48, eval_examples=8)
    tokenizer = build_tokenizer()
    examples = task.read()
    assert examples.train is not None
    return TrainingData(task, task.features(examples.train, tokenizer, None, labels=True), tokenizer)
