"""What can be measured of a case. A file more in this folder is a measure more:

PLACE             its place among the measures, on the command line and in tables
NEEDS             what it takes its figures from (:class:`harness.spec.Needs`)
asked(occasion)   whether it is worth taking where nobody chose (:class:`harness.spec.Occasion`)
take(lab, case)   its findings; it has the :class:`harness.lab.Lab` run what it needs

They are imported at collection: torch and the judges that use it are imported by ``take``.
"""

import pkgutil
from importlib import import_module
from typing import Any

_FOUND = {info.name: import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)}
MEASURES: dict[str, Any] = dict(sorted(_FOUND.items(), key=lambda item: int(item[1].PLACE)))
