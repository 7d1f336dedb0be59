"""How often chance alone may make a check of a sound model fail."""

AUDIT_ERROR = 0.01
"""How often at most chance alone makes an audit of a sound model fail any of its checks."""

CHECKS = 12
"""Among how many checks that is shared (Bonferroni)."""

CHECK_ERROR = AUDIT_ERROR / CHECKS
"""The share of each check."""
