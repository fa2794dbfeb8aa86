"""What tests of training share."""

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture
def accelerate_anew() -> Iterator[None]:
    """Accelerate as in a fresh process: a Trainer of another test leaves its precision to the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
