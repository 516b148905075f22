"""TensorFlow's tensors on the CPU, called eagerly, differentiated by `tf.GradientTape`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from unixent_conformance.harness import Derivative, Harness, Mode
from unixent_conformance.model import Array


class TensorFlowHarness(Harness):
    name = "tensorflow"

    def version(self) -> str:
        return f"tensorflow {tf.__version__}"

    def from_numpy(self, array: Array) -> Any:
        return tf.constant(array)

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def owns(self, value: Any) -> bool:
        return isinstance(value, tf.Tensor)

    def gradient(self, of: Derivative, mode: Mode) -> tuple[Any, tuple[Any, ...]]:
        with tf.GradientTape() as tape:
            tape.watch(of.moving)
            value = of.of_moving(*of.moving)
        seed = None if of.grad_output is None else tf.cast(of.grad_output, value.dtype)
        zero = tf.UnconnectedGradients.ZERO
        return value, tuple(tape.gradient(value, of.moving, output_gradients=seed, unconnected_gradients=zero))


harness = TensorFlowHarness()
