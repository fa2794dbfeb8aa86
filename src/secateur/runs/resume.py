"""The run behind ``secateur resume``: find what was not finished, and go on with it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from secateur import artifacts
from secateur.config import AdaptSettings, PruneSettings, ReallocateSettings, TuneSettings
from secateur.errors import ConfigError, OutputError, SecateurError
from secateur.plain import read_yaml
from secateur.reporting import Report
from secateur.runs.steps import Watch, silent
from secateur.runs.unfinished import Unfinished

if TYPE_CHECKING:
    from secateur.runs.prune import Outcome
    from secateur.runs.tune import Tuned


def resume_run(out: Path, *, watch: Watch = silent) -> "Outcome | Tuned | None":
    """Go on with a run that was killed, or stopped by Ctrl-C.

    Args:
        out: the place of its result, or that place with ``.unfinished``.
        watch: is told of every step.

    Returns:
        What was done; None where the run is finished already, and in processes but the first.

    Raises:
        OutputError: there is no run.
        SecateurError: what the run itself raises.
    """
    out = place_of(out)
    place = Unfinished(out)
    if not place.settings.is_file():  # else a result in its place is an earlier one, or all but done
        if finished(place.out):
            place.clear()
            return None
        raise OutputError(
            f"nothing to go on with: there is neither a finished result in {place.out} nor an unfinished run in "
            f"{place.path}. Start it again"
        )
    settings = replace(settings_of(place.settings), out=out)  # wherever we are now
    if isinstance(settings, AdaptSettings):
        from secateur.runs.adapt import adapt_run

        return adapt_run(settings, resume=True, watch=watch)
    if isinstance(settings, ReallocateSettings):
        from secateur.runs.reallocate import reallocate_run

        return reallocate_run(settings, resume=True, watch=watch)
    if isinstance(settings, PruneSettings):
        from secateur.runs.prune import prune_run

        return prune_run(settings, resume=True, watch=watch)
    from secateur.runs.tune import tune_run

    return tune_run(settings, resume=True, watch=watch)


def place_of(path: Path) -> Path:
    """The place of a run's result, named itself or by what is unfinished of it."""
    return path.with_name(path.name.removesuffix(".unfinished")) if path.name else path


def settings_of(file: Path) -> PruneSettings | ReallocateSettings | TuneSettings:
    """The settings of a run, whichever command it was: each has one that no other has before it.

    Raises:
        ConfigError: they can't be read, or are not all there.
    """
    values = read_yaml(file)
    if "out" not in values:  # every run notes all of its settings: without them it would be another run
        raise ConfigError(
            f"{file} is damaged: it holds {len(values)} settings, and not all of a run's. Start the run again, with "
            f"--overwrite"
        )
    if "head_epochs" in values:
        return AdaptSettings.from_mapping(values, str(file))
    if "max_growth" in values:
        return ReallocateSettings.from_mapping(values, str(file))
    kind = TuneSettings if "result" in values else PruneSettings
    return kind.from_mapping(values, str(file))


def finished(out: Path) -> bool:
    """Whether a directory holds a result that nothing cut short."""
    if not (out / "artifact.json").is_file():
        return False
    try:
        artifacts.read_record(out)
        return not (Report.load(out)["environment"] or {}).get("interrupted")
    except SecateurError:
        return False
