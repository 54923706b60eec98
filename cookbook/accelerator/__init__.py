"""Everything that is claimed of accelerators, measured and recorded by one command on a GPU machine."""

from cookbook.accelerator.parts import PARTS
from cookbook.accelerator.runner import Part, Report, choose_parts, make_setting, open_ledger, record_parts
from cookbook.accelerator.setting import FULL, REHEARSAL, SPEEDRUN, Scale, Setting, Speedrun, Workload
from cookbook.accelerator.speedrun import choose

__all__ = [
    "FULL",
    "PARTS",
    "REHEARSAL",
    "SPEEDRUN",
    "Part",
    "Report",
    "Scale",
    "Setting",
    "Speedrun",
    "Workload",
    "choose",
    "choose_parts",
    "make_setting",
    "open_ledger",
    "record_parts",
]
