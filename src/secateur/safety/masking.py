"""Signs that a network withstands attacks only because its gradients lead nowhere.

Athalye et al. 2018, "Obfuscated Gradients Give a False Sense of Security", arXiv:1802.00420; Carlini et al. 2019, "On
Evaluating Adversarial Robustness", arXiv:1902.06705. Where there is a sign, accuracy under attack is not to be trusted:
a better attack would find more.
"""

from torch import Tensor

from secateur.reporting.numbers import percent
from secateur.safety.battery import ITERATIVE
from secateur.safety.examining import Record

SLACK = 0.01  # share of samples, and at least two, by which one attack must beat another to be a sign
UNBROKEN = 0.05  # share of right samples that may withstand an attack without limit
FLAT = 0.05  # share of right samples whose gradient may be 0
RISING = 0.9  # share of samples whose loss must be greater after the gradient steps


def signs(record: Record, norm: str) -> tuple[str, ...]:
    """What speaks for masked gradients, in sentences; empty where nothing does.

    Args:
        record: a network's answers; see `secateur.safety.examining`.
        norm: of the ball.
    """
    clean = record["clean"]
    if not bool(clean.any()):
        return ()
    found = [_black_box(record, norm), _one_step(record, norm), _flat(record, norm), _rising(record, norm)]
    return tuple(filter(None, [*found, _unbounded(record, norm)]))


def _black_box(record: Record, norm: str) -> str:
    """An attack that sees no gradient finds more than those that do."""
    names = [f"{norm}.{name}" for name in ITERATIVE if f"{norm}.{name}" in record]
    if not names or f"{norm}.square" not in record:
        return ""
    white = record["clean"].clone()
    for name in names:
        white &= record[name]
    blind = record[f"{norm}.square"]
    if not _beats(blind, white):
        return ""
    return (
        f"the square attack, which sees no gradient, leaves {_share(blind)} right, and all attacks that follow the "
        f"gradient together leave {_share(white)}"
    )


def _one_step(record: Record, norm: str) -> str:
    """One step finds more than many."""
    single = record.get(f"{norm}.fgsm")
    many = next((record[key] for name in ITERATIVE if (key := f"{norm}.{name}") in record), None)
    if single is None or many is None or not _beats(single, many):
        return ""
    return f"one step along the gradient leaves {_share(single)} right, many steps leave {_share(many)}"


def _flat(record: Record, norm: str) -> str:
    flat = _known(record[f"{norm}.flat"])
    share = float(flat.mean())
    return f"the gradient is 0 at {percent(share)} of the samples that are right" if share > FLAT else ""


def _rising(record: Record, norm: str) -> str:
    rose = _known(record[f"{norm}.rose"])
    share = float(rose.mean())
    if share >= RISING or len(rose) * (1 - share) < 2:
        return ""
    return f"steps along the gradient make the loss greater for only {percent(share)} of {len(rose)} samples"


def _unbounded(record: Record, norm: str) -> str:
    left = record[f"{norm}.unbounded"]
    share = float(left.sum()) / float(record["clean"].sum())
    if share <= UNBROKEN or int(left.sum()) < 2:
        return ""
    return (
        f"an attack that may turn the input into any other still leaves {percent(share)} of the samples right that "
        "were right, and ought to leave none"
    )


def _beats(first: Tensor, second: Tensor) -> bool:
    """Whether an attack leaves fewer samples right than another by more than chance and rounding do."""
    return int(second.sum()) - int(first.sum()) >= max(2, SLACK * len(first))


def _share(right: Tensor) -> str:
    return percent(float(right.float().mean()))


def _known(values: Tensor) -> Tensor:
    return values[~values.isnan()]
