"""Estimates what a run needs on a TPU slice before one is rented: `python -m seva_jax.plan --help`.

What lives here: `program` lowers the trainer's own programs with abstract arrays, `hlo` counts what
their collectives send, `chips` describes the hardware, `estimate` puts these together, and `table`
shows the result. What does not: counting operations (`seva_jax/training/flops.py`), and how to read
the output (`launch/README.md`). Nothing here needs a TPU, only libtpu (the extra "tpu"). Read next:
`estimate.py`.
"""
