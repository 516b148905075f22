"""unixent inside ``mindspore.jit``, graph mode, ``jvp`` and ``vmap``.

MindSpore compiles Python source. It compiles the public functions from theirs, down to `unixent.dispatch`, which is not
written in the subset that it knows; so its parser compiles the functions here in their place.
"""

from __future__ import annotations

from unixent import dispatch
from unixent.arguments import CommonArguments, LinearArguments
from unixent.entropy import entropy_of
from unixent.options import LossOptions
from unixent.protocol import PositionStats
from unixent.statistics import StatsRequest
from unixent.topk import TopK
from unixent_mindspore.compat import compile_in_place_of
from unixent_mindspore.compiled import functions, positions


def register() -> None:
    """Have the compiler take these functions for unixent's own."""
    for name in ("logits_loss", "linear_loss", "logits_value_and_grad", "linear_value_and_grad", "make_options"):
        compile_in_place_of(getattr(dispatch, name), getattr(functions, name))
    for name in ("logits_stats", "linear_stats"):
        compile_in_place_of(getattr(dispatch, name), getattr(positions, name))
    compile_in_place_of(StatsRequest, positions.plain_request)
    compile_in_place_of(PositionStats, positions.position_stats_fields)
    compile_in_place_of(entropy_of, functions.entropy_of)
    compile_in_place_of(TopK, functions.topk)
    compile_in_place_of(CommonArguments, functions.common_arguments)
    compile_in_place_of(LinearArguments, functions.linear_arguments)
    compile_in_place_of(LossOptions, functions.options)
