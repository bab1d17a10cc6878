"""Engines behind edgepack's seam. Each module knows token ids and one engine, nothing of chat or text."""
