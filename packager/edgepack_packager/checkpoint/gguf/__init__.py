"""GGUF files as such: what one holds, and what its bytes mean. The target reads its own with it, a build others."""
