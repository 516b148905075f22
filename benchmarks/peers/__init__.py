"""The cross-entropies of other libraries, each as it is used by those who use it, under the same cases.

An adapter turns the arguments of `unixent.cross_entropy` into the library's own, and does no arithmetic of the loss: an
option that the library lacks is refused, a reduction that it leaves to the caller is the mean or the sum that its
documentation shows. A loud error about the arguments is a refusal; an internal error is a crash.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unixent_conformance.results import Report


@dataclass(frozen=True)
class Peer:
    """A library's loss: `path` is its Implementation, `harness` whose arrays it takes, `needs` what must be installed,
    by `install`; `how` says how it is run here, `linear` that it is a fused linear form."""

    name: str
    path: str
    harness: str
    needs: tuple[str, ...]
    linear: bool = False
    how: str = "eager"
    install: str = ""

    def absent(self) -> str:
        """Why it cannot be run here; empty if it can."""
        missing = [module for module in self.needs if find_spec(module) is None]
        how = f": {self.install}" if self.install else ""
        return f"needs {', '.join(missing)}, not installed{how}" if missing else ""


def _peer(name: str, path: str, arrays: str, *needs: str, **more: Any) -> Peer:
    """arrays: a module of harnesses here, and which of its harnesses if that is another."""
    framework, _, harness = arrays.partition(":")
    path, place = f"{__name__}.{path}", f"{__name__}.arrays_{framework}:{harness or 'harness'}"
    return Peer(name, path, place, (framework, *needs), **more)


def _interpreted(name: str, path: str, needs: str, install: str, **more: Any) -> Peer:
    return _peer(name, path, "torch", needs, "triton", how=INTERPRETED, install=f"{install} triton", **more)


INTERPRETED = "Triton's interpreter"
_NO_DEPS = "pip install --no-deps"
_FLASH = (
    "FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE "
    "pip install --no-deps --no-build-isolation flash-attn"
)

PEERS = (
    _peer("torch cross_entropy", "torch_losses:cross_entropy", "torch"),
    _peer("torch cross_entropy compiled", "torch_losses:cross_entropy", "torch:compiled", how="torch.compile"),
    _peer("torch linear_cross_entropy", "torch_losses:linear_cross_entropy", "torch", linear=True),
    _peer("torch loss_parallel", "torch_parallel:loss_parallel", "torch", how="a mesh of one rank"),
    _peer("transformers causal LM loss", "transformers_losses:causal_lm", "torch", "transformers"),
    _peer("trl selective_log_softmax", "trl_losses:log_softmax", "torch", "trl", install="pip install trl"),
    _peer("trl fused head", "trl_losses:fused_head", "torch", "trl", install="pip install trl", linear=True),
    _peer("verl logprobs_from_logits", "verl_losses:logprobs", "torch", "verl", install=f"{_NO_DEPS} verl"),
    _peer(
        "verl FusedLinearForPPO", "verl_losses:fused_linear", "torch", "verl", install=f"{_NO_DEPS} verl", linear=True
    ),
    _interpreted("liger-kernel", "liger_losses:cross_entropy", "liger_kernel", f"{_NO_DEPS} liger-kernel"),
    _interpreted(
        "liger-kernel linear",
        "liger_losses:linear_cross_entropy",
        "liger_kernel",
        f"{_NO_DEPS} liger-kernel",
        linear=True,
    ),
    _interpreted("flash-attention", "flash_attention_losses:cross_entropy", "flash_attn", _FLASH),
    _interpreted("unsloth", "unsloth_losses:cross_entropy", "unsloth", f"{_NO_DEPS} unsloth unsloth_zoo"),
    _peer(
        "cut-cross-entropy",
        "cce_losses:linear_cross_entropy",
        "torch",
        "cut_cross_entropy",
        "triton",
        linear=True,
        how="torch.compile",
        install=f"{_NO_DEPS} cut-cross-entropy triton",
    ),
    _interpreted(
        "cut-cross-entropy triton",
        "cce_losses:triton_kernels",
        "cut_cross_entropy",
        f"{_NO_DEPS} cut-cross-entropy",
        linear=True,
    ),
    _peer("keras on torch", "keras_losses:on_torch", "torch", "keras"),
    _peer("keras on jax", "keras_losses:on_jax", "jax", "keras"),
    _peer("optax integer", "optax_losses:integer", "jax", "optax"),
    _peer("optax dense", "optax_losses:dense", "jax", "optax"),
    _peer("optax safe", "optax_losses:safe", "jax", "optax"),
    _peer("mindspore ops", "mindspore_losses:ops_loss", "mindspore", how="PyNative mode"),
    _peer("mindspore mint", "mindspore_losses:mint_loss", "mindspore", how="mindspore.jit"),
    _peer("tensorflow softmax_cross_entropy", "tensorflow_losses:softmax", "tensorflow"),
    _peer("paddle cross_entropy", "paddle_losses:cross_entropy", "paddle", install="pip install paddlepaddle"),
    _peer("mlx cross_entropy", "mlx_losses:cross_entropy", "mlx", install="pip install 'mlx[cpu]'"),
    _peer("tinygrad cross_entropy", "tinygrad_losses:cross_entropy", "tinygrad", install="pip install tinygrad, clang"),
    _peer(
        "tinygrad sparse_categorical_crossentropy",
        "tinygrad_losses:sparse",
        "tinygrad",
        install="pip install tinygrad, clang",
    ),
    _peer("scipy log_softmax", "scipy_losses:log_softmax", "numpy", "scipy"),
    _peer("scikit-learn log_loss", "sklearn_losses:of_softmax", "numpy", "sklearn"),
)

# unixent's own backends, which a reader wants beside them.
OWN = tuple(Peer(f"unixent {name}", name, name, (name,)) for name in ("numpy", "torch", "jax", "mindspore"))


def find(name: str) -> Peer:
    """The peer of a name."""
    by_name = {peer.name: peer for peer in (*PEERS, *OWN)}
    if name not in by_name:
        # On use: the site is built from this package alone.
        from unixent_conformance.names import did_you_mean, resembling

        hint = did_you_mean(resembling(name, by_name)) or f"; expected one of {', '.join(map(repr, by_name))}"
        raise LookupError(f"no peer is called {name!r}{hint}")
    return by_name[name]


def in_order(reports: Iterable[Report]) -> list[Report]:
    """Reports in the order of the tables, unixent's own before the peers; any others, the reader's, come first."""
    order = {peer.name: i for i, peer in enumerate((*OWN, *PEERS))}
    return sorted(reports, key=lambda report: order.get(report.implementation, -1))
