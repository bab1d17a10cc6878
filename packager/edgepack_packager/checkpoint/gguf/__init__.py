"""GGUF files as such: what one holds, and what its bytes stand for. The target reads its own with it, a build others."""
