"""What is matched: functions, or classes where they learn, from student and teacher to one number.

Torch only: each file can be copied out of the house.
"""

from . import attention, feature, policy, relation, response, sequence

__all__ = ["attention", "feature", "policy", "relation", "response", "sequence"]
