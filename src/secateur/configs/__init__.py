"""Models that are built from a config: which of its values set which axes, so that it can say what is pruned."""

from secateur.configs.blueprint import Blueprint as Blueprint
from secateur.configs.layers import per_layer as per_layer
from secateur.configs.learning import learn as learn
from secateur.configs.wording import Wording as Wording
