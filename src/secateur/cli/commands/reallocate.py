"""``secateur reallocate``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    DATA,
    MODEL,
    MODEL_GROUP,
    RUN_GROUP,
    TRAIN_GROUP,
    Data,
    File,
    Model,
    Switch,
    all_settings,
    every,
)
from secateur.config import (
    MoveSettings,
    ReallocateRunSettings,
    ReallocateSettings,
    SavedSettings,
    TrainSettings,
)

Saved = Annotated[SavedSettings, every(MODEL_GROUP)]
Move = Annotated[MoveSettings, every(Group("What to move", sort_key=3))]
Training = Annotated[TrainSettings, every(TRAIN_GROUP)]
Run = Annotated[ReallocateRunSettings, every(RUN_GROUP)]
SAVED, MOVE, TRAINING, RUN = SavedSettings(), MoveSettings(), TrainSettings(), ReallocateRunSettings()


def reallocate(
    result: Annotated[Path | None, Parameter(group=MODEL_GROUP)] = None,
    /,
    *,
    model: Model = MODEL,
    saved: Saved = SAVED,
    data: Data = DATA,
    what: Move = MOVE,
    training: Training = TRAINING,
    run: Run = RUN,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Move width from where a network needs it least to where it needs it most, at the same cost, prove it, train on.

    Units go where they matter least for what they cost, and units are repeated where they matter most, in one plan that
    is proved. The weights that sum over copies differ a little, so that training drives these apart; what moved width
    is worth shows after that training only. A table says how much a unit of each axis mattered. The result is a
    directory as `secateur prune` writes it. Without arguments it does all of this with the embedded example.

    ```sh
    # a trained network, as many MACs as before
    secateur reallocate --model torchvision.models:resnet18 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos

    # a result of secateur's, at four fifths of its parameters
    secateur reallocate photos-half --trust --data imagefolder:photos --budget params=0.8 --out photos-moved

    # one part of the network, not trained on
    secateur reallocate --only "layer3.*" --max-growth 2 --epochs 0
    ```

    Args:
        result: directory of a saved result to reallocate, in place of the network that --model names.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.reallocate import reallocate_run

    settings = all_settings(ReallocateSettings, config, model, saved, data, what, training, run, result=result)
    return carried_out(lambda watch: reallocate_run(settings, overwrite=overwrite, watch=watch), settings.out)
