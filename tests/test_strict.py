"""Values of anyone's files, by their kind and bounds."""

from pathlib import Path
from typing import Any

import pytest

from secateur import strict
from secateur.errors import ArtifactError


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (True, (), "True is no whole number"),
        (1.0, (), "1.0 is no whole number"),
        ("1", (0, 8), "'1' is no whole number from 0 to 8"),
        (9, (0, 8), "9 is no whole number from 0 to 8"),
        (-1, (0,), "-1 is no whole number from 0"),
        (None, (), "None is no whole number"),
    ],
)
def test_whole_numbers(value: Any, bounds: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        strict.whole(value, *bounds)
    assert [strict.whole(0, 0, 8), strict.whole(8, 0, 8), strict.whole(-(2**70))] == [0, 8, -(2**70)]


@pytest.mark.parametrize("value", [True, "0.5", 1.5, -0.1, float("nan"), None])
def test_numbers(value: Any) -> None:
    with pytest.raises(ValueError, match=r"is no number from 0 to 1"):
        strict.number(value, 0, 1)
    assert strict.number(1, 0, 1) == 1.0


def test_texts_and_lists() -> None:
    assert strict.text("ab", 2) == "ab"
    assert strict.items([1, 2], 2) == [1, 2]
    with pytest.raises(ValueError, match="3 is no text"):
        strict.text(3)
    with pytest.raises(ValueError, match="'abc' has more than 2 characters"):
        strict.text("abc", 2)
    with pytest.raises(ValueError, match="'ab' is no list"):
        strict.items("ab")
    with pytest.raises(ValueError, match="a list of 3 items, where at most 2 can be"):
        strict.items([1, 2, 3], 2)


def test_a_large_or_deep_value_is_not_shown_whole() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("a" * 10_000_000, deep):
        with pytest.raises(ValueError, match="is no whole number") as caught:
            strict.whole(value)
        assert len(str(caught.value)) < 200
    while deep:  # else taking it apart goes as deep
        deep = deep.pop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "a": 2}', "x.json can't be read as a thing: a key is repeated"),
        ('{"a": {"b": 1, "b": 1}}', "a key is repeated"),
        ('{"a": Infinity}', "Infinity is no number of JSON"),
        ('{"a": 1e999}', "1e999 is no number of JSON"),
        ("[]", "x.json is JSON, but no thing"),
        ("", "can't be read as a thing"),
    ],
)
def test_json_without_tricks(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ArtifactError, match=message):
        strict.read_json(tmp_path / "x.json", "thing")


def test_json_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert strict.read_json(tmp_path / "x.json") == {"a": 1}
    monkeypatch.setattr(strict, "MAX_JSON", 7)
    with pytest.raises(ArtifactError, match="larger than 7 bytes"):
        strict.read_json(tmp_path / "x.json")
