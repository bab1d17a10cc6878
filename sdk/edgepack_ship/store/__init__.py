"""The store of a device: bundles that are installed so that nothing can break them.

::

    names/<name>.json        what a name stands for, replaced in one step (``edgepack.bundle.installed``)
    bundles/<id>/            bundles, each in a folder that is named by its id, and whole from when it is there on
    staging/<id>/            what comes in: it is taken up where it was interrupted
    lock                     held by whoever writes; who reads needs none

Files of the same digest are one file on the disk, linked inside the store alone. Whatever is written is on the disk
before it gets a name that a reader knows: files, then their folders, then the rename, then the folder of the name.
"""
