"""Secateur makes trained neural networks smaller and faster by removing what contributes least, and proves that
nothing else changed.
"""

import lazy_loader

# Names are in __init__.pyi, and imported when they are used: the parts that Keras needs under TensorFlow or JAX run
# without torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
