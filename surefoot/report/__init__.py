"""Records in, tables out; nothing here runs a model."""

from surefoot.report.page import write_page
from surefoot.report.tables import attack_label, markdown_table, record_table

__all__ = ["attack_label", "markdown_table", "record_table", "write_page"]
