"""This machine: what it has, what would run on it, and how well."""
