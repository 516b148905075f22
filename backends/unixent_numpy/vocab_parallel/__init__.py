"""Vocabulary-parallel loss: each process of a model group holds the logits of some classes of every position.

`composed.vocab_parallel_row_losses` is the pass over the logits (its contract: `unixent_numpy.kernel`) for the classes
of one process; the logits and the fused linear form take it in the place of `unixent_numpy.kernel.row_losses`.

    blocks       which classes are here, and their logits, a block at a time
    statistics   the rows' statistics, by all-reduces over the group
    composed     losses, and the gradients of the local logits, which need no communication
    positions    the other statistics of positions
"""
