"""Hostile calls: seeded, replayed on a backend in a process of its own, every answer compared with the oracle.

    python -m unixent_hostile --backend torch --calls 500000 --seed 0
    python -m unixent_hostile --backend torch --seed 0 --first 1234 --count 1

A call follows from the seed and its index alone (`drawing`), so a finding is replayed by its index. `judging` makes the
call and holds it against the oracle of the conformance suite, `worker` is the process that does so, `sweep` starts it,
and starts it again behind a call that ended it.
"""
