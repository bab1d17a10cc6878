"""This machine: its facts, what is remembered of it, and the plans that follow. Nothing here opens an engine."""
