"""Bundles behind HTTP: OpenAI's interface and others, for every client that speaks one of them.

Where things are, from the ground up: ``asked``, what a request asks for whatever its dialect, and ``refusals``, why one
is not answered; ``guard``, who may ask; ``hosting``, the models and when each is loaded; ``answering``, a request on a
model; ``doors``, a module for each endpoint's dialect; ``app``, all of them together; ``cli``, ``edgepack serve``.
The SDK knows nothing of it, and opens no socket.
"""
