"""The part of a run that attacks its networks."""

from collections.abc import Mapping

from torch import nn

from secateur.config.robust import RobustSettings, pair, radii, scale
from secateur.data import Data
from secateur.reporting import Report
from secateur.runs.steps import Watch, silent
from secateur.safety.measuring import examine_all, threats_of
from secateur.safety.result import Robustness


def attacked(
    networks: Mapping[str, nn.Module], data: Data, settings: RobustSettings, seed: int, watch: Watch = silent
) -> Robustness:
    """Attack networks on the test split.

    Args:
        networks: on one device; those beside "dense" are compared with it.
        data: with a test split that no choice has seen.
        settings: how they are attacked.
        seed: of everything that is random.
        watch: is told of the step.
    """
    found = radii(settings.eps)
    how = scale(settings.normalise)
    with watch("Attacking") as step:
        tested = examine_all(
            networks,
            data.test,
            threats=threats_of(found, tuple(found), pair(settings.bounds), data.scaled if how == "auto" else how),
            samples=settings.samples,
            seed=seed,
            progress=step.advance,
        )
        step.note(f"{tested.samples} samples, {100 * tested.strongest:.1f} % withstand every attack")
    return tested


def with_robustness(
    report: Report,
    networks: Mapping[str, nn.Module],
    data: Data,
    settings: RobustSettings,
    seed: int,
    watch: Watch = silent,
) -> Report:
    """The report of a run with what attacks did to its networks, where that was asked for."""
    if not settings.robust:
        return report
    return report.replace(robustness=attacked(networks, data, settings, seed, watch).to_dict())
