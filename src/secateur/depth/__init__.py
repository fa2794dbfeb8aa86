"""Depth: whole blocks go, or come in as the identity."""

from secateur.depth.change import DepthChange as DepthChange
from secateur.depth.change import Insertion as Insertion
from secateur.depth.compensating import compensate_blocks_ as compensate_blocks_
from secateur.depth.deepen import deepen as deepen
from secateur.depth.importance import influence as influence
from secateur.depth.importance import loss_increase as loss_increase
from secateur.depth.result import DepthResult as DepthResult
from secateur.depth.shorten import shorten as shorten
