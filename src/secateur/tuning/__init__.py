"""Training after pruning: the loop, its checkpoints, and the parts that go with it."""

from secateur.tuning.callbacks import Callback as Callback
from secateur.tuning.callbacks import Run as Run
from secateur.tuning.distilling import Distillation as Distillation
from secateur.tuning.evaluating import evaluate as evaluate
from secateur.tuning.gradual import Gradual as Gradual
from secateur.tuning.gradual import prune_gradually as prune_gradually
from secateur.tuning.history import Epoch as Epoch
from secateur.tuning.history import History as History
from secateur.tuning.low_rank import LowRank as LowRank
from secateur.tuning.recipes import ADAPTING as ADAPTING
from secateur.tuning.recipes import FINE_TUNING as FINE_TUNING
from secateur.tuning.recipes import SCRATCH as SCRATCH
from secateur.tuning.recipes import TUNE as TUNE
from secateur.tuning.recipes import Recipe as Recipe
from secateur.tuning.regularising import GroupProximal as GroupProximal
from secateur.tuning.rewinding import Rewind as Rewind
from secateur.tuning.searching import Search as Search
from secateur.tuning.softmasks import SoftMasks as SoftMasks
from secateur.tuning.steps import PruningStep as PruningStep
from secateur.tuning.trainable import Trainable as Trainable
from secateur.tuning.trainable import trainable as trainable
from secateur.tuning.tune import tune as tune
from secateur.tuning.units import planner as planner
