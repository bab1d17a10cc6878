"""edgepack's models in `llm`: ``llm -m edgepack/NAME "..."``. That command imports this; nothing of edgepack does."""
