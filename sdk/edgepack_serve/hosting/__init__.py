"""The models that are served: which there are, when each is loaded, and who waits for it."""
