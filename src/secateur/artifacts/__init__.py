"""Saved results: safetensors and JSON, rebuilt from the original class or from a stored graph of white-listed
operations.
"""

from secateur.artifacts.about import About as About
from secateur.artifacts.forms import Saved as Saved
from secateur.artifacts.forms import open_saved as open_saved
from secateur.artifacts.store import add_tensors as add_tensors
from secateur.artifacts.store import load as load
from secateur.artifacts.store import loading as loading
from secateur.artifacts.store import read_inputs as read_inputs
from secateur.artifacts.store import read_record as read_record
from secateur.artifacts.store import read_tensors as read_tensors
from secateur.artifacts.store import save as save
