"""A bundle on disk and in memory: its manifest, the decoder that it describes, its files, and how files are written."""
