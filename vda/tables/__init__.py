"""The paper's tables, with the paper's numbers beside ours.

grid = lay_out(TABLES["1"], {"Ours": [scores_of_seed_0, scores_of_seed_1]})
print(markdown(grid))
"""

from vda.tables.layout import RULES, Grid, Result, headline, lay_out, lay_out_proportions, lay_out_rules
from vda.tables.paper import TABLES
from vda.tables.render import FORMATS, latex, markdown, to_csv
from vda.tables.table import Row, Table

__all__ = [
    "FORMATS",
    "RULES",
    "TABLES",
    "Grid",
    "Result",
    "Row",
    "Table",
    "headline",
    "latex",
    "lay_out",
    "lay_out_proportions",
    "lay_out_rules",
    "markdown",
    "to_csv",
]
