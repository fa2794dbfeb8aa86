"""Latency: operations timed over a few widths predict a model's time, and the result is measured."""

from secateur.timing.fitting import latency_table as latency_table
from secateur.timing.table import LatencyTable as LatencyTable
