"""Bundles on the network: in an OCI registry as a ModelPack artifact, and in a folder that any web server serves.

``address`` reads what users write, ``client`` speaks to a server whatever it answers, ``artifact`` and ``index`` are
the two documents, ``stored`` and ``web`` the ways in. Who sends is ``edgepack_ship.pushing``, who lays out a folder
``edgepack_ship.mirroring``.

Every answer is a stranger's: its length is bounded, its digest compared, and no name in it becomes a path.
"""
