"""What a call is configured with: validated once on construction, frozen, hashable (a static argument under jit).

An option is declared twice: here in `LossOptions`, and with its type in `unixent.keywords`, for type checkers.
`unixent.functions` has its meaning; nothing else in the core names it.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from unixent.errors import OptionError, option_error
from unixent.logit_transform import LogitTransform

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
DEFAULT_IGNORE_INDEX = -100

Reduction = Literal["none", "mean", "sum"]
OnEmpty = Literal["zero", "nan", "raise"]
Validate = Literal["auto", "full", "off"]
_REDUCTIONS, _ON_EMPTY, _VALIDATE = ("none", "mean", "sum"), ("zero", "nan", "raise"), ("auto", "full", "off")


_LEAST_POSITIVE = 5e-324  # the smallest double above 0


def _is_foreign(value: Any) -> bool:
    """Whether it is a framework's array or tracer."""
    return hasattr(value, "dtype") and not isinstance(value, (np.ndarray, np.generic))


def _number_error(name: str, expected: str, value: Any) -> OptionError:
    static = " (an option is a number of Python: static under a trace, and without a gradient)"
    return option_error(name, expected, value, static if _is_foreign(value) else "")


def _integer(name: str, value: Any, expected: str = "an int") -> int:
    try:
        # A framework's array would be read to be an index, which a tracer cannot do.
        if not isinstance(value, (bool, np.bool_)) and not _is_foreign(value):
            return operator.index(value)
    except (TypeError, ValueError):  # the latter of MindSpore's tensors
        pass
    raise _number_error(name, expected, value)


def _count(name: str, value: Any, expected: str) -> int:
    count = _integer(name, value, expected)
    if count < 1:
        raise option_error(name, expected, value)
    return count


def _number(name: str, value: Any, expected: str, low: float, high: float) -> float:
    """A finite float in ``[low, high]``. Booleans, durations and strings are no numbers; nor is a framework's array,
    which may ask for a derivative that an option does not have."""
    number = math.nan
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_, np.timedelta64)):
        with contextlib.suppress(OverflowError):  # of an int beyond every float
            number = float(value)
    if low <= number <= high and math.isfinite(number):
        return number
    raise _number_error(name, expected, value)


def _choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise option_error(name, f"one of {', '.join(map(repr, choices))}", value)


def _dtype_name(value: Any) -> str:
    """The canonical name of a dtype given as a name or as any framework's own dtype object."""
    module = name = ""
    with contextlib.suppress(Exception):  # whatever a str() may do, of things that are no dtype
        module, _, name = str(value).rpartition(".")  # "float32", torch.float32, mindspore.float32 (printed Float32)
    if not isinstance(value, str) and name not in FLOAT_DTYPES:
        with contextlib.suppress(Exception):
            module, name = "", np.dtype(value).name
    name = name.lower()
    if name in FLOAT_DTYPES and module in ("", "torch", "numpy", "jax.numpy", "mindspore"):
        return name
    raise option_error("dtype", f"None or one of {', '.join(map(repr, FLOAT_DTYPES))}", value)


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOptions:
    """The static options of a loss; see `unixent.cross_entropy` for the meaning of each.

    Arrays (weight, mask, normalizer) are not options: they may be traced. A `LossOptions` is hashable, so that it can
    be a static argument of ``jax.jit`` or a key of a cache.

    Raises:
        OptionError: a value is outside its range; the message names the option.

    Example:
        >>> from unixent import LossOptions
        >>> options = LossOptions(label_smoothing=0.1)
        >>> options.reduction, options.label_smoothing
        ('mean', 0.1)
        >>> LossOptions(label_smoothing=1.5)
        Traceback (most recent call last):
        ...
        unixent.errors.OptionError: label_smoothing: expected a float in [0, 1]; got 1.5
    """

    axis: int = -1
    reduction: Reduction = "mean"
    ignore_index: int = DEFAULT_IGNORE_INDEX
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    num_classes: int | None = None
    on_empty: OnEmpty = "zero"
    dtype: str | None = None
    validate: Validate = "auto"

    def __post_init__(self) -> None:
        # Only what is not canonical yet is set anew: this runs on every call.
        # The options are frozen. A local name: torch's tracer takes a global one for the class's own __setattr__.
        set_field = object.__setattr__
        if type(self.axis) is not int:
            set_field(self, "axis", _integer("axis", self.axis))
        if type(self.reduction) is not str or self.reduction not in _REDUCTIONS:
            set_field(self, "reduction", _choice("reduction", self.reduction, _REDUCTIONS))
        if type(self.ignore_index) is not int:
            set_field(self, "ignore_index", _integer("ignore_index", self.ignore_index))
        if not -(2**63) <= self.ignore_index < 2**64:  # no dtype of indices holds it
            raise option_error("ignore_index", "an int of 64 bits", self.ignore_index)
        if type(self.label_smoothing) is not float or not 0 <= self.label_smoothing <= 1:
            set_field(
                self, "label_smoothing", _number("label_smoothing", self.label_smoothing, "a float in [0, 1]", 0, 1)
            )
        if type(self.z_loss) is not float or not 0 <= self.z_loss < math.inf:
            set_field(self, "z_loss", _number("z_loss", self.z_loss, "a finite float >= 0", 0, math.inf))
        if self.softcap is not None and (type(self.softcap) is not float or not 0 < self.softcap < math.inf):
            expected = "None or a finite float > 0"
            set_field(self, "softcap", _number("softcap", self.softcap, expected, _LEAST_POSITIVE, math.inf))
        if type(self.scale) is not float or not 0 < self.scale < math.inf:
            set_field(self, "scale", _number("scale", self.scale, "a finite float > 0", _LEAST_POSITIVE, math.inf))
        if type(self.temperature) is not float or not 0 < self.temperature < math.inf:
            expected = "a finite float > 0"
            set_field(
                self, "temperature", _number("temperature", self.temperature, expected, _LEAST_POSITIVE, math.inf)
            )
        if self.num_classes is not None and (type(self.num_classes) is not int or self.num_classes < 1):
            set_field(self, "num_classes", _count("num_classes", self.num_classes, "None or an int >= 1"))
        if type(self.on_empty) is not str or self.on_empty not in _ON_EMPTY:
            set_field(self, "on_empty", _choice("on_empty", self.on_empty, _ON_EMPTY))
        if self.dtype is not None:
            set_field(self, "dtype", _dtype_name(self.dtype))
        if type(self.validate) is not str or self.validate not in _VALIDATE:
            set_field(self, "validate", _choice("validate", self.validate, _VALIDATE))

    def transform(self, acc_dtype: str) -> LogitTransform:
        """What scale, softcap and temperature make of logits, in that accumulation dtype.

        Raises:
            OptionError: the dtype has no number for scale / temperature.
        """
        try:
            return LogitTransform.of(self.scale, self.softcap, self.temperature, acc_dtype)
        except OverflowError as error:
            name = "scale" if self.temperature == 1 else "temperature"
            raise option_error(name, str(error), self.scale / self.temperature) from None


@dataclass(frozen=True, slots=True)
class ParallelConfig:
    """How positions and classes are split over processes.

    Positions are split over ``data_parallel * context_parallel`` processes (the token group), classes over
    ``model_parallel`` processes (the model group).

    Args:
        data_parallel: number of parts the batch is split into, >= 1.
        model_parallel: number of parts the classes are split into, >= 1.
        context_parallel: number of parts the sequence is split into, >= 1.
        model_group: the framework's own handle of the group that shares the classes (a torch ProcessGroup, a jax mesh
            axis name, a MindSpore group name, an mpi4py communicator).
        token_group: the handle of the group that shares the positions.
        mesh: the framework's own mesh of devices that the groups were taken from, if any; `from_mesh` sets it.

    Raises:
        OptionError: a degree is not an int >= 1.

    Example:
        >>> from unixent import ParallelConfig
        >>> ParallelConfig(data_parallel=2, model_parallel=4).degree
        8
    """

    data_parallel: int = 1
    model_parallel: int = 1
    context_parallel: int = 1
    model_group: Any = field(default=None, kw_only=True)
    token_group: Any = field(default=None, kw_only=True)
    mesh: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("data_parallel", "model_parallel", "context_parallel"):
            object.__setattr__(self, name, _count(name, getattr(self, name), "an int >= 1"))

    @property
    def degree(self) -> int:
        """Number of processes that one loss is spread over."""
        return self.data_parallel * self.model_parallel * self.context_parallel

    @classmethod
    def of(cls, config: Any) -> ParallelConfig:
        """A `ParallelConfig` from any object with ``data_parallel`` and ``model_parallel`` attributes."""
        if isinstance(config, cls):
            return config
        missing = [name for name in ("data_parallel", "model_parallel") if not hasattr(config, name)]
        if missing:
            raise OptionError(
                "parallel: expected a ParallelConfig or an object with data_parallel and model_parallel attributes; "
                f"got {type(config).__name__} without {' and '.join(missing)}"
            )
        return cls(
            config.data_parallel,
            config.model_parallel,
            getattr(config, "context_parallel", 1),
            model_group=getattr(config, "model_group", None),
            token_group=getattr(config, "token_group", None),
            mesh=getattr(config, "mesh", None),
        )

    @classmethod
    def from_mesh(
        cls,
        mesh: Any,
        *,
        data: str | tuple[str, ...] = (),
        model: str | tuple[str, ...] = (),
        context: str | tuple[str, ...] = (),
    ) -> ParallelConfig:
        """The groups of a torch ``DeviceMesh`` (with ``mesh_dim_names``) or a jax ``Mesh``, by the names of its axes.

        Args:
            mesh: the mesh. Axes that are not named below hold copies of the same loss.
            data, context: the axis, or axes, that positions are split over.
            model: the axis, or axes, that classes are split over.

        Raises:
            OptionError: no such axis, an axis that is named twice, or something that is no mesh with named axes.

        Example (four processes of torch, or four devices of jax, two by two)::

            mesh = torch.distributed.init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
            mesh = jax.make_mesh((2, 2), ("dp", "tp"))
            config = unixent.ParallelConfig.from_mesh(mesh, data="dp", model="tp")
        """
        roles = {
            name: (axes,) if isinstance(axes, str) else tuple(axes)
            for name, axes in (("data", data), ("model", model), ("context", context))
        }
        sizes = _mesh_axes(mesh)
        named = [axis for axes in roles.values() for axis in axes]
        for axis in named:
            if axis not in sizes:
                raise OptionError(f"from_mesh: expected names among {', '.join(map(repr, sizes))}; got {axis!r}")
            if named.count(axis) > 1:
                raise OptionError(f"from_mesh: expected each axis in one place; got {axis!r} {named.count(axis)} times")
        degrees = {name: math.prod(sizes[axis] for axis in axes) for name, axes in roles.items()}
        return cls(
            degrees["data"],
            degrees["model"],
            degrees["context"],
            model_group=_mesh_group(mesh, roles["model"]),
            token_group=_mesh_group(mesh, roles["data"] + roles["context"]),
            mesh=mesh,
        )


def _mesh_axes(mesh: Any) -> dict[str, int]:
    """The names and sizes of a mesh's axes: jax keeps them in ``shape``, torch in ``mesh_dim_names``."""
    if getattr(mesh, "axis_names", None):
        return dict(mesh.shape)
    if getattr(mesh, "mesh_dim_names", None):
        return dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True))
    raise OptionError(
        "from_mesh: expected a torch DeviceMesh with mesh_dim_names or a jax Mesh; "
        f"got {type(mesh).__module__}.{type(mesh).__qualname__}"
    )


def _mesh_group(mesh: Any, axes: tuple[str, ...]) -> Any:
    """The group of the processes along some axes: a jax axis name (or several), a torch process group."""
    if not axes:
        return None
    if getattr(mesh, "axis_names", None):
        return axes[0] if len(axes) == 1 else axes
    # A process group runs over one axis; several of them are made one, in the order of the mesh.
    return mesh.get_group(axes[0]) if len(axes) == 1 else mesh[axes]._flatten().get_group()
