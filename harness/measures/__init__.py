"""The measures of a case. Each file in this folder is one measure and defines:

PLACE             its position among the measures, on the command line and in tables
NEEDS             the source of its figures (:class:`harness.spec.Needs`)
QUANTITIES        the quantities that a law may promise
asked(occasion)   whether to take it by default (:class:`harness.spec.Occasion`)
take(lab, case)   its measurements; it uses the runner of the :class:`harness.run.lab.Lab`

A measure with a run of its own defines the task, a function of this file that the ranks call. The files are
imported at collection: the functions import torch and the judges that use it.
"""

import pkgutil
from importlib import import_module
from typing import Any

_FOUND = {info.name: import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
MEASURES: dict[str, Any] = dict(sorted(_FOUND.items(), key=lambda item: int(item[1].PLACE)))
