"""What is expected of a call: each array of the answer with its exact value, bound, dtype and shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from unixent_conformance import oracle, tolerance
from unixent_conformance.model import Array, Call, Case, Quantity
from unixent_conformance.oracle import Rows
from unixent_conformance.tolerance import Comparison, Estimate


@dataclass(frozen=True)
class Part:
    """One array of the answer."""

    name: str
    estimate: Estimate
    dtype: str

    def rounding(self) -> Array:
        """One rounding of the value to its dtype."""
        return tolerance.rounding(self.estimate.value, self.dtype)

    def compare(self, got: Array) -> Comparison:
        """Shape and dtype first, then every entry."""
        wrong = Comparison.of_form(self.name, got, self.estimate.value.shape, self.dtype)
        return wrong or tolerance.compare(got, self.estimate, self.dtype)


@dataclass(frozen=True, kw_only=True)
class Convention:
    """What another convention than ours changes: the call, its positions as the oracle has solved them, the dtype that
    an implementation accumulates in, that of its result."""

    call: Callable[[Call], Call] = lambda call: call
    rows: Callable[[Rows, Call], Rows] = lambda rows, call: rows
    acc_dtype: Callable[[Call, str], str] = lambda call, dtype: dtype
    result_dtype: Callable[[Call, str], str] = lambda call, dtype: dtype


def expected(given: Call, quantity: Quantity, conventions: Sequence[Convention] = ()) -> list[Part]:
    """The parts of the answer in the order in which an implementation gives them, under the definition or under other
    conventions."""
    call = given
    for convention in conventions:
        call = convention.call(call)

    def changed(rows: Rows) -> Rows:
        for convention in conventions:
            rows = convention.rows(rows, call)
        return rows

    if quantity == "gradients of two passes":
        gradients: Quantity = "linear gradients" if given.linear else "logits gradient"
        first, second = (expected(each, gradients, conventions)[1:] for each in (given.of_first_pass(), given))
        return [replace(part, name=f"{part.name}, first pass") for part in first] + second
    if quantity == "second derivatives":
        changes = tolerance.second_derivatives(oracle.solve(call, changed))
        return [Part(f"second derivative, {name}", e, getattr(call, name).dtype.name) for name, e in changes.items()]
    acc_dtype, result_dtype = given.acc_dtype, given.result_dtype
    for convention in conventions:
        acc_dtype = convention.acc_dtype(given, acc_dtype)
        result_dtype = convention.result_dtype(given, result_dtype)
    solution = oracle.solve(call, changed, acc_dtype)
    if call.statistic:
        return _statistic(call, solution, given.wrt(quantity), result_dtype)
    if quantity == "terms":
        # Partial sums come in the accumulation dtype: a float16 count of tokens ends at 65504.
        dtype = result_dtype if conventions else str(call.options.get("dtype") or acc_dtype)
        return [Part(name, estimate, dtype) for name, estimate in tolerance.terms(solution).items()]
    estimates = tolerance.estimates(solution, given.wrt(quantity))
    parts = [Part("loss", estimates.pop("loss"), result_dtype)]
    return parts + [Part(f"gradient of {name}", e, getattr(given, name).dtype.name) for name, e in estimates.items()]


def _statistic(call: Call, solution: oracle.Solution, wrt: tuple[str, ...], result_dtype: str) -> list[Part]:
    estimates = tolerance.statistics.estimates(solution, wrt)
    value = estimates.pop(call.statistic)
    dtype = "int64" if value.value.dtype.kind == "i" else "bool" if value.value.dtype.kind == "b" else result_dtype
    parts = [Part(call.statistic, value, dtype)]
    return parts + [Part(f"gradient of {name}", e, getattr(call, name).dtype.name) for name, e in estimates.items()]


def expected_of(case: Case, call: Call) -> Sequence[Part]:
    """What a case expects of its call: a stored answer if it has one, or the oracle's."""
    return expected(call, case.quantity) if case.stored is None else case.stored()
