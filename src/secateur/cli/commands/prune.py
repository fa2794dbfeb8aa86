"""``secateur prune``."""

from typing import Annotated

from cyclopts import Group

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    DATA,
    MODEL,
    PLAN,
    ROBUST,
    ROBUST_GROUP,
    RUN,
    RUN_GROUP,
    TRAIN_GROUP,
    Data,
    File,
    Model,
    Plan,
    Robust,
    Switch,
    all_settings,
    every,
)
from secateur.config import FloorSettings, GradualSettings, ProtectSettings, PruneSettings, RunSettings, TrainSettings

Protected = Annotated[ProtectSettings, every(Group("What to protect", sort_key=3.2))]
BitByBit = Annotated[GradualSettings, every(Group("Bit by bit", sort_key=3.5))]
Training = Annotated[TrainSettings, every(TRAIN_GROUP)]
Run = Annotated[RunSettings, every(RUN_GROUP)]
Attacks = Annotated[FloorSettings, every(ROBUST_GROUP)]
PROTECTED, BIT_BY_BIT, TRAINING, ATTACKS = ProtectSettings(), GradualSettings(), TrainSettings(), FloorSettings()


def prune(
    *,
    model: Model = MODEL,
    data: Data = DATA,
    plan: Plan = PLAN,
    protected: Protected = PROTECTED,
    bit_by_bit: BitByBit = BIT_BY_BIT,
    training: Training = TRAINING,
    attacks: Attacks = ATTACKS,
    robust: Robust = ROBUST,
    run: Run = RUN,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Train, prune, prove, tune, test, save and report, in one go.

    Without arguments it does all of this with the embedded example, in less than a minute. The result is a directory
    with the smaller network (model.safetensors, plan.json), the figures (report.json, report.html) and all settings
    (config.yaml).

    ```sh
    # the embedded example, down to a tenth of its parameters
    secateur prune --budget params=0.1 --out tenth

    # a network and data of your own
    secateur prune --model torchvision.models:resnet18 \\
        --model-args.num-classes 2 --weights trained.pt \\
        --data imagefolder:photos --budget macs=0.5

    # bit by bit, with training in between
    secateur prune --budget params=0.1 --schedule cubic --steps 8 --out gradual

    # and whether the smaller network is easier to attack
    secateur prune --budget params=0.1 --robust --eps 0.1 --samples 200

    # of an adversarially trained network, to keep what withstands attacks
    secateur prune --model package.module:Net --weights robust.pt --data npz:photos.npz --budget macs=0.5 \\
        --max-robust-drop 2 --adversarial pgd --eps 8/255

    # with a class that must not suffer
    secateur prune --data imagefolder:photos --budget macs=0.5 \\
        --protect class:1 --out guarded

    # an earlier run again, with one setting changed
    secateur prune --config secateur-run/config.yaml --seed 1 --out second
    ```

    Args:
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.prune import prune_run

    settings = all_settings(
        PruneSettings, config, model, data, plan, protected, bit_by_bit, training, attacks, robust, run
    )
    return carried_out(lambda watch: prune_run(settings, overwrite=overwrite, watch=watch), settings.out)
