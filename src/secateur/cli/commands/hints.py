"""``secateur hints``."""

from typing import Annotated

from cyclopts import Group

from secateur.cli import views
from secateur.cli.ending import DONE, INTERRUPTED, complain, interrupted, output
from secateur.cli.flags import DATA, MODEL, RUN_GROUP, Data, Model, Switch, all_settings, every
from secateur.cli.terminal import Terminal
from secateur.config import CheckSettings, HintPlaceSettings, HintSettings

Check = Annotated[CheckSettings, every(Group("What to check", sort_key=3))]
Place = Annotated[HintPlaceSettings, every(RUN_GROUP)]
CHECK, PLACE = CheckSettings(), HintPlaceSettings()


def hints(
    *,
    model: Model = MODEL,
    data: Data = DATA,
    check: Check = CHECK,
    place: Place = PLACE,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Check which importance criteria (hints) rank the units of a network rightly. Nothing is changed.

    A sample of units is silenced for real, one by one, and what each costs is compared with what every hint says of it:
    rank correlations, within each axis and over all units, beside the cost of removing a quarter and half of an axis as
    the hint would choose. The truth is measured on the validation split; the test split is never touched.

    ```sh
    # the embedded example, trained first
    secateur hints

    # three hints on a trained network and data of your own, with pictures
    secateur hints --model torchvision.models:resnet18 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos --hints l1 l2 bn_scale --out hints

    # what pruning the whole network by each hint ends in
    secateur hints --budget macs=0.5

    # more units of one part of the network, for a steadier answer
    secateur hints --only "layer3.*" --units-per-axis 32
    ```

    Args:
        overwrite: replace an earlier check in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.hints.run import check_run

    settings = all_settings(HintSettings, None, model, data, check, place)
    terminal = Terminal(output())
    try:
        found = check_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return interrupted(terminal, "Nothing was measured yet")
    views.checked(output(), found, settings.out)
    if found.interrupted:
        complain("stopped", f"by Ctrl-C: {found.interrupted}")
        return INTERRUPTED
    return DONE
