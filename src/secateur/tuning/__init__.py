"""Fine-tuning: the loop and the parts that it is put together from."""

from secateur.tuning.callbacks import Callback as Callback
from secateur.tuning.callbacks import Run as Run
from secateur.tuning.distilling import Distillation as Distillation
from secateur.tuning.low_rank import LowRank as LowRank
from secateur.tuning.regularising import GroupProximal as GroupProximal
from secateur.tuning.rewinding import Rewind as Rewind
from secateur.tuning.softmasks import SoftMasks as SoftMasks
from secateur.tuning.trainable import Trainable as Trainable
from secateur.tuning.trainable import trainable as trainable
from secateur.tuning.units import planner as planner
