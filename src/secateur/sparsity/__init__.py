"""Sparsity: single weights of a trained model become zero, in patterns; the shapes stay as they are.

A pattern says which weights may go together, a criterion what each is worth, an allocation how much each layer loses, a
compensation how those that stay make up for it; `sparsify` does it all, `prune_weight` one weight.
"""

from secateur.sparsity.check import check_criterion as check_criterion
from secateur.sparsity.criteria import Fisher as Fisher
from secateur.sparsity.criteria import Magnitude as Magnitude
from secateur.sparsity.criteria import Random as Random
from secateur.sparsity.criteria import Ria as Ria
from secateur.sparsity.criteria import Taylor as Taylor
from secateur.sparsity.criteria import Wanda as Wanda
from secateur.sparsity.criteria import WeightCriterion as WeightCriterion
from secateur.sparsity.criteria import WeightView as WeightView
from secateur.sparsity.criteria import names as names
from secateur.sparsity.patterns import NM as NM
from secateur.sparsity.patterns import Block as Block
from secateur.sparsity.patterns import Pattern as Pattern
from secateur.sparsity.patterns import Unstructured as Unstructured
from secateur.sparsity.pruning import How as How
from secateur.sparsity.pruning import Pruned as Pruned
from secateur.sparsity.pruning import prune_weight as prune_weight
from secateur.sparsity.result import Sparsified as Sparsified
from secateur.sparsity.result import with_masks as with_masks
from secateur.sparsity.sparsify import sparsify as sparsify
from secateur.sparsity.statistics import Statistics as Statistics
