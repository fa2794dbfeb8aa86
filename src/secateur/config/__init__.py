"""Settings of a run: one definition for flags, YAML files and Python.

Every field is a flag (``--min-units 4``), a key in a YAML file (``min_units: 4``) and an argument
(``PruneSettings(min_units=4)``). The command line and the file only fill in these classes.

`common`, `removal` and `training` hold groups of settings that commands share, the other files those of a command.
"""

from secateur.config.adapt import AdaptOptions as AdaptOptions
from secateur.config.adapt import AdaptRunSettings as AdaptRunSettings
from secateur.config.adapt import AdaptSettings as AdaptSettings
from secateur.config.adapt import TaskSettings as TaskSettings
from secateur.config.adversarial import AdversarialSettings as AdversarialSettings
from secateur.config.adversarial import FloorSettings as FloorSettings
from secateur.config.adversarial import attack_of as attack_of
from secateur.config.amounts import parse_budget as parse_budget
from secateur.config.amounts import parse_limits as parse_limits
from secateur.config.base import CommandSettings as CommandSettings
from secateur.config.base import Settings as Settings
from secateur.config.common import EXAMPLE_MODEL as EXAMPLE_MODEL
from secateur.config.common import DataSettings as DataSettings
from secateur.config.common import ModelSettings as ModelSettings
from secateur.config.common import PlaceSettings as PlaceSettings
from secateur.config.common import ResultSettings as ResultSettings
from secateur.config.common import RunSettings as RunSettings
from secateur.config.depth import BlockSettings as BlockSettings
from secateur.config.depth import DeepenSettings as DeepenSettings
from secateur.config.depth import DeeperSettings as DeeperSettings
from secateur.config.depth import InsertSettings as InsertSettings
from secateur.config.depth import ShortenSettings as ShortenSettings
from secateur.config.depth import ShorterSettings as ShorterSettings
from secateur.config.disinfect import BackdoorSettings as BackdoorSettings
from secateur.config.disinfect import DisinfectRunSettings as DisinfectRunSettings
from secateur.config.disinfect import DisinfectSettings as DisinfectSettings
from secateur.config.hints import CheckSettings as CheckSettings
from secateur.config.hints import HintPlaceSettings as HintPlaceSettings
from secateur.config.hints import HintSettings as HintSettings
from secateur.config.protect import ProtectSettings as ProtectSettings
from secateur.config.prune import PruneSettings as PruneSettings
from secateur.config.reallocate import MoveSettings as MoveSettings
from secateur.config.reallocate import ReallocateRunSettings as ReallocateRunSettings
from secateur.config.reallocate import ReallocateSettings as ReallocateSettings
from secateur.config.reallocate import SavedSettings as SavedSettings
from secateur.config.removal import GradualSettings as GradualSettings
from secateur.config.removal import PlanSettings as PlanSettings
from secateur.config.replay import ReplayDataSettings as ReplayDataSettings
from secateur.config.replay import ReplayOptions as ReplayOptions
from secateur.config.replay import ReplayRunSettings as ReplayRunSettings
from secateur.config.replay import ReplaySettings as ReplaySettings
from secateur.config.replay import RetrainedSettings as RetrainedSettings
from secateur.config.robust import RobustSettings as RobustSettings
from secateur.config.sparsify import CheckpointSettings as CheckpointSettings
from secateur.config.sparsify import SparsePlaceSettings as SparsePlaceSettings
from secateur.config.sparsify import SparsifySettings as SparsifySettings
from secateur.config.sparsify import WeightSettings as WeightSettings
from secateur.config.sparsify import parse_pattern as parse_pattern
from secateur.config.trained import TrainedSettings as TrainedSettings
from secateur.config.training import TrainSettings as TrainSettings
from secateur.config.training import TuneOptions as TuneOptions
from secateur.config.tune import DenseSettings as DenseSettings
from secateur.config.tune import TrainingSettings as TrainingSettings
from secateur.config.tune import TuneRunSettings as TuneRunSettings
from secateur.config.tune import TuneSettings as TuneSettings
