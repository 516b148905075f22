"""What one process of a split loss refuses, all refuse; then the groups are in step, and the next call is right."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

import unixent

N, C = 6, 8
LOGITS = torch.linspace(-3, 3, N * C).view(N, C)
INDEX = torch.arange(N) % C
WHOLE = unixent.cross_entropy(LOGITS, INDEX)


class Hostile:
    """An array-like whose every question raises something that is not ours."""

    @property
    def dtype(self) -> Any:
        raise OSError("gone")


REFUSED: dict[str, tuple[Any, dict[str, Any]]] = {
    "option": (unixent.cross_entropy, {"label_smoothing": 2.0}),
    "unknown option": (unixent.cross_entropy, {"smoothing": 0.1}),
    "option beyond every float": (unixent.cross_entropy, {"z_loss": 10**400}),
    "unknown backend": (unixent.cross_entropy, {"backend": "nonesuch"}),
    "logits of no framework": (unixent.cross_entropy, {"logits": object()}),
    "logits that raise": (unixent.cross_entropy, {"logits": Hostile()}),
    "sparse logits": (unixent.cross_entropy, {"logits": LOGITS[:3, :4].to_sparse()}),
    "target out of range": (unixent.cross_entropy, {"target": torch.full((3,), C)}),
    "mask of another shape": (unixent.cross_entropy, {"mask": np.ones(5)}),
    "degree": (unixent.cross_entropy, {"degree": 3}),
    "wrt": (unixent.value_and_grad, {"wrt": "weights"}),
    "wrt of indices": (unixent.value_and_grad, {"wrt": "target"}),
    "grad_output of another shape": (unixent.value_and_grad, {"grad_output": torch.ones(5)}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_one_process_refuses_all_refuse_and_the_next_call_is_right(name: str, on_ranks: Any) -> None:
    call, changes = REFUSED[name]

    def work(ranks: Any) -> BaseException | None:
        logits, target = LOGITS[ranks.rows(N), ranks.columns(C)], INDEX[ranks.rows(N)]
        arguments: dict[str, Any] = {"logits": logits, "target": target, "parallel": ranks.config}
        if ranks.rank == 3:
            given = dict(changes)
            if given.pop("degree", None):
                config = ranks.config
                given["parallel"] = unixent.ParallelConfig(
                    2, 3, model_group=config.model_group, token_group=config.token_group
                )
            arguments |= given
        error: BaseException | None = None
        try:
            call(**arguments)
        except Exception as raised:
            error = raised
        loss = unixent.cross_entropy(logits, target, parallel=ranks.config)
        torch.testing.assert_close(loss, WHOLE, rtol=1e-6, atol=0)
        return error

    errors = on_ranks(2, 2, work)
    assert all(errors), errors
    assert isinstance(errors[3], (unixent.UnixentError, TypeError, OSError, RuntimeError))
    for error in errors[:3]:
        # Or its call is another one to begin with, where it alone passes a mask or has another target.
        assert isinstance(error, unixent.UnixentError), error
        refusal = "refused its arguments; see its error|expected the same (options|positions, targets and mask)"
        assert re.search(f"^parallel: .*({refusal})", str(error))
