"""MindSpore's tensors in PyNative mode, differentiated by `mindspore.ops.GradOperation`."""

from __future__ import annotations

from unixent_conformance.harness import EAGER
from unixent_conformance.harnesses.mindspore import MindSporeHarness


class EagerMindSpore(MindSporeHarness):
    modes = (EAGER,)


harness = EagerMindSpore()
