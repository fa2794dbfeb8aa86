"""Equations that each family of operations states, one file for each family. `registry` says how a rule is written."""

from secateur.tracing.rules import contraction as contraction
from secateur.tracing.rules import creation as creation
from secateur.tracing.rules import indexing as indexing
from secateur.tracing.rules import matrices as matrices
from secateur.tracing.rules import movement as movement
from secateur.tracing.rules import normalisation as normalisation
from secateur.tracing.rules import positions as positions
from secateur.tracing.rules import recurrent as recurrent
from secateur.tracing.rules import routing as routing
from secateur.tracing.rules import spectra as spectra
from secateur.tracing.rules import windows as windows
from secateur.tracing.rules.pointwise import pointwise as pointwise
from secateur.tracing.rules.registry import RULES as RULES
from secateur.tracing.rules.registry import Dims as Dims
from secateur.tracing.rules.registry import Op as Op
from secateur.tracing.rules.registry import Rule as Rule
from secateur.tracing.rules.registry import freeze_everything as freeze_everything
from secateur.tracing.rules.registry import rule as rule
