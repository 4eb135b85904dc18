"""The paper that goes out: measured rows that print themselves (terminal, Markdown, JSON, HTML)."""

from attar.report.contract import SCHEMA, schema
from attar.report.joining import join
from attar.report.paper import Report
from attar.report.rows import Row
from attar.report.sentences import verdict

__all__ = ["SCHEMA", "Report", "Row", "join", "schema", "verdict"]
