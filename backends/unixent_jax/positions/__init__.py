"""Statistics of positions: what a row says besides its loss (`rows`), over all rows (`solve`)."""
