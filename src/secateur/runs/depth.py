"""The runs behind ``secateur shorten`` and ``secateur deepen``: change a network's depth, test it, save it, report."""

from typing import Any

import torch

from secateur import artifacts
from secateur.config import DeepenSettings, ShortenSettings, parse_budget
from secateur.depth import DepthResult, deepen, shorten
from secateur.files import RunDirectory, write_text
from secateur.fit import Moved, check_device, example, moved
from secateur.hints.run import First
from secateur.measuring import measure_all
from secateur.models import build_model, build_spec
from secateur.reporting import Report, render_page
from secateur.runs.prune import Outcome, compare, load_code, prepare
from secateur.runs.steps import Step, Watch, silent
from secateur.runs.unfinished import SETTINGS


def shorten_run(settings: ShortenSettings, *, overwrite: bool = False, watch: Watch = silent) -> Outcome:
    """Do everything that ``secateur shorten`` does: no training, and the test split is looked at once, at the end.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        training = settings.training()
        model, data = prepare(training, watch)
        with watch("Finding, scoring and dropping blocks") as step:
            result = shorten(
                model.eval(),
                example(data, settings.device),
                data=Moved(First(data.calibration, settings.calibration), settings.device),
                compensate=None if settings.compensate == "none" else settings.compensate,
                on_block=step.advance,
                **_how(settings),
            )
            _note(step, result)
        figures = compare({"dense": model, "pruned": result.model}, data, training, watch)
        report = _report(result, figures, settings)
        return _saved(result, report, settings, directory, watch)


def _how(settings: ShortenSettings) -> dict[str, Any]:
    """The settings as ``sc.shorten`` takes them."""
    if settings.drop:
        return {"importance": settings.drop}
    return {
        "blocks": settings.blocks,
        "keep": settings.keep,
        "budget": None if settings.budget is None else parse_budget(settings.budget),
        "importance": settings.importance,
        "rescore": settings.rescore,
        "seed": settings.seed,
    }


def deepen_run(settings: DeepenSettings, inputs: Any, *, overwrite: bool = False, watch: Watch = silent) -> Outcome:
    """Do everything that ``secateur deepen`` does.

    Args:
        inputs: example inputs.

    Raises:
        SecateurError: anything that can't be done, as one of its kinds. Nothing is left behind then.
        KeyboardInterrupt: Ctrl-C. Nothing is left behind.
    """
    with RunDirectory(settings.out, overwrite=overwrite) as directory:
        check_device(settings.device)
        with watch("Loading the model"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = build_model(settings).to(settings.device).eval()
        given = moved(inputs, settings.device)
        with watch("Inserting, proving") as step:
            result = deepen(model, settings.after, given, times=settings.times)
            _note(step, result)
        with watch("Measuring"):
            measured = measure_all({"dense": model, "pruned": result.model.eval()}, given)
        figures = {name: {**found.to_dict(), "metrics": {}} for name, found in measured.items()}
        return _saved(result, _report(result, figures, settings), settings, directory, watch)


def _note(step: Step, result: DepthResult) -> None:
    gone, come = len(result.change.dropped), len(result.change.inserted)
    said = [f"{gone} blocks went"] * bool(gone) + [f"{come} came in"] * bool(come)
    step.note(f"{', '.join(said)}, {result.proof.status}")


def _report(result: DepthResult, figures: Any, settings: ShortenSettings | DeepenSettings) -> Report:
    """The report of a run: what the function reported, with all figures measured side by side."""
    report = Report.build(
        model=settings.model,
        dense=figures["dense"],
        pruned=figures["pruned"],
        proof=result.report["proof"],
        plan=result.report["plan"],
        command=f"{settings.to_command()} --overwrite",
        seed=settings.seed,
        device=settings.device,
    )
    refitted = {"compensation": result.report["compensation"]} if result.compensation is not None else {}
    return report.replace(axes=None, depth=result.report["depth"], **refitted)


def _saved(
    result: DepthResult,
    report: Report,
    settings: ShortenSettings | DeepenSettings,
    directory: RunDirectory,
    watch: Watch,
) -> Outcome:
    with watch("Saving") as step:
        build = {"callable": build_spec(settings), "args": settings.model_args}
        artifacts.save(result, directory.work, build=build)
        report.save(directory.work / "report.json")
        load = load_code(settings.out, build, rewritten=False)
        page = render_page(report, load=load, settings=settings.to_yaml())
        write_text(directory.work / "report.html", page)
        write_text(directory.work / SETTINGS, settings.to_yaml())
        path = directory.publish()
        step.note(str(settings.out))
    return Outcome(path=path, model=result.model.eval(), report=report)
