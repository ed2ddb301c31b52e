"""Estimates what a run needs on TPU slices and GPUs before they are rented.

`python -m seva_jax.plan --help`. What lives here: `program` lowers the run's own programs with
abstract arrays, `hlo` counts what their collectives send, `chips` describes the hardware, `step`
and `answering` count from shapes, `estimate` puts these together, `whole_run` adds the stages up,
`options` has the sweep, and `table` shows the result. What does not: counting operations
(`seva_jax/training/flops.py`), and how to read the output (`launch/README.md`). Nothing here needs
a TPU or a GPU; for TPUs it needs libtpu (the extra "tpu"). Read next: `estimate.py`.
"""
