"""Shapes, gradients, geometry and losses that everything above stands on."""
