"""Training after pruning: fine-tuning, distillation, checkpoints."""

from secateur.tuning.callbacks import Callback as Callback
from secateur.tuning.evaluating import evaluate as evaluate
from secateur.tuning.history import Epoch as Epoch
from secateur.tuning.history import History as History
from secateur.tuning.recipes import SCRATCH as SCRATCH
from secateur.tuning.recipes import TUNE as TUNE
from secateur.tuning.recipes import Recipe as Recipe
from secateur.tuning.tune import tune as tune
