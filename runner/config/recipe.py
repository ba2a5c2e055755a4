"""Recipes: pure data, chosen by dataset and model, that the other groups read by interpolation."""

from dataclasses import dataclass, field


@dataclass
class FinetuneRecipe:
    """How the dense model is fine-tuned. The defaults are the usual ones for BERT on SQuAD (Devlin et al. 2018)."""

    learning_rate: float = 5e-5
    """The highest learning rate."""
    lr_scheduler_type: str = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_steps: float = 0.1
    """Linear warm-up in optimizer steps, or as a fraction of the training if below 1."""
    batch_size: int = 16
    """Examples in a batch, in all."""
    epochs: float = 2
    """Passes over the training features."""
    weight_decay: float = 0.01
    """AdamW's weight decay."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.999
    """Decay of the second moment."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""


@dataclass
class Recipe:
    """How a model is pruned on a dataset. The defaults are the values of the published recipe for BERT-base on SQuAD,
    with times as parts of the training, so that they fit data of any size. Pairs of dataset and model for which nobody
    has published a recipe take conf/recipe/best.yaml.
    """

    name: str = "default"
    """The recipe's name, as its file says: that of the file."""
    criterion: str = "snip_momentum"
    """Option of the group `criterion`, read from the recipe's file alone; `criterion=...` chooses another. If another
    schedule is chosen and no criterion, it is snip_momentum."""
    schedule: str = "recipe"
    """Option of the group `schedule`, read from the recipe's file alone; `schedule=...` chooses another. If another
    criterion is chosen and no schedule, it is `recipe`."""
    distill: str = "logits"
    """Option of the group `distill`, read from the recipe's file alone; `distill=...` chooses another."""
    learning_rate: float = 7e-5
    """The highest learning rate."""
    lr_scheduler_type: str = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_steps: float = 0.1
    """Linear warm-up in optimizer steps, or as a fraction of the training if below 1."""
    batch_size: int = 16
    """Examples in a batch, in all."""
    epochs: float = 10
    """Passes over the training features."""
    weight_decay: float = 1e-7
    """AdamW's weight decay, not on biases and LayerNorm."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.9
    """Decay of the second moment."""
    max_grad_norm: float = 0.0
    """0: no clipping."""
    block_sparsity: float = 0.8
    """Target sparsity of block patterns; that of N:M follows from N and M."""
    decay: str = "exp"
    """Course of the sparsity."""
    start: str = "10%"
    """First mask update."""
    frequency: str = "2%"
    """Distance of two mask updates."""
    cooldown: str = "40%"
    """Training left after the last mask update."""
    max_seq_length: int = 128
    """Tokens in a feature, for datasets whose recipes differ in it."""
    distill_weight: float = 4.5
    """Weight of the distillation loss."""
    temperature: float = 2.0
    """Temperature of logit distillation."""
    finetune: FinetuneRecipe = field(default_factory=FinetuneRecipe)
    """Fine-tuning of the dense model."""
