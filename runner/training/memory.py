"""Memory of a training step on a GPU, found without one: its operations run on tensors that have a shape and no memory
(`torch._subclasses.FakeTensorMode`), and every storage counts from the operation that makes it until it is freed.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pruning import Distillation, Prediction, averaged, label_loss, projected
from runner.system.device import Precision
from runner.training import projections
from runner.training.trainer import model_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runner.training.training_data import TrainingData

_AUTOCAST = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}


class CannotRun(Exception):
    """A network reads values of its tensors, which fake ones do not have; the text is the reason."""


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that operations make in this context, and the highest sum.

    Args:
        known: tensors whose storages are not counted.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._live: dict[int, tuple[weakref.ref[Any] | None, int]] = {
            tensor.untyped_storage()._cdata: (None, 0) for tensor in known
        }

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        at = storage._cdata  # an address, which another storage may have had
        if at in self._live:
            made, size = self._live[at]
            if made is None or made() is not None:
                return
            self.bytes -= size
        self._live[at] = weakref.ref(storage, lambda made: self._free(at, made)), storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)

    def _free(self, at: int, made: weakref.ref[Any]) -> None:
        if at in self._live and self._live[at][0] is made:
            self.bytes -= self._live.pop(at)[1]


class AsOnGpu(TorchFunctionMode):
    """Lets CPU tensors take the memory that CUDA's would: masks of dropout have one byte a number, attention of
    `scaled_dot_product_attention` has no matrix of weights with dropout either, and autocast leaves norms and softmax
    in float32. An index by a mask, whose result depends on values, selects all, as if there was no padding."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.dropout:
            return _fused_dropout(*args, **kwargs)
        if function is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            rows = args[0].flatten(0, args[1].dim() - 1)
            return rows.index_select(0, torch.arange(len(rows)))
        if function is F.scaled_dot_product_attention:
            kwargs = {**kwargs, "dropout_p": 0.0}
        elif function in (F.layer_norm, F.softmax) and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return function(*args, **kwargs)


def _fused_dropout(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(values, p, True)[0] if training and 0 < p < 1 else values


@dataclass
class Step:
    """A forward and backward pass of a student with its loss."""

    student: PreTrainedModel
    """Without memory for its weights, as the teachers."""
    data: TrainingData
    how: Distillation
    precision: Precision
    teachers: Sequence[PreTrainedModel] = ()
    """Those that run at every step; not those whose logits are cached."""
    accumulates: bool = False
    """Whether gradients of an earlier batch exist already."""

    def peak(self, examples: int, tokens: int) -> int:
        """Highest number of bytes in gradients, activations and outputs for a batch [examples, tokens]; weights are not
        among them.

        Raises:
            CannotRun: see there.
        """
        with _fake(self.student, *self.teachers) as (student, *teachers):
            attached = projections.attach(student, self.how, teachers[0] if teachers else None)
            student.train()
            given = {name: torch.ones(examples, tokens, dtype=torch.int64) for name in self._inputs}
            with Meter(_tensors(student, *teachers)) as meter, AsOnGpu():
                for _ in range(2 if self.accumulates else 1):
                    self._loss(student, teachers, attached, given).backward()
            return meter.peak

    @property
    def _inputs(self) -> set[str]:
        return {name for names in (self.data.inputs, *self.data.teacher_inputs) for name in names}

    def _loss(
        self,
        student: PreTrainedModel,
        teachers: Sequence[PreTrainedModel],
        attached: Mapping[int, nn.Module],
        given: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss as the trainer computes it. Cached logits take as much as the student's own."""
        how = self.how
        prediction = self._predict(student, self.data.inputs, given, model_options(how))
        loss = torch.zeros(())
        if how.label_weight:
            labels = tuple(torch.zeros(head.shape[:-1], dtype=torch.int64) for head in prediction.logits)
            loss = how.label_weight * label_loss(prediction, labels)
        if how.needs_teacher and how.weight:
            theirs = [replace(prediction, logits=tuple(head.detach() for head in prediction.logits))]
            if teachers:
                pairs = zip(teachers, self.data.teacher_inputs, strict=True)
                with torch.no_grad():
                    theirs = [
                        self._predict(teacher, names, given, model_options(how) if teacher is teachers[0] else {})
                        for teacher, names in pairs
                    ]
            loss = loss + how.weight * how.loss(projected(prediction, attached), averaged(theirs))
        return loss

    def _predict(
        self, model: PreTrainedModel, names: Sequence[str], given: Mapping[str, Tensor], options: Mapping[str, bool]
    ) -> Prediction:
        inputs = {name: given[name] for name in names}
        with torch.autocast("cpu", _AUTOCAST.get(self.precision), enabled=self.precision in _AUTOCAST):
            outputs = model(**inputs, **options)
        return self.data.task.prediction(outputs, inputs)


def scoring_peak(model: PreTrainedModel, inputs: Sequence[str], examples: int, tokens: int) -> int:
    """Highest number of bytes in activations when a model scores a batch in float32. Raises CannotRun."""
    with _fake(model) as (net,):
        net.eval()
        given = {name: torch.ones(examples, tokens, dtype=torch.int64) for name in inputs}
        with torch.no_grad(), Meter(_tensors(net)) as meter, AsOnGpu():
            net(**given)
        return meter.peak


@contextmanager
def _fake(*networks: PreTrainedModel) -> Iterator[list[PreTrainedModel]]:
    """Copies of networks with fake tensors, and a context in which they run."""
    try:
        copies = [copy.deepcopy(net) for net in networks]
        with FakeTensorMode(allow_non_fake_inputs=True):  # tensors on the meta device are none
            yield [cast("PreTrainedModel", net.to_empty(device="cpu")) for net in copies]
    except Exception as error:  # whatever a network raises on tensors without values: an estimate may be missing
        raise CannotRun(str(error).split("\n")[0]) from error


def _tensors(*modules: nn.Module) -> Iterator[Tensor]:
    for module in modules:
        yield from module.parameters()
        yield from module.buffers()
