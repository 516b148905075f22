"""Statistics of positions: rows by torch's operators (`rows`), their derivatives (`autograd`), both forms (`call`)."""
