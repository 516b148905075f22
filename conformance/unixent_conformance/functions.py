"""Which function of an implementation a call asks, as one of its arrays alone that gives one array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unixent_conformance.harness import Unsupported
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Call
from unixent_conformance.returned import several, statistic_of


def loss_of(tested: Implementation, call: Call) -> Callable[..., Any]:
    """The loss of logits or its fused linear form, or the one output of `position_stats` that a call asks for."""
    if call.statistic:
        return _statistic_of(tested, call)
    function = tested.linear if call.linear else tested.loss
    if function is None:
        raise Unsupported(f"{tested.name} has no fused linear form")
    return with_sparse_target(tested, function, call) if call.tail else function


def with_sparse_target(tested: Implementation, function: Callable[..., Any], call: Call) -> Callable[..., Any]:
    """A function of a sparse target as one of its arrays, of which ``target`` has a gradient."""
    if not tested.takes_sparse:
        raise Unsupported(f"{tested.name} takes no sparse targets")
    name, tail = "log_probs" if call.log_probs else "probs", call.tail

    from unixent import TopK

    # In the Python that MindSpore compiles.
    def of_arrays(*arrays: Any, ids: Any, **options: Any) -> Any:
        named: dict[str, Any] = {name: arrays[-1], "tail": tail}
        return function(*arrays[:-1], TopK(ids, **named), **options)

    return of_arrays


def _statistic_of(tested: Implementation, call: Call) -> Callable[..., Any]:
    name = call.statistic
    function = tested.linear_position_stats if call.linear else tested.position_stats
    if function is None:
        raise Unsupported(f"{tested.name} has no position_stats")

    from unixent import PositionStats

    # By its place, since a function that MindSpore compiles has plain tuples.
    place = PositionStats._fields.index(name)

    def one(*arrays: Any, **options: Any) -> Any:
        return function(*arrays, outputs=(name,), **options)[place]

    return one


def statistic_and_gradient_of(tested: Implementation, call: Call) -> Callable[..., Any] | None:
    """The same output with its gradient, where the implementation has a function for it."""
    name = call.statistic
    both = tested.linear_position_stats_and_grad if call.linear else tested.position_stats_and_grad
    if both is None:
        return None

    def one(*arrays: Any, grad_output: Any = None, wrt: Any = None, **options: Any) -> Any:
        from unixent import PositionStats

        upstream = None if grad_output is None else PositionStats(**{name: grad_output})
        if call.linear:
            options["wrt"] = wrt
        answer = both(*arrays, outputs=(name,), grad_output=upstream, **options)
        stats, gradient = several(answer, "the result of position_stats_and_grad", 2)
        return statistic_of(stats, name), gradient

    return one
