"""The contract between unixent and a backend: for authors of plug-ins.

A backend is a module-level object, registered under its name and under the top-level module of the arrays it takes
(see `unixent.registry`)::

    [project.entry-points."unixent.backends"]
    mylib = "unixent_mylib:backend"

    [project.entry-points."unixent.arrays"]
    mylib = "unixent_mylib:backend"

unixent validates the call (options, shapes, dtypes, devices, capabilities) and raises every error; a backend holds
arithmetic only. It receives a `Problem` in which every array is its own and every option is normalised, and it returns
its own array. What the loss means is in ``docs/semantics.md``; run ``unixent conformance --backend mylib`` to learn,
case by case, whether yours matches.

Every backend provides `Backend`. What it declares in its capabilities asks for more: "sparse" among its targets for
`SparseBackend`, ``fast_path`` for `FastPathBackend`, ``position_stats`` for `StatsBackend`, ``traces_values`` for
`TracingBackend`, ``parallel`` for `ParallelBackend`.
"""

from unixent.protocol.backend import (
    Backend,
    FastPathBackend,
    ParallelBackend,
    SparseBackend,
    StatsBackend,
    TracingBackend,
)
from unixent.protocol.description import Array, ArrayInfo, Capabilities, Device
from unixent.protocol.problem import (
    LinearProblem,
    LossProblem,
    LossTerms,
    PositionStats,
    Problem,
    Sharding,
    StatsProblem,
    Teacher,
)

__all__ = [
    "Array",
    "ArrayInfo",
    "Backend",
    "Capabilities",
    "Device",
    "FastPathBackend",
    "LinearProblem",
    "LossProblem",
    "LossTerms",
    "ParallelBackend",
    "PositionStats",
    "Problem",
    "Sharding",
    "SparseBackend",
    "StatsBackend",
    "StatsProblem",
    "Teacher",
    "TracingBackend",
]
