"""``sc.robustness``: attack a network, spoil its inputs, and say what that did."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.modules import kept_modes, named_tensors
from secateur.progress import progress_bar
from secateur.safety.battery import Effort, checked_attacks, impossible
from secateur.safety.comparing import compare
from secateur.safety.corruption import CORRUPTIONS, unfit
from secateur.safety.examining import Exam, Record, examine
from secateur.safety.figures import figures
from secateur.safety.hunt import Scores
from secateur.safety.inputs import check_bounds
from secateur.safety.result import Robustness
from secateur.safety.samples import Forward, Samples, as_scores, check_classes, gather, groups_of
from secateur.safety.threat import Norm, Scale, Threat, finite

SAMPLES = 1000
BATCH = 100

Progress = Callable[[int, int], None]


def robustness(
    model: nn.Module,
    data: Iterable[Any],
    *,
    eps: float | Mapping[Norm, float] = 8 / 255,
    norm: Norm | Sequence[Norm] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    normalise: tuple[Scale, Scale] | None = None,
    dense: nn.Module | None = None,
    groups: Mapping[str, Any] | Iterable[Any] | None = None,
    classes: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    corruptions: bool = True,
    steps: int = 20,
    restarts: int = 5,
    apgd_steps: int = 100,
    queries: int = 1000,
    samples: int | None = SAMPLES,
    batch_size: int = BATCH,
    forward: Forward | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """Accuracy under attack and under corruptions, calibration, and signs that the figures can't be trusted; with the
    dense network given, whether pruning helped or hurt, and which classes pay for it.

    The attacks: FGSM (Goodfellow et al. 2015), PGD with restarts (Madry et al. 2018), Auto-PGD on the cross-entropy and
    on the targeted difference of logits ratio (Croce & Hein 2020), and the square attack, which sees scores only
    (Andriushchenko et al. 2020). Each attacks all samples that are right without it; the strongest of all is counted
    sample by sample. An accuracy under attack is what these attacks leave, so no more than an upper bound.

    Args:
        model: returns class scores (N, C), or an output that holds ``logits``. It is attacked in evaluation mode.
        data: batches (inputs, labels), or mappings of one input and "labels". An input is (N, ...), floating-point.
        eps: how far an attack may change an input, in pixel units, those of ``bounds``; a mapping from norms to radii
            where there are two norms, such as ``{"linf": 8 / 255, "l2": 0.5}``.
        norm: "linf", the largest change of a value; "l2", the root of the summed squares; or both. None is those that
            ``eps`` names, and "linf" where it is a number.
        bounds: least and greatest value that a pixel can have.
        normalise: ``(mean, std)`` that the inputs were scaled with, in the unit of the bounds: a number each or one for
            each channel. None where inputs are pixels.
        dense: the network before pruning: everything is measured of it, too, and compared sample by sample.
        groups: who may pay for the pruning, in place of the classes: a mapping from names to masks over the samples, or
            one value for each sample.
        classes: names of the classes, from 0.
        attacks: some of "fgsm", "pgd", "apgd_ce", "apgd_dlr" and "square"; None is all that can be made.
        corruptions: whether inputs are spoilt by noise, blur, low contrast and JPEG, too (Hendrycks & Dietterich 2019).
        steps, restarts: gradient steps and random starts of PGD.
        apgd_steps: gradient steps of Auto-PGD, for each of its targets.
        queries: how often the square attack may ask about a sample.
        samples: how many of the data at most; None is all.
        batch_size: how many are attacked at once.
        forward: ``(model, inputs) -> output`` where the model wants more than the inputs.
        seed: of everything that is random.
        progress: told (done, total); None shows a bar.

    Returns:
        A mapping that prints as tables, with ``.clean``, ``.fgsm``, ``.pgd``, ``.apgd_ce``, ``.apgd_dlr``, ``.square``
        and ``.strongest`` in [0, 1]. After Ctrl-C it holds what is known of the batches that were done.

    Raises:
        ConfigError: settings that contradict each other.
        DataError: samples that can't be attacked: out of bounds, without labels, several inputs.
        KeyboardInterrupt: Ctrl-C before the first batch was done.

    Example:
        >>> import secateur as sc
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> model.weight.data = torch.eye(2)
        >>> points, labels = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.52, 0.48]]), torch.tensor([0, 1, 0])
        >>> found = sc.robustness(model, [(points, labels)], eps=0.1, corruptions=False)
        >>> round(found.clean, 2), round(found.pgd, 2), found.left_out["square"]
        (1.0, 0.67, 'it changes squares of images (N, C, H, W), and inputs are (N, 2)')
    """
    networks = {"network": model} if dense is None else {"dense": dense, "pruned": model}
    return examine_all(
        networks,
        data,
        threats=threats_of(eps, norm, bounds, normalise),
        groups=groups,
        classes=classes,
        attacks=attacks,
        corruptions=corruptions,
        effort=Effort(steps=steps, restarts=restarts, apgd_steps=apgd_steps, queries=queries),
        samples=samples,
        batch_size=batch_size,
        forward=forward,
        seed=seed,
        progress=progress,
    )


def threats_of(
    eps: float | Mapping[Norm, float],
    norm: Norm | Sequence[Norm] | None,
    bounds: tuple[float, float],
    normalise: tuple[Scale, Scale] | None,
) -> tuple[Threat, ...]:
    """The balls, one for each norm.

    Raises:
        ConfigError: a norm without a radius, a radius without its norm, or one that is none.
    """
    if isinstance(eps, Mapping) and not eps and norm is None:
        raise ConfigError("eps={} holds no radius: give one for each norm, eps={'linf': 8 / 255, 'l2': 0.5}")
    if norm is None:
        norm = tuple(eps) if isinstance(eps, Mapping) else "linf"
    norms = cast("tuple[Norm, ...]", (norm,) if isinstance(norm, str) else tuple(norm))
    if not norms:
        raise ConfigError(f"norm={norm} asks for nothing: 'linf', 'l2' or both")
    if not isinstance(eps, Mapping):
        if len(norms) != 1:
            raise ConfigError(
                f"eps={eps} for norm={norms}: a radius means something else in each norm, so give one for each: "
                "eps={'linf': 8 / 255, 'l2': 0.5}"
            )
        eps = {norms[0]: float(eps) if finite(eps) else eps}
    if missing := [name for name in norms if name not in eps]:
        raise ConfigError(f"eps={dict(eps)} says nothing of {', '.join(missing)}")
    if idle := [name for name in eps if name not in norms]:
        raise ConfigError(
            f"eps={dict(eps)} holds a radius for {', '.join(idle)}, which norm={norm!r} does not ask for: leave norm "
            "out, or the radius"
        )
    return tuple(Threat(eps=eps[name], norm=name, bounds=bounds, normalise=normalise) for name in norms)


def examine_all(
    networks: Mapping[str, nn.Module],
    data: Any,
    *,
    threats: tuple[Threat, ...],
    groups: Any = None,
    classes: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    corruptions: bool = True,
    effort: Effort | None = None,
    samples: int | None = SAMPLES,
    batch_size: int = BATCH,
    forward: Forward | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:
    """As `robustness`, of any number of networks; those beside "dense" are compared with it."""
    if not networks or batch_size < 1 or (samples is not None and samples < 1):
        raise ConfigError(f"samples={samples}, batch_size={batch_size}: at least 1 of each")
    device = next((t.device for t in named_tensors(next(iter(networks.values()))).values()), torch.device("cpu"))
    asked = checked_attacks(attacks)
    with torch.inference_mode(False):
        given = gather(data, samples, device)
        check_bounds(threats[0], threats[0].pixels(given.inputs))
    with _at_rest(networks.values(), seed):
        scores = {name: as_scores(model, given.name, forward) for name, model in networks.items()}
        count = min(check_classes(scores[name], given, model) for name, model in networks.items())
        left_out = _left_out(asked, corruptions, given, count)
        exam = Exam(
            threats=threats,
            attacks=tuple(name for name in asked if name not in left_out),
            corruptions=tuple(name for name in CORRUPTIONS if corruptions and name not in left_out),
            effort=effort or Effort(),
            seed=seed,
        )
        records, interrupted = _records(exam, scores, given, batch_size, progress)
    done = len(next(iter(records.values()))["clean"])
    members = {name: mask[:done].cpu() for name, mask in groups_of(groups, given, given.labels, classes).items()}
    others = [name for name in networks if name != "dense" and "dense" in networks]
    return Robustness(
        model=type(list(networks.values())[-1]).__name__,
        samples=done,
        seed=seed,
        networks={name: figures(exam, record) for name, record in records.items()},
        comparisons={name: compare(exam, records["dense"], records[name], members) for name in others},
        left_out=left_out,
        interrupted=interrupted,
        records=records,
    )


def _left_out(attacks: Sequence[str], corruptions: bool, given: Samples, classes: int) -> dict[str, str]:
    """What can't be asked, and why."""
    found = {name: impossible(name, given.inputs, classes) for name in attacks}
    if corruptions:
        found |= {name: unfit(name, given.inputs.shape) for name in CORRUPTIONS}
    return {name: why for name, why in found.items() if why}


def _records(
    exam: Exam, scores: Mapping[str, Scores], given: Samples, batch_size: int, progress: Progress | None
) -> tuple[dict[str, Record], str]:
    """All answers, batch by batch, so that Ctrl-C leaves all questions on fewer samples; and what it cut short."""
    inputs, labels = given.inputs.split(batch_size), given.labels.split(batch_size)
    found: list[dict[str, Record]] = []
    total, done = len(inputs) * len(scores) * exam.questions, 0
    with progress_bar("Attacking", total) as advance:

        def tell() -> None:
            nonlocal done
            done += 1
            (progress or advance)(done, total)

        interrupted = ""
        try:
            for number, batch in enumerate(zip(inputs, labels, strict=True)):
                found.append({name: examine(exam, said, *batch, number, tell) for name, said in scores.items()})
        except KeyboardInterrupt:
            if not found:
                raise
            interrupted = f"{len(found)} of {len(inputs)} batches of samples were attacked"
    return {name: _joined([batch[name] for batch in found]) for name in scores}, interrupted


def _joined(records: list[Record]) -> Record:
    joined: dict[str, Tensor] = {key: torch.cat([record[key] for record in records]) for key in records[0]}
    return joined


@contextmanager
def _at_rest(models: Iterable[nn.Module], seed: int) -> Generator[None]:
    """Networks in evaluation mode, with random numbers of their own, where gradients can be had; all is put back."""
    models = list(models)
    devices = sorted({p.device.index or 0 for model in models for p in model.parameters() if p.is_cuda})
    with kept_modes(*models), torch.random.fork_rng(devices=devices), torch.inference_mode(False):
        torch.manual_seed(seed)
        for model in models:
            model.eval()
        yield
