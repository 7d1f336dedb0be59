"""The audit: is this model robust, or does it only look so?"""

from surefoot.audit.record import Audit, Check, Curve, Picture, Surface

__all__ = ["Audit", "Check", "Curve", "Picture", "Surface"]
