"""Bundles in the forms of other systems.

A system is one module with one function, ``write``, and one line of the entry-point group ``edgepack.exports``. What it
cannot take over of a bundle it says, in words that the report and the export's own record show.
"""
