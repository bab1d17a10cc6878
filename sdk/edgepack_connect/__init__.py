"""edgepack_connect: the calls of ``edgepack.Model`` against a model on a server.

``edgepack.connect`` and ``edgepack.open`` find it through an entry point. From the ground up: ``address`` (what a user
writes), ``patience`` and ``bounds`` of what a server may do, ``events`` (bytes to events), ``told`` (what one event
says), ``capabilities`` (which options a server honours, as data), ``asking`` (options to a request's fields), ``forms``
(OpenAI's and Ollama's JSON), ``servers`` (one module each), ``faults`` (statuses to errors), ``line`` (the thread that
all sockets live on), ``transport``, ``exchange`` (one question), ``stream``, ``conversation`` and ``remote``;
``connecting`` puts them together. Only ``transport`` and what stands above it opens a socket.
"""
