"""Single-step adversarial training that stays robust, and an audit that tells whether a model is."""

__version__ = "0.1.0"
