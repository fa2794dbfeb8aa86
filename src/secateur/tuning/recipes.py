"""Settings of a training run that go together."""

from dataclasses import dataclass, replace

EPOCHS = 10  # where nobody says: enough for what little a refitted network lacks


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training run that go together: ``tune(model, loader, **asdict(recipe))``.

    Args:
        epochs: passes over the training batches, at least 1.
        lr: the highest learning rate, reached after the warm-up.
        weight_decay: decoupled weight decay of AdamW, L2 penalty of SGD.
        optimizer: "adamw" or "sgd" (with Nesterov momentum 0.9).
        warmup: fraction of all steps during which the learning rate rises, in [0, 1).
        distill: weight of the teacher's answers against the labels, in [0, 1]; without a teacher it does nothing.
        temperature: softens both sides of the distillation, above 0.
    """

    epochs: int
    lr: float
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    warmup: float = 0.1
    distill: float = 0.7
    temperature: float = 3.0


# For small networks on small images: chosen on held-out parts of the digits' training data, never on their test split.
# A network pruned to a tenth of its parameters has much to learn again, so it is tuned at a high rate.
# Large networks, above all pretrained ones, want rates ten to a hundred times lower.
SCRATCH = Recipe(epochs=60, lr=5e-3)
TUNE = Recipe(epochs=100, lr=1e-2)

FINE_TUNING = replace(TUNE, epochs=5, lr=3e-4)
"""For trained networks of any kind: a low rate keeps what they know."""

ADAPTED_IMPORTANCE = "fisher"
"""Of an adapted network where nobody says: labels of the new task say what it needs."""
ADAPTING = replace(TUNE, epochs=5, lr=1e-4)
"""For all weights of a trained network behind a head that fits already: there is little to learn, and much to lose."""
