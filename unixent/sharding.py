"""What the processes of a split loss tell each other before the first logit is read. Framework-free.

Positions are split over the token group, classes over the model group. Every process passes its own logits and targets
(class indices count over the whole vocabulary) and the full class weight. Two rows of integers go round:

1. `agree`: a digest of the options, one of the shape of the positions, the number of classes here. From these follow
   the first class that each process holds and the size of the vocabulary, and that all mean the same call.
2. `conclude`: whether this process's arguments passed the checks.

So a process whose arguments are refused takes the others with it: all raise, none waits for a sum that never comes.
Arrays that are whole over a mesh (`ParallelBackend.is_global`) belong to one call: there is nothing to agree on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from unixent.errors import BackendError, OptionError, ShapeError, UnixentError
from unixent.options import ParallelConfig
from unixent.protocol import ParallelBackend, Sharding

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Facts:
    """What has to be the same on all processes (``call``), on those of a model group (``positions``), or on none."""

    call: Callable[[], str]
    positions: tuple[int, ...]
    classes: int


def _digest(backend: ParallelBackend, text: Callable[[], str]) -> int:
    # Not inside a traced program, which is the same for all: a tracer would stumble over the text and its digest.
    traced = getattr(backend, "one_program", None)
    return 0 if traced is not None and traced() else zlib.crc32(text().encode())


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
    degree = config.model_parallel if group == "model" else config.data_parallel * config.context_parallel
    if degree == 1:
        return [row]
    return backend.all_gather(row, config.model_group if group == "model" else config.token_group)


def _refused(group: str, rows: list[tuple[int, ...]]) -> BackendError | None:
    """The first entry of a row is 1 where that process, or one that it heard of, refuses its arguments."""
    bad = [rank for rank, row in enumerate(rows) if row[0]]
    if not bad:
        return None
    return BackendError(f"parallel: process {bad[0]} of the {group} group refused its arguments; see its error")


def _attempt(function: Callable[[], T]) -> tuple[T | None, UnixentError | None]:
    try:
        return function(), None
    except UnixentError as error:
        return None, error


def _same(group: str, what: str, values: list[int]) -> ShapeError | OptionError | None:
    differing = [rank for rank, value in enumerate(values) if value != values[0]]
    if not differing:
        return None
    kind = OptionError if what == "options" else ShapeError
    return kind(
        f"parallel: expected the same {what} on every process of the {group} group; "
        f"got others on process {differing[0]} than on process 0"
    )


def model_error(rows: list[tuple[int, ...]]) -> UnixentError | None:
    """What is wrong with the rows (refused, call, positions, classes) of a model group, if anything."""
    error = _refused("model", rows) or _same("model", "options", [row[1] for row in rows])
    return error or _same("model", "positions", [row[2] for row in rows])


def token_error(rows: list[tuple[int, ...]]) -> UnixentError | None:
    """What is wrong with the rows (refused, call, classes of its model group) of a token group, if anything."""
    error = _refused("token", rows) or _same("token", "options", [row[1] for row in rows])
    return error or _same("token", "number of classes", [row[2] for row in rows])


def agree(backend: ParallelBackend, config: ParallelConfig, describe: Callable[[], Facts]) -> Sharding:
    """The split of one call, the same on all processes, or the same error on all of them.

    Raises:
        OptionError: the processes were given different options.
        ShapeError: the processes of a model group hold different positions, or there is no class at all.
        BackendError: another process refused its arguments.
    """
    check_groups(backend, config)
    facts, own = _attempt(describe)
    call = _digest(backend, facts.call) if facts else 0
    positions = _digest(backend, lambda: str(facts.positions)) if facts else 0
    row = (int(own is not None), call, positions, facts.classes if facts else 0)
    model = _gather(backend, config, "model", row)
    error = own or model_error(model)
    counts = [each[3] for each in model]
    total = sum(counts)
    # What the model group found goes round the token group, so that a whole grid hears of it.
    tokens = _gather(backend, config, "token", (int(error is not None), call, total))
    error = error or token_error(tokens)
    if error is not None:
        raise error
    if total < 1:
        raise ShapeError("logits: expected at least 1 class on the processes of the model group together; got 0")
    return Sharding(
        model_group=config.model_group,
        token_group=config.token_group,
        classes_per_rank=tuple(counts),
    )


def conclude(backend: ParallelBackend, config: ParallelConfig, build: Callable[[], T]) -> T:
    """What ``build`` returns, if it returns on every process; where it raises on one, all raise."""
    built, own = _attempt(build)
    model = _gather(backend, config, "model", (int(own is not None),))
    error = own or _refused("model", model)
    tokens = _gather(backend, config, "token", (int(error is not None),))
    error = error or _refused("token", tokens)
    if error is not None:
        raise error
    assert built is not None
    return built
