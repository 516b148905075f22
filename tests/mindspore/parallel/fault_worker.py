"""Run under msrun by test_msrun.py: the second of two processes goes in the middle of the work."""

from __future__ import annotations

import os
import signal
import sys

import mindspore as ms
import numpy as np
from mindspore.communication import init
from mindspore.mint import distributed

import unixent
from unixent_mindspore import grid

ms.set_device("CPU")
init()
CONFIG = grid(unixent.ParallelConfig(model_parallel=2))
LOGITS, INDEX = ms.Tensor(np.ones((3, 4))), ms.Tensor([0, 5, 7], ms.int32)

unixent.cross_entropy(LOGITS, INDEX, parallel=CONFIG)
print("both processes split a loss", flush=True)
if distributed.get_rank() == 1:
    if sys.argv[1] == "raises":
        raise RuntimeError("something else went wrong here")
    os.kill(os.getpid(), signal.SIGKILL)
unixent.cross_entropy(LOGITS, INDEX, parallel=CONFIG)
print("came back", flush=True)
