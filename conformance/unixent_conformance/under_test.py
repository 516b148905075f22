"""The implementation under test, seen through a harness in one mode: NumPy in, NumPy out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from unixent_conformance.functions import loss_of, statistic_and_gradient_of, with_sparse_target
from unixent_conformance.harness import BATCH, EAGER, Derivative, Harness, Mode, Unsupported
from unixent_conformance.identity import Through, through_identity
from unixent_conformance.implementation import Implementation
from unixent_conformance.model import Array, Call, Case, Quantity
from unixent_conformance.returned import WrongAnswer, several, statistic_of, type_of

T = TypeVar("T")

# How the neighbours of an example are made from it: rolled so far, and scaled.
NEIGHBOURS = ((1, 0.5), (-1, 1.5))


@dataclass(frozen=True)
class Subject:
    """An implementation, seen through a harness in one mode: NumPy in, NumPy out."""

    harness: Harness
    implementation: Implementation
    mode: Mode = EAGER
    # As which dtype an array of each returns from the framework, which may narrow it in silence.
    returning: dict[np.dtype[Any], np.dtype[Any]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def version(self) -> str:
        """What ran: of the implementation, and of its framework."""
        return ", ".join(filter(None, (self.implementation.version, self.harness.version())))

    @property
    def judges(self) -> bool:
        """Whether its answers are judged here; of a loss over several processes the first judges, the others answer."""
        return True

    def answer(self, call: Call, quantity: Quantity) -> tuple[Array, ...]:
        """The parts of the answer, in the order in which `expected` gives them."""
        if quantity == "loss":
            return (self.loss(call),)
        if quantity == "terms":
            return self.terms(call)
        if quantity == "second derivatives":
            return self.second_derivatives(call)
        if quantity == "gradients of two passes":
            return self.gradients_of_two_passes(call)
        return self.gradients(call, call.wrt(quantity))

    def untraced_error(self, call: Call, quantity: Quantity) -> Exception | None:
        """What the call raises when it is not traced: a compiler stands in for it with an error of its own."""
        if not self.mode.traced:
            return None
        plain = (mode for mode in self.harness.modes if mode.autodiff and not mode.needs)
        try:
            replace(self, mode=EAGER if quantity == "loss" else next(plain, EAGER)).answer(call, quantity)
        except Exception as error:
            return error
        return None

    def lacking(self, case: Case) -> frozenset[str]:
        """What of a case's needs, and of the mode's, the implementation does not declare."""
        return self.implementation.lacking(case.needs | self.mode.needs)

    def names_of(self, argument: str) -> tuple[str, ...]:
        """What an error about an argument may call it."""
        return ("hidden", "classifier") if self.implementation.as_logits and argument == "logits" else (argument,)

    def _through(self, call: Call) -> Through | None:
        """The call of a fused linear form that is asked in the place of one of logits."""
        if not self.implementation.as_logits or call.linear:
            return None
        return through_identity(call, self.implementation.multiples.get("hidden", 1))

    def loss(self, call: Call) -> Array:
        through = self._through(call)
        call = call if through is None else through.call
        with self._explaining(call):
            value = self._run(loss_of(self.implementation, call), call)
        return self._read(value)

    def terms(self, call: Call) -> tuple[Array, Array]:
        if self.implementation.terms is None:
            raise Unsupported(f"{self.implementation.name} has no loss_terms")
        terms = (
            with_sparse_target(self.implementation, self.implementation.terms, call)
            if call.tail
            else self.implementation.terms
        )
        numerator, denominator = several(self._run(terms, call), "the result of loss_terms", 2)
        return self._read(numerator), self._read(denominator)

    def gradients(self, call: Call, wrt: tuple[str, ...] = ("logits",)) -> tuple[Array, ...]:
        """The loss and d sum(grad_output * loss)/d argument for each of `wrt`: by the implementation's own function, or
        by the framework's differentiation of the loss."""
        implementation = self.implementation
        through = self._through(call)
        if through is not None:
            answer = self.gradients(through.call, through.wrt(wrt))
            return answer[0], *map(through.from_argument, answer[1:], wrt)
        both = implementation.linear_value_and_grad if call.linear else implementation.value_and_grad
        if call.statistic:
            both = statistic_and_gradient_of(implementation, call)
        if both is not None and call.tail:
            both = with_sparse_target(implementation, both, call)
        if both is None or self.mode.autodiff:
            value, gradients = self._differentiated(call, wrt, self.harness.gradient)
        else:
            # One argument by its name, since not every function takes several.
            alone = len(wrt) == 1 and not call.linear
            extra = {} if call.grad_output is None else {"grad_output": self._give(call.grad_output)}
            answer = self._run(both, call, wrt=wrt[0] if alone else wrt, **extra)
            value, gradients = several(answer, "the result of value_and_grad", 2)
            gradients = (gradients,) if alone else several(gradients, "its gradient", len(wrt))
        return self._read(value), *(self._read(gradient) for gradient in gradients)

    def gradients_of_two_passes(self, call: Call) -> tuple[Array, ...]:
        """The gradients of `call.differentiable()` for the upstream gradient of `call.of_first_pass()`, then for the
        call's own, through one forward pass."""
        through, wrt = self._through(call), call.differentiable()
        asked = (call, wrt) if through is None else (through.call, through.wrt(wrt))
        upstream = [self._give(call.of_first_pass().grad_output)]
        upstream.append(None if call.grad_output is None else self._give(call.grad_output))

        def gradients_of(derivative: Derivative, mode: Mode) -> list[tuple[Any, ...]]:
            return self.harness.gradients(derivative, upstream, mode)

        gradients = self._differentiated(*asked, gradients_of, judged=True)
        read = [self._read(gradient) for each in gradients for gradient in each]
        return tuple(read if through is None else map(through.from_argument, read, 2 * wrt))

    def second_derivatives(self, call: Call) -> tuple[Array, ...]:
        """How the gradients of `call.differentiable()` change along `call.directions()`."""
        through, wrt, directions = self._through(call), call.differentiable(), call.directions()
        if through is not None:
            directions["logits"] = through.to_argument(directions["logits"])
        asked = (call, wrt) if through is None else (through.call, through.wrt(wrt))
        given = [self._give(array) for array in directions.values()]

        def hvp(derivative: Derivative, mode: Mode) -> tuple[Any, ...]:
            return self.harness.hvp(derivative, given, mode)

        products = map(self._read, self._differentiated(*asked, hvp, judged=True))
        return tuple(products if through is None else map(through.from_argument, products, wrt))

    def written_to(self, call: Call) -> list[str]:
        """The array arguments, upstream gradient included, that a call of the value or of the gradient has changed."""
        changed: set[str] = set()
        through = self._through(call)
        call = call if through is None else through.call
        both = None if call.linear else self.implementation.value_and_grad
        value, derivative = self._derivative(call, ()), self._derivative(call, call.differentiable())
        runs: list[tuple[Sequence[Any], Callable[[], Any]]] = [
            (value.arrays, partial(self.harness.call, value.function, value.arrays, self.mode))
        ]
        upstream = derivative.grad_output
        if both is None:
            runs.append((derivative.inputs, partial(self.harness.gradient, derivative, self.mode)))
        else:
            bound, given = self._bind(both, call, **({} if upstream is None else {"grad_output": upstream}))
            inputs = given if upstream is None else [*given, upstream]
            runs.append((inputs, partial(self.harness.call, bound, given, self.mode)))
        for arrays, run in runs:
            before = [self.harness.to_numpy(array).tobytes() for array in arrays]
            with suppress(Unsupported):  # no automatic differentiation
                run()
            after = [self.harness.to_numpy(array).tobytes() for array in arrays]
            names = list(call.all_arrays())[: len(arrays)]
            changed |= {name for name, b, a in zip(names, before, after, strict=True) if b != a}
        return sorted(changed)

    def _derivative(self, call: Call, wrt: tuple[str, ...]) -> Derivative:
        function, arrays = self._bind(loss_of(self.implementation, call), call)
        places = [list(call.arrays()).index(name) for name in wrt]
        return Derivative(function, arrays, places, None if call.grad_output is None else self._give(call.grad_output))

    def _differentiated(
        self, call: Call, wrt: tuple[str, ...], differentiate: Callable[[Derivative, Mode], T], judged: bool = False
    ) -> T:
        """A derivative, by the framework; if judged, of a function whose own result has to be an array, where none of
        it comes back and a framework would differentiate a number or a tuple too."""
        with self._explaining(call):
            of = self._derivative(call, wrt)
            if judged:
                of = replace(of, function=self._judging(of.function))
            return differentiate(of, self.mode)

    def _judging(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def judged(*arrays: Any) -> Any:  # with a name, which MindSpore asks for
            return self._owned(function(*arrays))

        return judged

    @contextmanager
    def _explaining(self, call: Call) -> Iterator[None]:
        """Where a framework fails on a result that it cannot trace or differentiate, such as None, it speaks of its own
        insides: the loss alone, called once more, shows what its result is."""
        try:
            yield
        except (Unsupported, WrongAnswer):
            raise
        except Exception as error:
            problem = replace(self, mode=EAGER)._problem_of_result(call)
            if problem:
                raise WrongAnswer(problem) from error
            raise

    def _problem_of_result(self, call: Call) -> str:
        """What a result has of another form than was asked for; empty if nothing, or if there is no result."""
        with suppress(Exception):
            function: Any = loss_of(self.implementation, call)
            if call.statistic:
                tested = self.implementation
                stats: Any = tested.linear_position_stats if call.linear else tested.position_stats
                function = partial(stats, outputs=(call.statistic,))
            value = self._run(function, call)
            try:
                self._owned(statistic_of(value, call.statistic) if call.statistic else value)
            except WrongAnswer as wrong:
                return str(wrong)
        return ""

    def _run(self, function: Callable[..., Any], call: Call, **extra: Any) -> Any:
        bound, arrays = self._bind(function, call, **extra)
        return self.harness.call(bound, arrays, self.mode)

    def _bind(self, function: Callable[..., Any], call: Call, **extra: Any) -> tuple[Callable[..., Any], list[Any]]:
        """A function of the arrays alone, and the arrays."""
        leading = 3 if call.linear else 2
        names = list(call.arrays())[leading:]
        options = {**call.static(), **extra}

        def bound(*given: Any) -> Any:
            # A loop, since MindSpore compiles this function's source, where dict(zip(...)) is unknown.
            named = {}
            for name, value in zip(names, given[leading:]):  # noqa: B905
                named[name] = value  # noqa: PERF403
            return function(*given[:leading], **named, **options)

        return bound, [self._give(array) for array in call.arrays().values()]

    def _give(self, array: Array) -> Any:
        if array.dtype not in self.returning:
            sample = self.harness.to_numpy(self.harness.from_numpy(np.zeros(1, array.dtype)))
            self.returning[array.dtype] = np.asarray(sample).dtype
        returning = self.returning[array.dtype]
        if returning != array.dtype:
            raise Unsupported(f"{self.harness.name} makes {returning} of {array.dtype}")
        return self.harness.from_numpy(_among_others(array) if self.mode.batched else array)

    def _owned(self, value: Any) -> Any:
        if not self.harness.owns(value):
            raise WrongAnswer(f"the result is of type {type_of(value)}, not an array of {self.harness.name}")
        return value

    def _read(self, value: Any) -> Array:
        array = self.harness.to_numpy(self._owned(value))
        if not self.mode.batched:
            return array
        if array.shape[:1] != (BATCH,):
            raise WrongAnswer(f"mapped over {BATCH} examples, the result has shape {array.shape}")
        return np.asarray(array[BATCH // 2])


def _among_others(array: Array) -> Array:
    """A batch with the array in its middle, between others that are made of it."""
    flat = np.ravel(array)
    with np.errstate(all="ignore"):
        scales = array.dtype.kind not in "iub"
        before, after = (np.roll(flat, step) * (factor if scales else 1) for step, factor in NEIGHBOURS)
        return np.stack([before.astype(array.dtype), flat, after.astype(array.dtype)]).reshape(BATCH, *array.shape)
