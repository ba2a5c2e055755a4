"""The head that a student takes over from its teacher (distill=simkd): copied if both have one width, else behind a
projector, which is folded into the head at the end or stays in it.

A key in config.json marks a head whose projector stayed, and `runner.models` builds it. The classes of transformers
refuse to load it, since its matrix has the teacher's width and not the student's.
"""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning import Projector
from runner.system.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PretrainedConfig, PreTrainedModel

KEY = "projected_head"
"""The key in config.json for a projector that stayed: its kind and output width."""


class ProjectedHead(nn.Linear):
    """A linear head behind a projector: weight and bias under the names of an ordinary head, but of another width."""

    def __init__(self, projector: nn.Module, width: int, outputs: int, bias: bool) -> None:
        super().__init__(width, outputs, bias)
        self.projector = projector

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(self.projector(states), self.weight, self.bias)


def head(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules outside the encoder, by name: the task's head and what belongs to it."""
    return {name: child for name, child in model.named_children() if child is not model.base_model}


def layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules with weights between the last hidden states and the logits, by name; the encoder's pooler is one."""
    pooler = getattr(model.base_model, "pooler", None)
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    pooling = {f"{prefix}pooler": pooler} if isinstance(pooler, nn.Module) else {}
    return {name: module for name, module in (pooling | head(model)).items() if any(True for _ in module.parameters())}


def only_layer(model: PreTrainedModel) -> str | None:
    """The name of a head that is one linear layer over the last hidden states; None if it is more than that."""
    modules = layers(model)
    return next(iter(modules)) if [type(module) for module in modules.values()] == [nn.Linear] else None


def check(student: PreTrainedModel, teacher: PreTrainedModel, projects: bool) -> None:
    """Refuse a student that cannot take over its teacher's head.

    Args:
        student, teacher: with or without weights.
        projects: whether their widths differ.
    """
    if only_layer(student) is not None and only_layer(teacher) is not None:
        return
    mine, theirs = ((model.config.model_type, list(layers(model))) for model in (student, teacher))
    if projects or mine != theirs:
        raise UserError(
            "distill=simkd: a head that pools or has several layers is taken over only by a student as wide as its "
            f"teacher, of the same family: here the student is {mine[0]} ({', '.join(mine[1])}) and the teacher "
            f"{theirs[0]} ({', '.join(theirs[1])}), {'of another' if projects else 'of the same'} width; use "
            "distill=hidden or distill=logits"
        )


def share(student: PreTrainedModel, teacher: PreTrainedModel, projector: nn.Module | None) -> None:
    """Give the student the teacher's head, frozen, with the encoder's pooler if there is one.

    Args:
        projector: from the student's width to the teacher's; None: they are equal.

    Raises:
        UserError: the heads differ in more than width.
    """
    check(student, teacher, projector is not None)
    if projector is None:
        mine, theirs = layers(student), layers(teacher)
        for (name, module), other in zip(mine.items(), theirs.values(), strict=True):
            try:
                module.load_state_dict(other.state_dict())
            except RuntimeError as error:
                raise UserError(
                    f"distill=simkd: the student's head has another shape than its teacher's ({name}); use "
                    "distill=hidden or distill=logits"
                ) from error
            module.requires_grad_(False)
        return
    name, of = only_layer(student), only_layer(teacher)
    assert name is not None
    assert of is not None
    theirs: Any = teacher.get_submodule(of)
    new = ProjectedHead(projector, theirs.in_features, theirs.out_features, theirs.bias is not None)
    new.load_state_dict(theirs.state_dict(), strict=False)
    for parameter in new.parameters(recurse=False):
        parameter.requires_grad_(False)
    setattr(student, name, new.to(student.device))


def finish(student: PreTrainedModel) -> None:
    """Fold a linear projector into the head, W' = W P and b' = W p + b; name any other one in the configuration."""
    for name, module in head(student).items():
        if not isinstance(module, ProjectedHead):
            continue
        if isinstance(module.projector, nn.Linear):
            setattr(student, name, folded(module, module.projector))
        else:
            setattr(student.config, KEY, {"projector": Projector.mlp.value, "width": module.in_features})


@torch.no_grad()
def folded(head: ProjectedHead, projector: nn.Linear) -> nn.Linear:
    """One layer equal to projector and head in a row, computed in float64."""
    weight, inner = head.weight.double(), projector.weight.double()
    bias = weight @ projector.bias.double() + (0 if head.bias is None else head.bias.double())
    new = nn.Linear(projector.in_features, head.out_features, device=head.weight.device)
    new.weight.copy_(weight @ inner)
    new.bias.copy_(bias)
    return new


def network(architecture: str, config: PretrainedConfig) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """from_pretrained and from_config of a transformers auto class, with the projector that the configuration names.

    Raises:
        ValueError: the architecture has no such model.
    """
    import transformers

    auto: Any = getattr(transformers, architecture)
    if getattr(config, KEY, None) is None:  # no code of a model's repository is run, and nobody is asked
        return partial(auto.from_pretrained, trust_remote_code=False), partial(
            auto.from_config, trust_remote_code=False
        )
    cls = class_for(auto._model_mapping[type(config)], config)
    return cls.from_pretrained, cls._from_config


def class_for(cls: Any, config: PretrainedConfig) -> Any:
    """The class of transformers, or one whose models have the projector that the configuration names."""
    return cls if getattr(config, KEY, None) is None else _with_projector(cls)


def saved_class(config: PretrainedConfig, folder: object) -> Any:
    """The class of transformers that a saved model's config.json names, with the projector that it names.

    Args:
        folder: where the model is, for messages.

    Raises:
        UserError: transformers has no such model.
    """
    import transformers

    named = config.architectures
    name = str(named[0] if isinstance(named, list) and named else named or "AutoModel")
    kind = getattr(transformers, name, None)
    if kind is transformers.AutoModel:
        return kind
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise UserError(f"{folder}: transformers has no model {name}, which config.json names")
    return class_for(kind, config)


@cache
def _with_projector(cls: Any) -> Any:
    def __init__(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        how = getattr(config, KEY)
        name = only_layer(self)
        if name is None:
            raise UserError(
                f"config.json names {KEY}, a projector before a head of one layer, and the head of {cls.__name__} is "
                "none: this checkpoint serves the kind of task that it was pruned for"
            )
        plain = getattr(self, name)
        projector = Projector(how["projector"]).between(plain.in_features, how["width"])
        setattr(self, name, ProjectedHead(projector, how["width"], plain.out_features, plain.bias is not None))

    return type(cls.__name__, (cls,), {"__init__": __init__, "__module__": cls.__module__})
