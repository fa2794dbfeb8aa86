"""Models for other runtimes: ONNX and ``torch.export``, each file read back and compared before it appears."""

from secateur.exporting.exported import Exported as Exported
from secateur.exporting.latency import Latency as Latency
from secateur.exporting.writing import export as export
