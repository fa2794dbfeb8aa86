"""What trains along with a model survives its pruning: the state of optimizers, and copies such as moving averages."""

from secateur.carrying.ancestry import Ancestry as Ancestry
from secateur.carrying.remap import remap_ as remap_
