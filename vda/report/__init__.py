"""The outcome of a run: a table for the terminal, and one HTML page that needs no network and no other
file."""

from vda.pictures import colour_label, flow_image, overlay
from vda.report.page import write_report
from vda.report.strips import Group, Row, Strip
from vda.report.tables import score_table

__all__ = ["Group", "Row", "Strip", "colour_label", "flow_image", "overlay", "score_table", "write_report"]
