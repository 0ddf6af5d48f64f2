"""A process that ends with its parent."""

import ctypes
import signal

PR_SET_PDEATHSIG = 1


def on_parents_death(signum: signal.Signals) -> None:
    """Asks Linux to send this process the signal when its parent ends for any reason."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)
