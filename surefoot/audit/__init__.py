"""The audit: is this model robust, or does it only look so?"""

from surefoot.audit.audit import audit
from surefoot.audit.landscape import loss_surface
from surefoot.audit.record import Audit, Check, Curve, Picture, Surface

__all__ = ["Audit", "Check", "Curve", "Picture", "Surface", "audit", "loss_surface"]
