"""The examples of docs/training.md print what it says."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "training.md"
EXAMPLES = re.findall(r"<!-- example -->\n```python\n(.*?)```\n+```text\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)), ids=["after pruning", "own loop", "trainer"])
def test_the_example_prints_what_the_guide_says(number: int) -> None:
    code, expected = EXAMPLES[number]
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "training.md", "exec"), {"__name__": "guide"})
    lines = [line for line in printed.getvalue().splitlines() if not line.startswith("{")]  # the trainer's own
    assert lines == expected.splitlines()
