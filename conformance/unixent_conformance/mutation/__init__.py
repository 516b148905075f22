"""Proof that the suite can fail: a plain implementation that is right, and many that are wrong in one way each."""
