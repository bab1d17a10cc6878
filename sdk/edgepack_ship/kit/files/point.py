"""Let links point to something, each in one step that is on the disk when this ends: point.py TARGET LINK..."""

import os
import sys

target, *links = sys.argv[1:]
for link in links:
    beside = link + ".new"
    if os.path.lexists(beside):
        os.unlink(beside)
    os.symlink(target, beside)
    os.replace(beside, link)
    folder = os.open(os.path.dirname(link), os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
