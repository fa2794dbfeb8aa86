"""Reports: a mapping in the form of ``report.json``, a table in a terminal, and a self-contained page."""

from secateur.reporting.environment import environment
from secateur.reporting.page import render_page
from secateur.reporting.report import Report

__all__ = ["Report", "environment", "render_page"]
