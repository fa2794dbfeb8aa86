"""Sparsity: single weights of a trained model become zero, in patterns; the shapes stay as they are."""

from secateur.sparsity.patterns import NM as NM
from secateur.sparsity.patterns import Block as Block
from secateur.sparsity.patterns import Pattern as Pattern
from secateur.sparsity.patterns import Unstructured as Unstructured
