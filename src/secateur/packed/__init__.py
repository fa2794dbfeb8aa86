"""Tensors that hold zeros, in fewer bytes and without loss: where the others lie, and the others themselves."""

from secateur.packed.files import read_tensors as read_tensors
from secateur.packed.files import write_tensors as write_tensors
from secateur.packed.packing import HEADER as HEADER
from secateur.packed.packing import pack as pack
from secateur.packed.packing import size_bytes as size_bytes
from secateur.packed.packing import unpack as unpack
