"""A bundle in one file: an uncompressed tar that any tar lists and unpacks, and whose payloads can be mapped.

``docs/bundle-format.md`` has the form.
"""
