"""Text and tokens: what stands between an application's words and the ids that an engine knows."""
