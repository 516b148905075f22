"""How the processes of a split loss compare their calls before the first logit is read. Framework-free.

Positions are split over the token group, classes over the model group. Every process passes its own logits and targets
(class indices count over the whole vocabulary) and the full class weight. Two rows of integers are gathered:

1. `exchange_signatures`: a digest of the options, one of the positions (their shape, and class indices and mask where
   those can be read without stalling), the number of local classes. They show that all processes make the same call,
   where each one's classes start, and the size of the vocabulary.
2. `commit`: whether this process's arguments passed the checks.

So when one process refuses its arguments, all raise, and none waits for a sum that never comes. Global arrays
(`ParallelBackend.is_global`) belong to one call: there is nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from unixent.errors import BackendError, OptionError, ShapeError, UnixentError
from unixent.options import ParallelConfig
from unixent.protocol import ParallelBackend, Sharding

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CallSignature:
    """What one process's call is compared by.

    Attributes:
        call: the text of what has to be the same on all processes.
        positions: what has to be the same within a model group.
        num_local_classes: how many classes this process holds.
    """

    call: Callable[[], bytes]
    positions: Callable[[], bytes]
    num_local_classes: int


def _digest(backend: ParallelBackend, text: Callable[[], bytes]) -> int:
    if backend.is_single_program():
        return 0  # a traced program is the same for all, and a tracer could not follow the digest of a text
    import zlib  # for split losses alone

    return zlib.crc32(text())


def check_groups(backend: ParallelBackend, config: ParallelConfig) -> None:
    """That every degree above 1 comes with a group, and every group has as many processes as its degree says."""
    tokens = config.data_parallel * config.context_parallel
    for name, group, degree, why in (
        ("model_group", config.model_group, config.model_parallel, f"model_parallel={config.model_parallel}"),
        ("token_group", config.token_group, tokens, f"data_parallel * context_parallel = {tokens}"),
    ):
        if group is None and degree == 1:
            continue
        if group is None:
            raise BackendError(f"{name}: expected a group of {degree} processes, since {why}; got None")
        size = backend.group_size(group)
        if size != degree:
            raise OptionError(f"{name}: expected a group of {degree} processes, since {why}; got one of {size}")


def _gather(
    backend: ParallelBackend, config: ParallelConfig, group: str, row: tuple[int, ...]
) -> list[tuple[int, ...]]:
    # By the group alone, not by the degree: a process whose degrees are wrong must still answer the others.
    handle = config.model_group if group == "model" else config.token_group
    if handle is None or backend.group_size(handle) == 1:
        return [row]
    return backend.all_gather(row, handle)


def _refusal(group: str, rows: list[tuple[int, ...]]) -> BackendError | None:
    """The error where a row begins with 1: that process refuses its arguments, or one of its other group does."""
    refusing = [rank for rank, row in enumerate(rows) if row[0]]
    if not refusing:
        return None
    return BackendError(f"parallel: process {refusing[0]} of the {group} group refused its arguments; see its error")


def _attempt(function: Callable[[], T]) -> tuple[T | None, Exception | None]:
    # Any exception counts as a refusal: the other processes must not be left waiting, whatever it is.
    try:
        return function(), None
    except Exception as error:
        return None, error


def _same(group: str, what: str, values: list[int]) -> ShapeError | OptionError | None:
    differing = [rank for rank, value in enumerate(values) if value != values[0]]
    if not differing:
        return None
    error_type = OptionError if what == "options" else ShapeError
    return error_type(
        f"parallel: expected the same {what} on every process of the {group} group; "
        f"got others on process {differing[0]} than on process 0"
    )


def model_error(rows: list[tuple[int, ...]]) -> UnixentError | None:
    """What is wrong with the rows (refused, call, positions, classes) of a model group, if anything."""
    error = _refusal("model", rows) or _same("model", "options", [row[1] for row in rows])
    return error or _same("model", "positions, targets and mask", [row[2] for row in rows])


def token_error(rows: list[tuple[int, ...]]) -> UnixentError | None:
    """What is wrong with the rows (refused, call, classes of its model group) of a token group, if anything."""
    error = _refusal("token", rows) or _same("token", "options", [row[1] for row in rows])
    return error or _same("token", "number of classes", [row[2] for row in rows])


def exchange_signatures(
    backend: ParallelBackend, config: ParallelConfig, describe: Callable[[], CallSignature]
) -> Sharding:
    """The sharding of one call, the same on all processes, or an error on all of them.

    Raises:
        OptionError: the processes were given different options.
        ShapeError: the processes of a model group hold different positions, or there is no class at all.
        BackendError: another process refused its arguments.
    """

    def checked() -> CallSignature:
        check_groups(backend, config)
        return describe()

    signature, own_error = _attempt(checked)
    if signature is None:
        row: tuple[int, ...] = (1, 0, 0, 0)
    else:
        digests = _digest(backend, signature.call), _digest(backend, signature.positions)
        row = (0, *digests, signature.num_local_classes)
    model_rows = _gather(backend, config, "model", row)
    error = own_error or model_error(model_rows)
    classes_per_rank = tuple([each[3] for each in model_rows])
    # The model group's error travels along the token group, so that every process of the grid learns of it.
    token_rows = _gather(backend, config, "token", (int(error is not None), row[1], sum(classes_per_rank)))
    error = error or token_error(token_rows)
    if error is not None:
        raise error
    if not sum(classes_per_rank):
        raise ShapeError("logits: expected at least 1 class on the processes of the model group together; got 0")
    return Sharding(config.model_group, config.token_group, classes_per_rank)


def refuse(backend: ParallelBackend, config: ParallelConfig) -> None:
    """Tell the other processes of a split loss that this one refuses its call, in place of `exchange_signatures`."""
    rows = _gather(backend, config, "model", (1, 0, 0, 0))
    _gather(backend, config, "token", (1, 0, sum(row[3] for row in rows)))


def commit(backend: ParallelBackend, config: ParallelConfig, build: Callable[[], T]) -> T:
    """What ``build`` returns, if it returns on every process; where it raises on one, all raise."""
    built, own_error = _attempt(build)
    model_rows = _gather(backend, config, "model", (int(own_error is not None),))
    error = own_error or _refusal("model", model_rows)
    token_rows = _gather(backend, config, "token", (int(error is not None),))
    error = error or _refusal("token", token_rows)
    if error is not None:
        raise error
    assert built is not None
    return built
