"""Who vouches for a bundle, and whom this device believes: signatures, keys that are pinned, and what they may sign.

From the ground up: ``statement`` (what model.sig says, bytes in and values out), ``vouching`` (what it must say of a
bundle), ``policy`` (policy.toml), ``verifying`` (a signature by a public key: the one module that needs
``cryptography``, once it is used), ``files`` (where keys and policies lie) and ``admitting`` (all of them). None hashes
a file of a bundle: a signature vouches for the manifest's digests, and files are held to these elsewhere.
``edgepack_ship.signing`` makes keys and signatures.
"""
