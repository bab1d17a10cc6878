"""Compare every file of this kit with its sha256. It runs before anything of the kit is installed."""

import hashlib
import sys

with open("SHA256SUMS", encoding="utf-8") as sums:
    for line in sums:
        wanted, name = line.rstrip("\n").split("  ", 1)
        digest = hashlib.sha256()
        try:
            with open(name, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            sys.exit(f"{name}: {error.strerror}")
        if digest.hexdigest() != wanted:
            sys.exit(f"{name}: its sha256 differs")
