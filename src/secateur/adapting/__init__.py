"""A new task: another head, what to train, and a network without what the new data does not need."""

from secateur.adapting.adapt import Adapted as Adapted
from secateur.adapting.adapt import adapt as adapt
