"""What a test of robustness found, in plain sentences."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from secateur.reporting.numbers import percent
from secateur.reporting.wording import ATTACKS, BALLS, CORRUPTIONS
from secateur.safety.comparing import Comparison, Difference, Group
from secateur.safety.figures import Attacked, Figures
from secateur.safety.threat import Threat

if TYPE_CHECKING:
    from secateur.safety.result import Robustness

TITLES = {**ATTACKS, **CORRUPTIONS}
_DEEDS = {"pruned": "Pruning", "tuned": "Pruning and fine-tuning"}
_VERDICTS = {"better": "helped", "worse": "hurt", "within noise": "made no difference that can be told from noise"}
SHOWN = 5  # groups that are named


def radius(eps: float, threat: Threat) -> str:
    """A radius as people write it: in 255ths where the threat's own is a whole number of them.

    >>> radius(8 / 255, Threat()), radius(0.5, Threat(norm="l2"))
    ('8/255', '0.5')
    """
    steps = threat.eps * 255
    if threat.norm == "linf" and threat.bounds == (0, 1) and abs(steps - round(steps)) < 1e-6:
        return f"{eps * 255:.5g}/255"
    return f"{eps:.4g}"


def ball(threat: Threat) -> str:
    """A threat in a few words.

    >>> ball(Threat())
    'L-inf within 8/255'
    """
    return f"{BALLS[threat.norm]} within {radius(threat.eps, threat)}"


def sentences(found: "Robustness") -> tuple[str, ...]:
    """All that is worth saying, what matters most first."""
    said: list[str] = []
    *others, last = found.networks
    if last in found.comparisons:
        said += _compared(found, last, found.comparisons[last])
    for name in others:
        said += _in_short(found, name)
    if not found.comparisons:
        said += _alone(found.figures, found.samples)
    said += _masked(found.networks)
    said += [f"Left out: {TITLES.get(name, name)}: {why}." for name, why in found.left_out.items()]
    if found.interrupted:
        said.append(f"Stopped by Ctrl-C: {found.interrupted}.")
    return tuple(said)


def _alone(figures: Figures, samples: int) -> Iterator[str]:
    """One network by itself."""
    for attacked in figures.attacked.values():
        yield (
            f"{percent(attacked.strongest)} of {samples} samples withstand every attack ({ball(attacked.threat)}); "
            f"{percent(figures.clean)} are right without one."
        )
    if figures.mean_corrupted is not None:
        kinds = {name: sum(row) / len(row) for name, row in figures.corrupted.items()}
        worst = min(kinds, key=lambda name: kinds[name])
        yield (
            f"Under corruptions it is right at {percent(figures.mean_corrupted)} on average; worst is {TITLES[worst]}, "
            f"with {percent(kinds[worst])}."
        )
    yield _calibrated("It", figures)


def _calibrated(who: str, figures: Figures) -> str:
    sure, right = figures.calibration.confidence, figures.calibration.accuracy
    how = "more sure than right" if figures.calibration.overconfident else "less sure than right"
    return (
        f"{who} is {how}: {percent(sure)} confidence, {percent(right)} accuracy, calibration error "
        f"{percent(figures.calibration.error)}."
    )


def _compared(found: "Robustness", name: str, comparison: Comparison) -> Iterator[str]:
    """A network beside the dense one."""
    deed, figures, dense = _deed(name), found.networks[name], found.networks["dense"]
    for norm, attacked in figures.attacked.items():
        yield _under_attack(deed, attacked, comparison, norm, found.samples)
    yield f"Without attacks: {_moved(deed, comparison.clean, 'accuracy')}"
    if comparison.corrupted is not None:
        yield f"Under corruptions: {_moved(deed, comparison.corrupted, 'mean accuracy')}"
    yield (
        f"Calibration error: {percent(dense.calibration.error)} before, {percent(figures.calibration.error)} after. "
        + _calibrated(f"The {name} network", figures)
    )
    yield _agreed(name, comparison)


def _in_short(found: "Robustness", name: str) -> Iterator[str]:
    """A network that is not the last one: under attack only."""
    if name in found.comparisons:
        for norm, attacked in found.networks[name].attacked.items():
            yield _under_attack(_deed(name), attacked, found.comparisons[name], norm, found.samples)


def _deed(name: str) -> str:
    """What was done to the dense network."""
    return _DEEDS.get(name, name.capitalize())


def _under_attack(deed: str, attacked: Attacked, comparison: Comparison, norm: str, samples: int) -> str:
    """What attacks do at the whole radius, and over all radii, which tell more where few samples are left at that."""
    at, threat = comparison.strongest[norm], attacked.threat
    if comparison.broken(norm):
        first = (
            f"Under attack ({ball(threat)}) both networks are broken: {percent(at.before)} and {percent(at.after)} of "
            f"{samples} samples withstand it, so this radius tells nothing about {deed.lower()}."
        )
    else:
        first = (
            f"Under attack ({ball(threat)}, the worst of all attacks on each of {samples} samples): "
            f"{_moved(deed, at, 'accuracy')}"
        )
    span = f"from {radius(min(attacked.radii), threat)} to {radius(threat.eps, threat)}"
    return f"{first} Over radii {span}: {_moved(deed, comparison.endurance[norm], 'mean accuracy')}"


def _moved(deed: str, difference: Difference, what: str) -> str:
    counts = "" if difference.lost is None else f"; {difference.lost} lost, {difference.won} won"
    return (
        f"{what} {percent(difference.before)} before, {percent(difference.after)} after, {points(difference.change)} "
        f"(95 % interval {signed(difference.low)} to {signed(difference.high)}{counts}). {deed} "
        f"{_VERDICTS[difference.verdict]}."
    )


def points(change: float) -> str:
    """A difference of shares in percentage points.

    >>> points(-0.0213)
    '-2.1 points'
    """
    return f"{signed(change)} points"


def signed(change: float) -> str:
    """A difference in percentage points, without the word."""
    return f"{100 * change:+.1f}" if abs(change) >= 0.0005 else "0.0"


def _agreed(name: str, comparison: Comparison) -> str:
    said = f"The {name} network gives the dense one's answer on {percent(comparison.agreement)} of the samples."
    paying = comparison.paying
    if not paying:
        return f"{said} No group pays more for it than the average, beyond chance."
    more = f", and {len(paying) - SHOWN} more" if len(paying) > SHOWN else ""
    return f"{said} These pay more for it than the average: {'; '.join(map(_pays, paying[:SHOWN]))}{more}."


def _pays(group: Group) -> str:
    return (
        f"{group.name} ({percent(group.before)} before, {percent(group.after)} after, {group.samples} samples, p = "
        f"{group.p:.2g})"
    )


def _masked(networks: Mapping[str, Figures]) -> Iterator[str]:
    """Signs of masked gradients."""
    several = len(networks) > 1
    clear = True
    for name, figures in networks.items():
        for attacked in figures.attacked.values():
            if attacked.signs:
                clear = False
                who = f" of the {name} network" if several else ""
                yield (
                    f"Signs of masked gradients{who} ({ball(attacked.threat)}): {'; '.join(attacked.signs)}. Its "
                    "accuracy under attack is not to be trusted: another attack may find more."
                )
    if clear and any(figures.attacked for figures in networks.values()):
        yield "No signs of masked gradients."
