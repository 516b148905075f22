"""The cross-entropies of other libraries, each as it is used by those who use it, under the same cases.

An adapter turns the arguments of `unixent.cross_entropy` into the library's own, and does no arithmetic of the loss: an
option that the library lacks is refused, a reduction that it leaves to the caller is the mean or the sum that its
documentation shows. A loud error about the arguments is a refusal; an internal error is a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unixent_conformance.results import Report


@dataclass(frozen=True)
class Peer:
    """A library's loss: `path` is its Implementation, `harness` whose arrays it takes, `needs` what must be installed;
    `linear` says that it is a fused linear form."""

    name: str
    path: str
    harness: str
    needs: tuple[str, ...]
    linear: bool = False

    def absent(self) -> str:
        """Why it cannot be run here; empty if it can."""
        missing = [module for module in self.needs if find_spec(module) is None]
        return f"needs {', '.join(missing)}, not installed" if missing else ""


def _peer(name: str, path: str, harness: str, *needs: str, linear: bool = False) -> Peer:
    return Peer(name, f"{__name__}.{path}", f"{__name__}.arrays_{harness}:harness", (harness, *needs), linear)


PEERS = (
    _peer("torch cross_entropy", "torch_losses:cross_entropy", "torch"),
    _peer("torch linear_cross_entropy", "torch_losses:linear_cross_entropy", "torch", linear=True),
    _peer("torch loss_parallel", "torch_parallel:loss_parallel", "torch"),
    _peer("transformers causal LM loss", "transformers_losses:causal_lm", "torch", "transformers"),
    _peer("liger-kernel", "liger_losses:cross_entropy", "torch", "liger_kernel", "triton"),
    _peer("liger-kernel linear", "liger_losses:linear_cross_entropy", "torch", "liger_kernel", "triton", linear=True),
    _peer("cut-cross-entropy", "cce_losses:linear_cross_entropy", "torch", "cut_cross_entropy", "triton", linear=True),
    _peer("cut-cross-entropy triton", "cce_losses:triton_kernels", "torch", "cut_cross_entropy", "triton", linear=True),
    _peer("keras on torch", "keras_losses:on_torch", "torch", "keras"),
    _peer("keras on jax", "keras_losses:on_jax", "jax", "keras"),
    _peer("optax integer", "optax_losses:integer", "jax", "optax"),
    _peer("optax dense", "optax_losses:dense", "jax", "optax"),
    _peer("optax safe", "optax_losses:safe", "jax", "optax"),
    _peer("mindspore ops", "mindspore_losses:ops_loss", "mindspore"),
    _peer("mindspore mint", "mindspore_losses:mint_loss", "mindspore"),
    _peer("scipy log_softmax", "numpy_losses:scipy_loss", "numpy", "scipy"),
    _peer("scikit-learn log_loss", "numpy_losses:sklearn_loss", "numpy", "sklearn"),
)

# unixent's own backends, which a reader wants beside them.
OWN = tuple(Peer(f"unixent {name}", name, name, (name,)) for name in ("numpy", "torch", "jax", "mindspore"))


def find(name: str) -> Peer:
    """The peer of a name."""
    by_name = {peer.name: peer for peer in (*PEERS, *OWN)}
    if name not in by_name:
        raise LookupError(f"no peer is called {name!r}; expected one of {', '.join(map(repr, by_name))}")
    return by_name[name]


def in_order(reports: Iterable[Report]) -> list[Report]:
    """Reports in the order of the tables, unixent's own before the peers; any others, the reader's, come first."""
    order = {peer.name: i for i, peer in enumerate((*OWN, *PEERS))}
    return sorted(reports, key=lambda report: order.get(report.implementation, -1))
