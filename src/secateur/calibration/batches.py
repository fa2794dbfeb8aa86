"""Calibration data as users hand it over: checked, moved to the model, run and costed; errors name the batch.

Shape letters: B samples, C classes.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map_only

from secateur.errors import DataError, ScoreError, SecateurError
from secateur.inputs import fresh, split_batch
from secateur.modules import named_tensors
from secateur.objectives import Loss, logits_of, own_loss

Forward = Callable[[nn.Module, Any], Any]


def checked(data: Any) -> Iterable[Any]:
    """The data, if they look like batches.

    Raises:
        DataError: they are one batch, not an iterable of batches.
    """
    single = single_batch(data)
    if single is not None:
        raise DataError(f"data is an iterable of batches, and got {single}: pass [batch], or a DataLoader")
    return cast("Iterable[Any]", data)


def single_batch(data: Any) -> str | None:
    """What data are that are no iterable of batches, in words; None where they are one."""
    if isinstance(data, Tensor):
        return f"a tensor of shape {tuple(data.shape)}"
    if isinstance(data, Mapping):
        return "a mapping"
    if isinstance(data, tuple) and _is_pair(cast("tuple[Any, ...]", data)):
        return "one pair (inputs, target)"
    if isinstance(data, str) or not isinstance(data, Iterable):
        return f"a {type(data).__name__}"
    return None


def _is_pair(items: tuple[Any, ...]) -> bool:
    """Whether a tuple is a batch of inputs and class labels, and no two batches."""
    if len(items) != 2 or not all(isinstance(item, Tensor) for item in items):
        return False
    x, y = items
    return x.dim() > 1 and y.dim() == 1 and len(x) == len(y) and not y.is_floating_point()


class Batches:
    """The batches of one pass, each ready to be run.

    Args:
        model: the module that runs; inputs go to its device, where it has one only.
        forward: ``(model, batch) -> output``; None calls the model as the batch's form says.
        name: what the data are called in errors.
        protected: whether they are data whose behaviour must not change.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        forward: Forward | None,
        *,
        name: str = "calibration data",
        protected: bool = False,
    ) -> None:
        self.model, self.data, self.forward = model, checked(data), forward
        self.name, self.protected = name, protected
        devices = {tensor.device for tensor in named_tensors(model).values()}
        self.device = devices.pop() if len(devices) == 1 else None

    def __len__(self) -> int:
        """How many there are, 0 where the data don't say."""
        try:
            return len(self.data)  # type: ignore[arg-type]
        except TypeError:
            return 0

    def __iter__(self) -> Iterator["Batch"]:
        for number, given in enumerate(self.data):
            moved = given if self.device is None else tree_map_only(Tensor, lambda t: t.to(self.device), given)
            yield Batch(number, moved, self)


class Batch:
    """One batch of data.

    Attributes:
        number: of the batch, from 0.
        samples: B, along the first dim of the first input.
    """

    def __init__(self, number: int, given: Any, batches: Batches) -> None:
        self.number, self.given, self.batches = number, given, batches
        inputs = given
        if batches.forward is None:
            try:
                args, kwargs, _ = split_batch(given)
            except TypeError as error:
                raise DataError(
                    f"batch {number} of the {batches.name}: {error}; pass forward=lambda model, batch: ... for another "
                    "form"
                ) from error
            inputs = args, kwargs
        self.samples = batch_size(inputs)
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, Tensor)]
        self.shapes = ", ".join(str(tuple(t.shape)) for t in tensors) or type(given).__name__
        if any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors):
            raise DataError(f"batch {number} of the {batches.name} holds NaN: drop or mend it")

    @property
    def target(self) -> Any:
        """What the model should have returned, the ``labels`` of a mapping included; None where there is nothing."""
        given, found = self.given, None
        if self.batches.forward is None:
            _, kwargs, target = split_batch(given)
            found = kwargs.get("labels") if target is None else target
        elif isinstance(given, Mapping):
            found = cast("Mapping[str, Any]", given).get("labels")
        elif isinstance(given, tuple | list) and len(cast("list[Any]", given)) > 1:
            found = given[-1]
        return fresh(found)  # a tensor made under inference_mode is no use in a backward pass

    @property
    def call(self) -> tuple[Any, dict[str, Any]]:
        """The inputs, positional and by keyword, of a batch that has the usual form.

        Raises:
            DataError: it has another.
        """
        if self.batches.forward is not None:
            raise DataError("with forward=, nobody knows the model's inputs: pass the graph that sc.trace gave")
        args, kwargs, _ = split_batch(self.given)
        return args, kwargs

    def run(self, model: nn.Module) -> Any:
        """The model's output; the batch stays as it is.

        Raises:
            DataError: the model fails on it.
        """
        with self._blamed(model):
            given = fresh(self.given)
            if self.batches.forward is not None:
                return self.batches.forward(model, given)
            args, kwargs, _ = split_batch(given)
            return model(*args, **kwargs)

    @contextmanager
    def _blamed(self, model: nn.Module) -> Generator[None]:
        try:
            yield
        except SecateurError:
            raise
        except Exception as error:
            raise DataError(
                f"{type(model).__name__} fails on batch {self.number} of the {self.batches.name}, inputs "
                f"{self.shapes}: {type(error).__name__}: {error}. Batches need the form and shape that the model takes."
            ) from error

    def loss(self, output: Any, loss: Loss | None, asking: str) -> Tensor:
        """The mean loss of a sample.

        Args:
            loss: ``(output, target) -> scalar``, a mean over the batch; None takes the model's own, else cross-entropy.
            asking: the criteria that need it.

        Raises:
            ScoreError: there is none, or it is NaN.
        """
        value = self.losses(output, loss, asking)
        if not isinstance(value, Tensor) or value.numel() == 0 or not value.requires_grad:
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ScoreError(
                f"the loss of batch {self.number} is {got} from which no gradient comes for {asking}: "
                "return a scalar tensor that is computed from the output"
            )
        value = value.mean()
        if not bool(value.isfinite()):
            raise ScoreError(f"the loss of batch {self.number} is {float(value.detach())}: no gradients for {asking}")
        return value

    def losses(self, output: Any, loss: Loss | None, asking: str) -> Any:
        """What gives the loss gives, as it is; with or without gradients.

        Args:
            loss, asking: as for `loss`.

        Raises:
            ScoreError: there is none.
        """
        ways = (
            "Pass batches (inputs, target) of class labels, or loss=lambda output, target: ..., or take a criterion "
            "without labels (such as 'reconstruction' of units, 'wanda' of weights)."
        )
        if loss is not None:
            try:
                return loss(output, self.target)
            except Exception as error:
                raise ScoreError(
                    f"loss(output, target) fails on batch {self.number}: {type(error).__name__}: {error}"
                ) from error
        own = own_loss(output)
        if own is not None:
            return own
        scores, target = logits_of(output), self.target
        if target is None:
            raise ScoreError(f"no loss for {asking}: batch {self.number} has no target. {ways}")
        if scores is None or not isinstance(target, Tensor):
            raise ScoreError(
                f"no loss for {asking}: there is no cross-entropy between a {type(output).__name__} and a "
                f"{type(target).__name__}. {ways}"
            )
        if scores.dim() == 3 and target.shape == scores.shape[:2]:  # (B, tokens, C)
            scores = scores.movedim(2, 1)
        try:
            return F.cross_entropy(scores, target)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ScoreError(
                f"no loss for {asking}: cross-entropy does not fit outputs {tuple(scores.shape)} and targets "
                f"{tuple(target.shape)} of {target.dtype}: {error}. {ways}"
            ) from error


def batch_size(inputs: Any) -> int:
    """The length of the first tensor among inputs along its first dim, or of a list of images; else 1."""
    if isinstance(inputs, Tensor):
        return inputs.shape[0] if inputs.dim() else 1
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() == 3:
        return len(cast("list[Any]", inputs))  # images of several sizes
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple | list) else ()
    for part in cast("Iterable[Any]", parts):
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(part)):
            return batch_size(part)
    return 1


def drawn_loss(output: Any, target: Any, generator: torch.Generator) -> Tensor:
    """The loss, summed over samples, against answers drawn from the model's own: squares of its gradients are Fisher's
    information, and need no labels.

    Class scores (B, C, ...), or (B, tokens, C), draw a class for each place. Where the target is no class, there
    is one score only, or the output holds no class scores, each number counts as the mean of a normal distribution.

    Raises:
        ScoreError: the output holds no numbers that gradients come from.
    """
    scores = logits_of(output)
    classes = (
        scores is not None and scores.dim() > 1 and not (isinstance(target, Tensor) and target.is_floating_point())
    )
    if scores is None:
        scores = next((t for t in _tensors(output) if t.is_floating_point() and t.requires_grad), None)
    if scores is None or not scores.requires_grad:
        raise ScoreError(
            f"no gradient comes from what the model returns, a {type(output).__name__}, so errors can't be weighed by "
            "what they cost it: take Reconstruction(weighted=False)"
        )
    last = scores.float() if scores.dim() in (0, 1, 3) else scores.float().movedim(1, -1)
    if not classes or last.shape[-1] == 1:
        noise = torch.randn(last.shape, generator=generator).to(last.device)
        return (last * noise).sum()  # its gradient is that of |last - drawn|^2 / 2
    flat = last.reshape(-1, last.shape[-1])
    drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator).to(flat.device)
    return F.cross_entropy(flat, drawn[:, 0], reduction="sum")


def _tensors(output: Any) -> list[Tensor]:
    """The tensors in an output: a container, a mapping or an object with attributes."""
    parts = vars(output) if hasattr(output, "__dict__") and not isinstance(output, Tensor | Mapping) else output
    return [
        t
        for t in tree_leaves(dict(cast("Any", parts)) if isinstance(parts, Mapping) else parts)
        if isinstance(t, Tensor)
    ]
