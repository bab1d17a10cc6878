"""The commands that the packager adds to ``edgepack``, a module each."""
