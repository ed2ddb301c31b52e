"""What a run needs on a TPU slice, before one is rented: `python -m seva_jax.plan --help`.

`program` lowers the very programs the trainer runs, with abstract arrays; `hlo` reads collectives
from the compiled text; `flops` counts what the model computes; `chips` knows the hardware;
`estimate` puts them together. Nothing here needs a TPU, only libtpu (the extra "tpu").
"""
