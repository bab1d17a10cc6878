"""One token after another: what happens between a request and an engine's session."""
