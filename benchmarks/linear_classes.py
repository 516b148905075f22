"""Peak memory and time of the fused linear form against the number of classes, as a figure.

    python benchmarks/linear_classes.py
    python benchmarks/linear_classes.py --form unixent-numpy

The first measures every form that is installed and draws docs/linear_classes.svg; the second measures one of them and
draws it beside what docs/linear_classes.json keeps of the others.

Each form runs at each size in a process of its own: once to warm up, once for its peak of resident memory beyond what
was there before (on JAX, what the program asks for), then for its time, the shortest of a few passes. A form is
a function in `FORMS` that makes its inputs and returns what to measure: one forward and backward pass.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from measuring import resident_peak

ROOT = Path(__file__).parent.parent
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
CLASSES = (8192, 32768, 131072, 262144)
PASSES = 3


def arrays(positions: int, width: int, classes: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((positions, width), np.float32)
    classifier = rng.standard_normal((classes, width), np.float32) / np.float32(width**0.5)
    return hidden, classifier, rng.integers(classes, size=positions)


def torch_inputs(*shape: int) -> tuple[Any, Any, Any]:
    import torch

    hidden, classifier, target = map(torch.from_numpy, arrays(*shape))
    return hidden.requires_grad_(), classifier.requires_grad_(), target


def torch_form(loss: Callable[[Any, Any, Any], Any]) -> Callable[..., Callable[[], None]]:
    def make(*shape: int) -> Callable[[], None]:
        inputs = torch_inputs(*shape)

        def step() -> None:
            loss(*inputs).backward()
            inputs[0].grad = inputs[1].grad = None

        return step

    return make


def torch_unfused(hidden: Any, classifier: Any, target: Any) -> Any:
    from torch.nn import functional as F

    return F.cross_entropy(F.linear(hidden, classifier), target)


def torch_chunked(hidden: Any, classifier: Any, target: Any) -> Any:
    from torch import nn

    return nn.functional.linear_cross_entropy(hidden, classifier, target, options=nn.LinearCrossEntropyOptions())


def torch_products(*shape: int) -> Callable[[], None]:
    """The three matrix products alone: no form can take less time."""
    hidden, classifier, _ = (x.detach() for x in torch_inputs(*shape))

    def step() -> None:
        logits = hidden @ classifier.T
        _ = logits @ classifier, logits.T @ hidden

    return step


def numpy_fused(*shape: int) -> Callable[[], None]:
    import unixent

    hidden, classifier, target = arrays(*shape)

    def step() -> None:
        unixent.linear_value_and_grad(hidden, classifier, target)

    return step


def jax_form(loss: Callable[[Any, Any, Any], Any]) -> Callable[..., Callable[[], None]]:
    def make(*shape: int) -> Callable[[], None]:
        import jax

        inputs = tuple(map(jax.numpy.asarray, arrays(*shape)))
        both = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*inputs).compile()

        def step() -> None:
            jax.block_until_ready(both(*inputs))

        # JAX keeps what it has freed, so that the peak of a second pass shows nothing; the compiler knows.
        memory = both.memory_analysis()
        step.bytes = memory.temp_size_in_bytes + memory.output_size_in_bytes  # type: ignore[attr-defined]
        return step

    return make


def jax_unfused(hidden: Any, classifier: Any, target: Any) -> Any:
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(hidden @ classifier.T, target).mean()


def fused(hidden: Any, classifier: Any, target: Any) -> Any:
    import unixent

    return unixent.linear_cross_entropy(hidden, classifier, target)


FORMS: dict[str, tuple[str, Callable[..., Callable[[], None]]]] = {
    "torch: F.cross_entropy(F.linear(...))": ("torch", torch_form(torch_unfused)),
    "torch: F.linear_cross_entropy, chunked": ("torch", torch_form(torch_chunked)),
    "torch: three matrix products": ("torch", torch_products),
    "jax: optax on hidden @ classifier.T": ("optax", jax_form(jax_unfused)),
    "unixent-torch": ("torch", torch_form(fused)),
    "unixent-jax": ("jax", jax_form(fused)),
    "unixent-numpy": ("numpy", numpy_fused),
}


def measure(form: str, shape: tuple[int, int, int]) -> dict[str, float]:
    step = FORMS[form][1](*shape)
    step()
    best = {"bytes": float(getattr(step, "bytes", 0) or resident_peak(step)), "seconds": float("inf")}
    for _ in range(PASSES - 1):
        start = time.perf_counter()
        step()
        best["seconds"] = min(best["seconds"], time.perf_counter() - start)
    return best


def draw(results: dict[str, Any], path: Path) -> None:
    sys.path.append(str(EXAMPLES))
    from plotting import colour, markers, panels

    positions, width = results["positions"], results["width"]
    names = list(results["forms"])
    with panels(path, 2, size=(5.5, 4.8)) as (memory, seconds):
        for name, marker in zip(names, markers(names), strict=True):
            points = results["forms"][name]
            classes = sorted(map(int, points))
            ours = name.startswith("unixent")
            line = {"linewidth": 2.2, "linestyle": "-"} if ours else {"linewidth": 1.2, "linestyle": "--"}
            style = {"marker": marker, "color": colour(name), "label": name, **line}
            seconds.plot(classes, [points[str(c)]["seconds"] for c in classes], **style)
            if "products" not in name:
                memory.plot(classes, [points[str(c)]["bytes"] / 2**20 for c in classes], **style)
        sizes = np.array(CLASSES)
        lines = [
            *memory.plot(sizes, sizes * positions * 4 / 2**20, "k:", label="the logits"),
            *memory.plot(sizes, (sizes + positions) * width * 4 / 2**20, "k-.", label="the gradients"),
        ]
        memory.set_ylabel("peak extra memory, MiB")
        seconds.set_ylabel("seconds, forward and backward")
        for axes in (memory, seconds):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xlabel("classes")
        figure = memory.figure
        figure.legend(handles=[*seconds.lines, *lines], fontsize=8, loc="outside lower center", ncols=3)
        figure.suptitle(f"{positions} positions, width {width}, float32, CPU", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--form", action="append", choices=FORMS, help="measure this form only; repeatable")
    parser.add_argument("--positions", type=int, default=512)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--patience", type=int, default=60, help="seconds that one form may take at one size")
    parser.add_argument("--output", type=Path, default=DOCS)
    parser.add_argument("--measure", type=int, metavar="CLASSES", help="print one measurement of one form and stop")
    options = parser.parse_args()
    if options.measure:
        shape = options.positions, options.width, options.measure
        print(json.dumps(measure(options.form[0], shape)))
        return
    path = options.output / "linear_classes.json"
    results = json.loads(path.read_text()) if path.exists() else {"forms": {}}
    if (results.get("positions"), results.get("width")) != (options.positions, options.width):
        results = {"positions": options.positions, "width": options.width, "forms": {}}
    for form in options.form or [name for name, (module, _) in FORMS.items() if importlib.util.find_spec(module)]:
        for classes in CLASSES:
            sizes = ["--positions", str(options.positions), "--width", str(options.width), "--measure", str(classes)]
            command = [sys.executable, "-W", "ignore", __file__, "--form", form, *sizes]
            try:
                run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=options.patience)
            except subprocess.TimeoutExpired:
                print(f"{form}, {classes} classes: not done after {options.patience} s, left out", flush=True)
                break
            point = json.loads(run.stdout)
            results["forms"].setdefault(form, {})[str(classes)] = point
            print(f"{form}, {classes} classes: {point['bytes'] / 2**20:.0f} MiB, {point['seconds']:.2f} s", flush=True)
            path.write_text(json.dumps(results, indent=1) + "\n")
    draw(results, options.output / "linear_classes.svg")


if __name__ == "__main__":
    main()
