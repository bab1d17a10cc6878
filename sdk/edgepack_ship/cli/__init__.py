"""The commands of shipping: each a function in a module of its name, registered as ``edgepack.commands``."""

SHIP = "Ship a bundle"
DEVICE = "On the device"
