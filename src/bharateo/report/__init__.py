"""The report: one self-contained page that says what a run learnt, from which pixels, and how well.

``html`` assembles the page of what the others tell: ``scores`` and ``probes`` what was measured,
``ground`` the regions, ``panels`` the chips, with ``charts`` and ``render`` to draw. Nothing else
imports matplotlib.
"""

from bharateo.report.html import write_report

__all__ = ["write_report"]
