"""Every argument, given in every way, under every transform: the value, the derivative, or an error that names it."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

import pytest

from unixent_hostile.product import ARGUMENTS, Product

FRAMEWORKS = [name for name in ("torch", "jax", "mindspore") if find_spec(name)]
PRODUCTS: list[Product] = [
    Product(),
    *(import_module(f"unixent_hostile.product_{name}").product for name in FRAMEWORKS),
]


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize(
    ("product", "transform"),
    [(product, transform) for product in PRODUCTS for transform in product.transforms],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_argument_means_the_same_however_it_is_given(product: Product, transform: str, argument: str) -> None:
    complaints = list(product.complaints(transform, argument))
    assert not complaints, "\n".join(complaints)
