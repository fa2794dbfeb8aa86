"""A checkpoint pruned from disk to disk, block by block: with about one block of the model in memory at a time."""

from secateur.sparsity.streaming.stream import Streamed as Streamed
from secateur.sparsity.streaming.stream import sparsify_checkpoint as sparsify_checkpoint
