"""The report: one self-contained page that says what a run learnt, from which pixels, and how well.

``render`` turns layers into pictures, ``panels`` draws charts and plates, ``findings`` puts the
evaluation into words and tables, ``html`` assembles the page. Nothing else imports matplotlib.
"""

from bharateo.report.html import write_report

__all__ = ["write_report"]
