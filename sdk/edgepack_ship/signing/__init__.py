"""Signing: keys and the signatures that they make, in OpenSSF Model Signing's format. Devices verify by the SDK alone
(``edgepack.trust``)."""
