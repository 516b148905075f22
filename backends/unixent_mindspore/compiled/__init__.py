"""unixent inside ``mindspore.jit``, graph mode, ``jvp`` and ``vmap``.

MindSpore compiles Python source. It would compile unixent's own call path too, which is not written in the subset that
it knows; so its parser is told to put the functions here in the place of the public ones, and of what the cell calls.
"""

from __future__ import annotations

import unixent
from unixent import dispatch
from unixent.arguments import CommonArguments
from unixent_mindspore.compat import compile_in_place_of
from unixent_mindspore.compiled import functions


def register() -> None:
    """Have the compiler take these functions for unixent's own."""
    for name in ("cross_entropy", "loss_terms", "value_and_grad", "linear_cross_entropy", "linear_value_and_grad"):
        compile_in_place_of(getattr(unixent, name), getattr(functions, name))
    compile_in_place_of(dispatch.logits_loss, functions.logits_loss)
    compile_in_place_of(CommonArguments, functions.common_arguments)
