"""Check that no identifier uses a word of the project's former private vocabulary. CONTRIBUTING.md has the glossary.

    python tools/check_words.py [FILE...]     # default: every Python file that git tracks

Only names that the file itself binds are checked: variables, parameters, attributes, functions and classes. Names of
other libraries (`dtype.kind`) and prose are free.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Not even as a part of a name, and what to write instead.
WORDS = {
    "adopt": "as_backend_array",
    "bend": "hvp",
    "conclude": "commit",
    "dead": "inactive",
    "drift": "z_loss_grad, grad",
    "found": "the thing itself: backend, problem, stats, match",
    "hurried": "a Tier",
    "lane": "worker_slot",
    "lead": "the array's name: logits",
    "lean": "a Tier",
    "mine": "owns_target",
    "pull": "smoothing_coefs, grad",
    "push": "target_coefs",
    "sides": "common (CommonArguments)",
    "slope": "grad, softcap_grad",
    "spread": "expand_to, log_sum_rest, Sharding",
    "stray": "out_of_range",
    "stretches": "batches",
    "surprise": "nll",
    "told": "exchange_signatures",
    "uncounted": "inactive",
}
# Fine in a compound (target_kind, all_counted), but not alone.
ALONE = {
    "facts": "signature",
    "first_class": "vocab_start",
    "kind": "acc_dtype, target_kind",
    "mass": "sum_exp",
    "one_program": "is_single_program",
}


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that the module gives a name to."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name


def parts(name: str) -> list[str]:
    """The words of `OldSlopes` and `old_slopes`, each in the singular: old, slope."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")
    return [word if word in WORDS else word.removesuffix("s") for word in words]


def complaints(path: Path) -> Iterator[str]:
    names = [*bound_names(ast.parse(path.read_text("utf-8"), str(path))), (1, path.stem)]
    for line, name in sorted(set(names)):
        words = {word: WORDS[word] for word in parts(name) if word in WORDS}
        if name.strip("_") in ALONE:
            words[name] = ALONE[name.strip("_")]
        for word, better in words.items():
            place = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
            yield f"{place}:{line}: `{name}`: instead of {word!r}, {better}"


def main(arguments: list[str]) -> int:
    listed = subprocess.check_output(["git", "-C", str(ROOT), "ls-files", "*.py"], text=True).splitlines()
    paths = [Path(name).resolve() for name in arguments] or [ROOT / name for name in listed if (ROOT / name).exists()]
    said = [line for path in paths for line in complaints(path)]
    print("\n".join(said), end="\n" if said else "")
    return bool(said)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
