"""edgepack_connect: the calls of ``edgepack.Model`` against a model on a server.

``edgepack.connect`` and ``edgepack.open`` find it through an entry point. From the ground up: ``patience`` (the
seconds and bytes that a server may take); ``address`` (what a user writes), ``events`` (bytes to events), ``told``
(what an event says, and the answer that all come to), ``faults`` (statuses to errors) and ``capabilities`` (which
option is which field); ``asking`` (options to fields, or to an error that names what cannot be honoured) and
``forms``; the two forms, OpenAI's and Ollama's; ``server`` and ``servers``, a module of data for each; ``transport``
(the socket), ``line`` (the thread that it lives on) and ``exchange`` (one question); ``stream``, ``conversation``,
``remote``; and ``connecting``. Only ``transport`` opens a socket.
"""
