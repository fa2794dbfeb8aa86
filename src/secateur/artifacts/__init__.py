"""Saved results: safetensors and JSON, rebuilt from the original class or from a stored graph of white-listed
operations.
"""

from secateur.artifacts.store import load as load
from secateur.artifacts.store import read_record as read_record
from secateur.artifacts.store import save as save
