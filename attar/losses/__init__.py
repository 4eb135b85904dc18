"""What is matched: pure functions from what student and teacher say to one number, torch only."""

from . import attention, feature, response

__all__ = ["attention", "feature", "response"]
