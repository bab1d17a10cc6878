"""A kit: all that a device without a network needs of one bundle, in one folder.

The packed bundle, the wheels of what runs it there with their hashes, a script that installs both and puts back what
was there where the new does not answer as it should, and units of systemd for a check at each start.
"""
