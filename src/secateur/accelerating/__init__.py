"""Layers with zeros run by sparse kernels, where these are measured to be faster than dense ones on this machine."""

from secateur.accelerating.accelerate import accelerate as accelerate
from secateur.accelerating.result import Accelerated as Accelerated
from secateur.accelerating.result import LayerSpeed as LayerSpeed
