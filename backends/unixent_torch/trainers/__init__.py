"""This loss where training libraries call theirs: functions with their signatures, and `patch` to put them there.

One module a library: `trl`, `verl`, `openrlhf`, `megatron`, `torchtitan`, `lightning`. None imports its library before
it is called, and torch's own types are all they take.
"""

from unixent_torch.trainers.patch import patch

__all__ = ["patch"]
