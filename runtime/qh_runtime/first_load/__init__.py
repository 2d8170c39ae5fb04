"""The check at the first load of a model: does it compute what it should, here, with these kernels?

`check.py` asks, in this order: are the sampled packed rows those of the checkpoint (`weights.py`);
does one layer come out as in the NumPy reference (`layer.py`); does a fixed sentence give finite
logits of a model and not of a heap of numbers (`prompt.py`). Wrong results drop one instruction set
or refuse the model; what passed is written down (`record.py`) and not asked again.

May import: everything of the runtime below the loader, `qh_kernels`, NumPy. Called by the loader.
"""

from __future__ import annotations

from qh_runtime.first_load.check import CheckedDecoder, Subject, checked_decoder
from qh_runtime.first_load.prompt import Prompt, prompt_of

__all__ = ["CheckedDecoder", "Prompt", "Subject", "checked_decoder", "prompt_of"]
