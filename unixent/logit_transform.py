"""What becomes of logits before the loss: scale, softcap and temperature, as one function of two numbers."""

from __future__ import annotations

from typing import NamedTuple

_NORMAL = {"float32": (2.0**-126, (2 - 2.0**-23) * 2.0**127), "float64": (2.0**-1022, (2 - 2.0**-52) * 2.0**1023)}


class LogitTransform(NamedTuple):
    """What becomes of logits before the loss, x' = b cap(x) with cap(x) = a tanh(x / a), as a kernel takes it.

    Attributes:
        softcap: a, or None where cap(x) is x.
        inverse_temperature: b.
    """

    softcap: float | None = None
    inverse_temperature: float = 1.0

    @classmethod
    def of(cls, scale: float, softcap: float | None, temperature: float, acc_dtype: str) -> LogitTransform:
        """That of the options: cap(k x) / T has the softcap a / k and b = k / T.

        The softcap is one that the accumulation dtype holds, so that no kernel sees it round to infinity or 0: none
        above the largest number, where cap(x) is x; below the smallest normal one that number, where what is capped is
        0 against any other logit, or its bound a b is kept.

        Raises:
            OverflowError: b itself is no normal number of the accumulation dtype.

        Example:
            >>> LogitTransform.of(0.5, 30.0, 0.7, "float32")
            LogitTransform(softcap=60.0, inverse_temperature=0.7142857142857143)
            >>> LogitTransform.of(1.0, 1e300, 1.0, "float32")
            LogitTransform(softcap=None, inverse_temperature=1.0)
        """
        smallest, largest = _NORMAL[acc_dtype]
        inverse_temperature = scale / temperature
        if not smallest <= inverse_temperature <= largest:
            raise OverflowError(f"scale / temperature in [{smallest:.3g}, {largest:.3g}], to compute in {acc_dtype}")
        if softcap is None or softcap / scale > largest:
            return cls(None, inverse_temperature)
        if softcap / scale >= smallest:
            return cls(softcap / scale, inverse_temperature)
        if inverse_temperature * smallest > 2.0**-64:
            inverse_temperature = softcap / temperature / smallest
        return cls(smallest, inverse_temperature)
