"""The training machine, dense and sparse alike: data, loss, callbacks, checkpoints, the teacher's logits, inference."""
