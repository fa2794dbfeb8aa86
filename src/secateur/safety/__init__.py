"""How much a network's answers can be changed by small changes of its inputs."""

from secateur.safety.adversarial import Adversarial as Adversarial
from secateur.safety.batches import attacked as attacked
from secateur.safety.threat import Threat as Threat
