"""Dimension inference: the model's own forward pass, run once on fake tensors, states equations between dims."""

from secateur.tracing.rules import Op as Op
from secateur.tracing.rules import rule as rule
from secateur.tracing.trace import trace as trace
