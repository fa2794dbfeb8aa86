"""Backdoors: finding them, and removing the units that they live in."""

from secateur.disinfecting.clean import attack_success as attack_success
from secateur.disinfecting.disinfect import Disinfected as Disinfected
from secateur.disinfecting.disinfect import disinfect as disinfect
from secateur.disinfecting.inversion import Inversion as Inversion
from secateur.disinfecting.lipschitz import ChannelLipschitz as ChannelLipschitz
from secateur.disinfecting.mending import Mending as Mending
from secateur.disinfecting.perturbation import NeuronPerturbation as NeuronPerturbation
from secateur.disinfecting.perturbation import Perturbation as Perturbation
from secateur.disinfecting.ranking import Cutoffs as Cutoffs
from secateur.disinfecting.triggers import Trigger as Trigger
from secateur.disinfecting.verdict import Verdict as Verdict
from secateur.disinfecting.verdict import find_backdoor as find_backdoor
