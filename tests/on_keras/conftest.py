"""Keras runs on torch in these tests; other backends in processes of their own."""

import os

import pytest

os.environ["KERAS_BACKEND"] = "torch"
pytest.importorskip("keras", reason="keras is not installed")
