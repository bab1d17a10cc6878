"""Answers that are bound to a schema, a regex or a grammar."""
