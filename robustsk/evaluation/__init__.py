"""The verdict on a model: reports of many attacks, and signs that a verdict misleads."""

from .._shared import export_all as _export_all
from ._red_flags import RedFlag as RedFlag
from ._red_flags import red_flags as red_flags
from ._report import robustness_report as robustness_report
from ._result import ReportRow as ReportRow
from ._result import RobustnessReport as RobustnessReport

_export_all(globals())
