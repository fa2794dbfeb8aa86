"""What the result may cost."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from secateur.errors import PlanError

Amount = float | int | str
UNITS = {"s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "μs": 1e3, "ns": 1.0}  # nanoseconds
SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True)
class Budget:
    """The most that the result may cost.

    A float in (0, 1] is a fraction of the original, an int or a quantity such as "2.1G" is absolute. With several, all
    must be met.

    Args:
        params: number of parameters.
        macs: multiply-accumulates of one forward pass on the example inputs.
        bytes: size of all parameters and buffers, as they are stored.
        latency: time of one forward pass on the example inputs, on the device that the model is on: a fraction, or a
            quantity with its unit, such as "5ms" or "300us".

    Raises:
        PlanError: no amount, or one that is neither a fraction nor a quantity.

    Example:
        >>> Budget(macs=0.5).targets({"params": 100, "macs": 1000, "bytes": 400})
        {'macs': 500.0}
    """

    params: Amount | None = None
    macs: Amount | None = None
    bytes: Amount | None = None
    latency: Amount | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise PlanError("an empty budget: give params=, macs=, bytes= or latency=, such as Budget(macs=0.5)")
        for kind, amount in self.given.items():
            _target(kind, amount, 1.0)

    @property
    def given(self) -> dict[str, Amount]:
        """The amounts that were given, by kind of cost."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {kind: amount for kind, amount in values.items() if amount is not None}

    def targets(self, dense: Mapping[str, int]) -> dict[str, float]:
        """Absolute targets, given the original costs; of latency in nanoseconds."""
        return {kind: _target(kind, amount, dense[kind]) for kind, amount in self.given.items()}


def _target(kind: str, amount: Amount, dense: float) -> float:
    """An absolute amount.

    Raises:
        PlanError: the amount makes no sense.
    """
    if kind == "latency":
        return _nanoseconds(amount, dense)
    wrong = PlanError(
        f'budget {kind}={amount!r}: give a fraction of the original in (0, 1], an int, or a quantity such as "2.1G"'
    )
    if isinstance(amount, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmgt]?)b?\s*", amount.lower())
        if match is None:
            raise wrong
        number = float(match[1])
        if number == 0:
            raise wrong
        return number * dense if not match[2] and "." in match[1] and number <= 1 else number * SUFFIX[match[2]]
    if type(amount) not in (int, float) or not amount > 0 or (isinstance(amount, float) and amount > 1):
        raise wrong
    return amount * dense if isinstance(amount, float) else float(amount)


def _nanoseconds(amount: Amount, dense: float) -> float:
    """An absolute latency.

    Raises:
        PlanError: the amount makes no sense, or its unit is missing.
    """
    match = None
    if isinstance(amount, str):
        match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*(s|ms|us|µs|μs|ns)?\s*", amount.lower())
        if match is not None and match[2] and float(match[1]) > 0:
            return float(match[1]) * UNITS[match[2]]
    share = float(match[1]) if match and "." in match[1] else amount
    if type(share) is float and 0 < share <= 1:
        return share * dense
    number = match[1] if match else f"{amount:g}" if type(amount) in (int, float) else ""
    meant = f"{number if number.strip('0.') else 5}ms"
    raise PlanError(
        f'budget latency={amount!r}: give a time with its unit, such as "5ms", "300us" or "0.01s", or a fraction of '
        f"the original in (0, 1]. If milliseconds are meant: latency={meant!r}"
    )
