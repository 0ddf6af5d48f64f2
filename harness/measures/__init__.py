"""What can be measured of a case. One more file in this folder is one more measure:

PLACE             its place among the measures, on the command line and in tables
NEEDS             what it takes its figures from (:class:`harness.spec.Needs`)
QUANTITIES        the quantities that a law may promise
asked(occasion)   whether it is worth taking where nobody chose (:class:`harness.spec.Occasion`)
take(lab, case)   its findings; it has the runner of the :class:`harness.run.lab.Lab` run what it needs

A measure that runs something of its own brings the task, a function of this file that the ranks call. The files are
imported at collection: torch, and the judges that use it, are imported by the functions.
"""

import pkgutil
from importlib import import_module
from typing import Any

_FOUND = {info.name: import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
MEASURES: dict[str, Any] = dict(sorted(_FOUND.items(), key=lambda item: int(item[1].PLACE)))
