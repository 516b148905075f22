"""Statistics of positions: rows by torch's operators (`rows`), by the native library or by a share of the classes
(`shards`; `kernel` chooses), derivatives (`autograd`, `linear`), both forms of a call (`call`)."""
