"""The README tells the truth: its example prints what it says."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_example_prints_what_the_readme_says() -> None:
    found = re.search(r"<!-- example -->\n```python\n(.*?)```\n+```text\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    code, expected = found.groups()
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert printed.getvalue() == expected
