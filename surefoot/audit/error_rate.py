"""How often chance alone may make a check of a sound model fail."""

AUDIT_ERROR = 0.01
"""The largest chance that any check of a sound model's audit fails."""

CHECKS = 12
"""The number of checks that share it (Bonferroni)."""

CHECK_ERROR = AUDIT_ERROR / CHECKS
"""What each check may take of it."""
