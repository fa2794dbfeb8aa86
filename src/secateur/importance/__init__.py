"""Importance (hint functions): how much each unit contributes.

A criterion is any callable from a `Member`, (units, rest), to a score (units,); scores of an axis's members are added.
A score is a float, higher = kept longer. `check_importance` tests one, your own included.
"""

from secateur.importance.check import check_importance as check_importance
from secateur.importance.criteria import BatchNormScale as BatchNormScale
from secateur.importance.criteria import Magnitude as Magnitude
from secateur.importance.criteria import Random as Random
from secateur.importance.members import Member as Member
from secateur.importance.scoring import Criterion as Criterion
from secateur.importance.scoring import names as names
from secateur.importance.scoring import score as score
