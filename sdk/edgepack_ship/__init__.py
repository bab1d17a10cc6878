"""From a sealed bundle to a fleet: parts, single files, signatures, a store on the device, differences, registries.

It knows the SDK's bundles, their files and digests, and nothing of engines, of formats of weights or of text. What a
device needs to find and to trust what is installed is in the SDK (``edgepack.bundle.installed``, ``edgepack.trust``).

A bundle comes in through one door, ``incoming.Incoming``, whatever it comes from: a folder, an archive, a web folder, a
registry, a difference. A new way in is one module and one line in ``incoming``.
"""
