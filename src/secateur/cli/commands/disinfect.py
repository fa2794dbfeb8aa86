"""``secateur disinfect``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    DATA,
    MODEL,
    MODEL_GROUP,
    RUN_GROUP,
    Data,
    File,
    Model,
    Switch,
    all_settings,
    every,
)
from secateur.config import BackdoorSettings, DisinfectRunSettings, DisinfectSettings, SavedSettings

Saved = Annotated[SavedSettings, every(MODEL_GROUP)]
Backdoor = Annotated[BackdoorSettings, every(Group("What to remove", sort_key=3))]
Run = Annotated[DisinfectRunSettings, every(RUN_GROUP)]
SAVED, BACKDOOR, RUN = SavedSettings(), BackdoorSettings(), DisinfectRunSettings()


def disinfect(
    result: Annotated[Path | None, Parameter(group=MODEL_GROUP)] = None,
    /,
    *,
    model: Model = MODEL,
    saved: Saved = SAVED,
    data: Data = DATA,
    what: Backdoor = BACKDOOR,
    run: Run = RUN,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Look for a backdoor in a trained network, and remove the units that it lives in: a smaller network, proved.

    A backdoor makes a network answer with the attacker's class wherever a trigger stands in the input, and is not seen
    otherwise. A few hundred clean samples are enough here: a trigger is searched for, suspicious units go as long as
    held-out accuracy allows, what is left is proved, and tuned so that the trigger that was found does nothing. Where
    no trigger is found, nothing is removed, unless a method is named. The result is a directory as `secateur prune`
    writes it.

    ```sh
    # is there one? If so, remove it
    secateur disinfect --model package.module:Net --weights downloaded.pt --data imagefolder:photos

    # without a search that has to find something: the data-free screen
    secateur disinfect --model package.module:Net --weights downloaded.pt --data imagefolder:photos \\
        --method clp --out screened

    # the trigger is known: report what it still does
    secateur disinfect half --trust --data imagefolder:photos --trigger attack:sticker --target 3
    ```

    Args:
        result: directory of a saved result to disinfect, in place of the network that --model names.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.disinfect import disinfect_run

    settings = all_settings(DisinfectSettings, config, model, saved, data, what, run, result=result)
    return carried_out(lambda watch: disinfect_run(settings, overwrite=overwrite, watch=watch), settings.out)
