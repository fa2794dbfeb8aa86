"""From scores to a plan: which units of which axes stay."""

from secateur.planning import schedules as schedules
from secateur.planning.budget import Budget as Budget
from secateur.planning.plan import Plan as Plan
from secateur.planning.plan import PlannedAxis as PlannedAxis
from secateur.planning.planning import make_plan as make_plan
from secateur.planning.planning import plan as plan
