"""Secateur makes trained neural networks smaller and faster by removing what contributes least, and proves that
nothing else changed.
"""

from secateur import hub as hub
from secateur import importance as importance
from secateur.adapting import Adapted as Adapted
from secateur.adapting import adapt as adapt
from secateur.artifacts import About as About
from secateur.artifacts import load as load
from secateur.artifacts import save as save
from secateur.comparing import Difference as Difference
from secateur.comparing import diff as diff
from secateur.depth import deepen as deepen
from secateur.depth import shorten as shorten
from secateur.errors import SecateurError as SecateurError
from secateur.exporting import Exported as Exported
from secateur.exporting import export as export
from secateur.graph import Graph as Graph
from secateur.growing import grow as grow
from secateur.growing import merge_copies as merge_copies
from secateur.hints import HintCheck as HintCheck
from secateur.hints import check_hints as check_hints
from secateur.hub import from_pretrained as from_pretrained
from secateur.hub import push_to_hub as push_to_hub
from secateur.importance import score as score
from secateur.measuring import Measurement as Measurement
from secateur.measuring import measure as measure
from secateur.planning import Budget as Budget
from secateur.planning import Plan as Plan
from secateur.planning import plan as plan
from secateur.planning import schedules as schedules
from secateur.pruning import Result as Result
from secateur.pruning import prune as prune
from secateur.reallocating import Reallocation as Reallocation
from secateur.reallocating import reallocate as reallocate
from secateur.replaying import Replay as Replay
from secateur.replaying import replay as replay
from secateur.reporting import Report as Report
from secateur.tracing import rule as rule
from secateur.tracing import trace as trace
from secateur.tuning import tune as tune
from secateur.undoing import undo as undo

__version__ = "0.1.0"
