"""Statistics of positions: rows by torch's operators (`rows`) or by the native library (`kernel` chooses), derivatives
(`autograd`, `linear`), both forms of a call (`call`)."""
