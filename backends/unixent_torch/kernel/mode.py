"""How torch runs a call: asked once, since it is a property of the call and not of an array."""

from __future__ import annotations

from enum import Enum

import torch

from unixent_torch import compat


class Mode(Enum):
    """Which form of the loss serves a call.

    EAGER: the kernel, its gradient formed by the everyday backward pass; values may be read where they are the host's.
    TRANSFORMED: the kernel in functions with a rule for every transform (torch.func, forward mode).
    TRACED: operations are recorded rather than run, by the compiler or by a mode such as that of fake tensors.
    COMPOSED: plain operations, for transforms that functions lack a rule for, and for transforms that are traced.
    RECORDED: plain operations, for torch.jit.trace and the exporters that build on it.
    """

    EAGER = "eager"
    TRANSFORMED = "transformed"
    TRACED = "traced"
    COMPOSED = "composed"
    RECORDED = "recorded"


# Those served by plain operations alone, in either form of the loss.
PLAIN_OPERATIONS = (Mode.COMPOSED, Mode.RECORDED)


def is_traced() -> bool:
    """Whether operations are recorded rather than run."""
    return torch.compiler.is_compiling() or compat.num_dispatch_modes() > 0 or compat.is_jit_tracing()


def is_recorded() -> bool:
    """Whether torch.jit.trace is recording."""
    return not torch.compiler.is_compiling() and compat.is_jit_tracing()


def current_mode() -> Mode:
    """The mode of the call that is being made."""
    traced, transformed = is_traced(), compat.transforms_active()
    if traced and is_recorded():
        return Mode.RECORDED
    if transformed and (traced or compat.functions_lack_a_rule()):
        return Mode.COMPOSED
    if transformed or compat.in_forward_mode():
        return Mode.COMPOSED if traced else Mode.TRANSFORMED
    return Mode.TRACED if traced else Mode.EAGER
