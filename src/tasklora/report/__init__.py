"""Showing what was measured: tables on the terminal and in the docs, and one self-contained HTML page."""

from tasklora.report.tables import (
    comparison_tables,
    method_records,
    method_table,
    methods_markdown,
    parameter_table,
    prediction_table,
    score_table,
)

__all__ = [
    "comparison_tables",
    "method_records",
    "method_table",
    "methods_markdown",
    "parameter_table",
    "prediction_table",
    "score_table",
]
