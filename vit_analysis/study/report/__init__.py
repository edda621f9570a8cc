"""The report: the study on one page, a single HTML file that loads nothing and runs no script but its own.

`sections` says what every figure shows, `cast` who the models are, `maps` what an interactive heat map holds, `images` how
pictures are embedded; `page` makes plain data of all that, and `rendering` fills the template `page.html` with it. Every text
is escaped by the template, since anyone can choose names of models and files; style and scripts are allowed by their hashes,
and nothing else is.
"""

from vit_analysis.study.report.rendering import write
from vit_analysis.study.report.sections import EMBEDDED, Panel, Place, places

__all__ = ["EMBEDDED", "Panel", "Place", "places", "write"]
