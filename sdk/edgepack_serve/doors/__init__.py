"""The doors: a module for each endpoint's dialect. Only ``edgepack_serve.app`` knows all of them."""
