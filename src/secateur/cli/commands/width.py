"""``secateur grow``."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from secateur.cli import views
from secateur.cli.ending import DONE, output
from secateur.cli.flags import DATA, MODEL, OF_RUN, Data, Model, Shapes, Switch, named, settings_of, words
from secateur.cli.saved import example_inputs, load_saved, saved_inputs
from secateur.config import DataSettings, ModelSettings
from secateur.models import build_model, build_spec

GROW = Parameter(group=Group("What to grow", sort_key=3))


def grow(
    path: Path | None = None,
    /,
    *,
    axis: Annotated[tuple[str, ...], GROW] = (),
    noise: Annotated[float, GROW] = 0.0,
    model: Model = MODEL,
    data: Data = DATA,
    input: Shapes = (),
    out: Annotated[Path, OF_RUN] = Path("secateur-grown"),
    seed: Annotated[int, OF_RUN] = 0,
    overwrite: Switch = False,
    trust: Switch = False,
    debug: Switch = False,
) -> int:
    """Make axes of a network, or of a saved result, wider without changing what it computes, and prove it.

    Units are repeated, and the weights that sum over them are divided among the copies. The result is a saved one like
    those of prune: train it on, prune it, grow it again.

    ```sh
    secateur inspect                                        # lists the axes
    secateur grow secateur-run --axis fc1.weight:0=240 --noise 0.1 --out wider
    secateur grow --model torchvision.models:resnet18 --weights trained.pt \\
        --input 1x3x224x224 --axis layer1.0.conv1.weight:0=96
    ```

    Args:
        path: directory of a saved result. Without it, the network that --model names is grown.
        axis: an axis and its new width, fc1.weight:0=240. Repeat it for further axes.
        noise: how far the parts of divided weights differ, as a share of their size, from 0 to 1. With 0, copies train
            alike for ever. The function stays what it is.
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs are those saved with the result, or come from the data.
        out: directory for the result.
        seed: of the units that get one copy more, and of the noise.
        overwrite: replace an earlier result there.
        trust: let a saved result import the code that its network was built with.
        debug: show the whole traceback of an error.
    """
    from secateur.artifacts import read_record
    from secateur.runs.grow import grow_run, widths_of

    widths, settings = widths_of(axis), settings_of(ModelSettings, model)
    if path is None:
        network, build = build_model(settings), {"callable": build_spec(settings), "args": settings.model_args}
    else:
        network = load_saved(path, named(model), trust=trust)
        build = read_record(path)["build"]
    if path is None or input:
        args, kwargs = example_inputs(input, settings_of(DataSettings, data)), {}
    else:
        args, kwargs = saved_inputs(path)
    done: dict[str, Any] = {"build": build, "noise": noise, "seed": seed, "overwrite": overwrite, "words": words()}
    views.grown(output(), grow_run(network, args, kwargs, widths, out, **done), out)
    return DONE
