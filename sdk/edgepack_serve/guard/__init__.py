"""Who may ask, and what: hosts, origins, tokens, bodies. A request that does not pass meets no model."""
