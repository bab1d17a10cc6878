"""Engines in processes of their own: to be asked what they can do, and to run a model."""
