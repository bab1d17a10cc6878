"""An engine of our own: llama.cpp compiled for a processor, from the sources on the package index, as a wheel."""
