"""Importance (hint functions): how much each unit contributes.

A criterion is any callable from a `Member`, (units, rest), to a score (units,); scores of an axis's members are added.
What looks at a whole axis, or at data, has a method ``of_axis`` on an `AxisView` instead, and says what it ``needs``.
A score is a float, higher = kept longer. `check_importance` tests one, your own included.
"""

from secateur.importance.activations import ActivationMean as ActivationMean
from secateur.importance.activations import ActivationVariance as ActivationVariance
from secateur.importance.activations import Apoz as Apoz
from secateur.importance.activations import Softmax as Softmax
from secateur.importance.activations import Wanda as Wanda
from secateur.importance.check import check_importance as check_importance
from secateur.importance.combining import Combined as Combined
from secateur.importance.combining import combine as combine
from secateur.importance.criteria import BatchNormScale as BatchNormScale
from secateur.importance.criteria import Fpgm as Fpgm
from secateur.importance.criteria import Lamp as Lamp
from secateur.importance.criteria import Magnitude as Magnitude
from secateur.importance.criteria import Random as Random
from secateur.importance.gradients import Fisher as Fisher
from secateur.importance.gradients import Taylor as Taylor
from secateur.importance.gradients import TaylorGate as TaylorGate
from secateur.importance.members import Member as Member
from secateur.importance.protocols import Criterion as Criterion
from secateur.importance.protocols import on_axis as on_axis
from secateur.importance.reconstruction import Reconstruction as Reconstruction
from secateur.importance.scoring import Scores as Scores
from secateur.importance.scoring import criterion as criterion
from secateur.importance.scoring import names as names
from secateur.importance.scoring import score as score
from secateur.importance.scoring import score_all as score_all
from secateur.importance.views import AxisView as AxisView
from secateur.importance.views import Use as Use
