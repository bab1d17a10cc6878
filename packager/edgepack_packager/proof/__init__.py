"""The proof: no variant is sealed that was not compared with the fp32 reference of its source.

*Is it the same model?* ``structure``: an f32 slice of the model through each target's writer and engine. ``tensors``:
every tensor that was written, read back. ``tokens``: the payload's own tokenizer. *Does the engine compute it?*
``execution``: each variant through its engine, against the reference with the variant's own weights. *What did
quantisation cost?* ``loss`` and, on a held-out text, ``receipt``: reports. A gate that is missed costs its variant, and
no other. ``prover`` has all of it; this imports nothing, for the programs that run engines, ``child`` and
``tokenizing``, begin here too.
"""
