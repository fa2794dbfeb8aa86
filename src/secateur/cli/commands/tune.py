"""``secateur tune`` and ``secateur resume``."""

from pathlib import Path
from typing import Annotated

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    DATA,
    MODEL_GROUP,
    ROBUST,
    ROBUST_GROUP,
    RUN,
    RUN_GROUP,
    TRAIN_GROUP,
    Data,
    File,
    ModelPath,
    Robust,
    Switch,
    all_settings,
    every,
)
from secateur.config import AdversarialSettings, DenseSettings, TuneOptions, TuneRunSettings, TuneSettings

Dense = Annotated[DenseSettings, every(MODEL_GROUP)]
Training = Annotated[TuneOptions, every(TRAIN_GROUP)]
Run = Annotated[TuneRunSettings, every(RUN_GROUP)]
Attacks = Annotated[AdversarialSettings, every(ROBUST_GROUP)]
DENSE, TRAINING, TUNE_RUN, ATTACKS = DenseSettings(), TuneOptions(), TuneRunSettings(), AdversarialSettings()


def tune(
    result: ModelPath = RUN.out,
    /,
    *,
    dense: Dense = DENSE,
    data: Data = DATA,
    training: Training = TRAINING,
    attacks: Attacks = ATTACKS,
    robust: Robust = ROBUST,
    run: Run = TUNE_RUN,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Train a saved result on, test it, and save it with its report.

    Training writes checkpoints beside the output directory: killed at any moment, `secateur resume` goes on with it.
    It runs on what `accelerate launch` or `torchrun` start, too: CPUs, a GPU, several as DDP or FSDP.

    ```sh
    secateur tune secateur-run --epochs 20 --out tuned

    # with the dense network as the teacher
    secateur tune photos-half --model torchvision.models:resnet18 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos --epochs 10 --out photos-tuned

    # norms and biases alone, an average of the weights, and an end when nothing improves
    secateur tune secateur-run --train-only norms+biases --ema 0.999 --patience 5
    ```

    Args:
        result: directory of a saved result.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs import several
    from secateur.runs.tune import tune_run

    settings = all_settings(TuneSettings, config, dense, data, training, attacks, robust, run, result=result)
    return carried_out(
        lambda watch: tune_run(settings, overwrite=overwrite, watch=watch), settings.out, quiet=several.rank() != 0
    )


def resume(path: Path = RUN.out, /, *, debug: Switch = False) -> int:
    """Go on with a run of prune or tune that was killed or stopped, from its last checkpoint.

    On a CPU it ends with the same bits as if nothing had happened. A finished run is left as it is.

    ```sh
    secateur resume secateur-run
    ```

    Args:
        path: the output directory of the run; what is not finished lies beside it in PATH.unfinished.
        debug: show the whole traceback of an error.
    """
    from secateur.runs import several
    from secateur.runs.resume import place_of, resume_run

    path = place_of(path)
    finished = f"{path} is finished: there is nothing left to do."
    return carried_out(lambda watch: resume_run(path, watch=watch), path, quiet=several.rank() != 0, nothing=finished)
