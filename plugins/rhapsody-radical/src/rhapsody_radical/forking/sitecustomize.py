"""Makes fork multiprocessing's start method again, as it was before Python 3.14, in RADICAL-Pilot's processes.

radical.pilot 1.103 starts `mp.Process(target=self.method)` in its proxy and in its agent's scheduler, where `self` has
locks; Python 3.14's own start method, forkserver, cannot pickle them. Python imports this module at its start where
this folder is on PYTHONPATH.
"""

import multiprocessing
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

multiprocessing.set_start_method("fork")

# The sitecustomize that this one hides has its turn too.
_others = [entry for entry in sys.path if entry != str(Path(__file__).parent)]
if (_spec := PathFinder.find_spec("sitecustomize", _others)) is not None and _spec.loader is not None:
    _spec.loader.exec_module(module_from_spec(_spec))
