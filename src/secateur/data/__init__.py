"""Where batches come from: embedded digits, folders of images, users' own loaders."""

from secateur.data.loading import Data, load_data

__all__ = ["Data", "load_data"]
