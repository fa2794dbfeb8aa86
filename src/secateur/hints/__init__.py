"""Are the hints any good? Units are removed for real, and every hint's ranking is compared with what that cost.

`check_hints` does it; `HintCheck` is what it found, which prints as tables and can be drawn.
"""

from secateur.hints.checking import check_hints as check_hints
from secateur.hints.result import HintCheck as HintCheck
