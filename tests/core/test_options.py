"""LossOptions and ParallelConfig: validated once, frozen, hashable, forgiving about how a number is spelt."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from unixent import LossOptions, OptionError, ParallelConfig


def test_hashable_and_equal_by_value():
    assert hash(LossOptions(label_smoothing=np.float32(0.5))) == hash(LossOptions(label_smoothing=0.5))
    assert LossOptions(axis=np.int64(1)) == LossOptions(axis=1)
    assert LossOptions() != LossOptions(z_loss=1e-4)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LossOptions().axis = 0  # type: ignore[misc]


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("f4"), "torch.float32", "Float32"])
def test_dtype_by_any_spelling(dtype):
    assert LossOptions(dtype=dtype).dtype == "float32"


def test_numbers_of_any_type():
    options = LossOptions(label_smoothing=0, z_loss=np.float64(0.5), softcap=30, scale=2, temperature=np.float32(0.5))
    floats = (options.label_smoothing, options.z_loss, options.softcap, options.scale, options.temperature)
    assert floats == (0.0, 0.5, 30.0, 2.0, 0.5)
    assert all(type(x) is float for x in floats)


@pytest.mark.parametrize("name", ["data_parallel", "model_parallel", "context_parallel"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"])
def test_degrees_are_positive_integers(name, value):
    with pytest.raises(OptionError, match=name):
        ParallelConfig(**{name: value})


def test_any_object_with_degrees_is_a_parallel_config():
    config = ParallelConfig.of(SimpleNamespace(data_parallel=2, model_parallel=3))
    assert config == ParallelConfig(2, 3)
    assert config.degree == 6
    assert ParallelConfig.of(config) is config
    with pytest.raises(OptionError, match="without model_parallel"):
        ParallelConfig.of(SimpleNamespace(data_parallel=2))


def test_groups_are_keywords():
    with pytest.raises(TypeError):
        ParallelConfig(1, 1, 1, "group")  # type: ignore[misc]
    assert ParallelConfig(model_group="tp").model_group == "tp"


class JaxLikeMesh:
    axis_names = ("dp", "cp", "tp")
    shape: ClassVar = {"dp": 2, "cp": 3, "tp": 4}


class TorchLikeMesh:
    mesh_dim_names = ("dp", "cp", "tp")
    shape = (2, 3, 4)

    def __init__(self, taken=()):
        self.taken = taken

    def __getitem__(self, axes):
        return TorchLikeMesh(axes)

    def _flatten(self):
        return TorchLikeMesh((self.taken,))

    def get_group(self, axis=None):
        return axis or self.taken[0]


@pytest.mark.parametrize("mesh", [JaxLikeMesh(), TorchLikeMesh()])
def test_a_mesh_gives_degrees_and_groups(mesh):
    config = ParallelConfig.from_mesh(mesh, data="dp", context="cp", model="tp")
    assert (config.data_parallel, config.context_parallel, config.model_parallel) == (2, 3, 4)
    assert (config.token_group, config.model_group, config.mesh) == (("dp", "cp"), "tp", mesh)
    config = ParallelConfig.from_mesh(mesh, model=("cp", "tp"))
    assert (config.degree, config.token_group, config.model_group) == (12, None, ("cp", "tp"))


@pytest.mark.parametrize(
    ("mesh", "axes", "message"),
    [
        (JaxLikeMesh(), {"data": "fsdp"}, "expected names among 'dp', 'cp', 'tp'; got 'fsdp'"),
        (JaxLikeMesh(), {"data": "dp", "model": "dp"}, "expected each axis in one place; got 'dp' 2 times"),
        (object(), {"data": "dp"}, "expected a torch DeviceMesh with mesh_dim_names or a jax Mesh; got builtins.obj"),
    ],
)
def test_a_mesh_without_such_axes_is_refused(mesh, axes, message):
    with pytest.raises(OptionError, match=message):
        ParallelConfig.from_mesh(mesh, **axes)
