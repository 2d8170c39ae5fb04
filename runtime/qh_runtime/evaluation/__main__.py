"""`python -m qh_runtime.evaluation MODEL --text FILE`: perplexity and divergence as JSON.

Exit status: 0, 2 for a usage error, 3 where the model or the text is refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from qh_kernels.kv_cache import KV_TYPES
from qh_runtime.architectures import spec_from_config
from qh_runtime.checkpoints.config import read_config
from qh_runtime.errors import QhError
from qh_runtime.evaluation.divergence import measure_divergence
from qh_runtime.evaluation.model import open_model
from qh_runtime.evaluation.perplexity import measure_perplexity
from qh_runtime.evaluation.windows import Sliding
from qh_runtime.packing.matrices import HeadScan
from qh_runtime.tokenizers.from_hf import load_tokenizer

# As much text as is ever useful here; a larger file is cut.
_MAX_TEXT_BYTES = 4 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m qh_runtime.evaluation", description=__doc__)
    parser.add_argument("model", type=Path, help="checkpoint folder")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text file")
    parser.add_argument("--pack", action="append", help="weight format; may be repeated")
    parser.add_argument(
        "--context", type=_positive, help="window in tokens; the model's, at most 2048"
    )
    parser.add_argument("--stride", type=_positive, help="tokens between windows; half a window")
    parser.add_argument("--limit", type=_positive, default=4096, help="tokens of the text (4096)")
    parser.add_argument("--threads", type=_positive, default=1)
    parser.add_argument(
        "--head-scan", action="store_true", help="scan the head in 4 bits whatever its size"
    )
    parser.add_argument("--exact", action="store_true", help="float32 activations and KV cache")
    parser.add_argument(
        "--kv", action="append", choices=KV_TYPES, help="type of the KV cache; may be repeated"
    )
    options = parser.parse_args(arguments)
    try:
        report = evaluate(options)
    except QhError as error:
        sys.stderr.write(f"{error}\n")
        return 3
    except OSError as error:
        sys.stderr.write(f"{options.text}: {error.strerror}\n")
        return 3
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


def _positive(text: str) -> int:
    """An integer of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """The report: perplexity of each format, and its divergence from the unpacked exact decoder.

    Raises:
        QhError: the model or the text is refused.
        OSError: the text cannot be read.
    """
    with options.text.open("rb") as file:
        text = file.read(_MAX_TEXT_BYTES).decode(errors="replace")
    tokenizer = load_tokenizer(options.model)
    tokens = tokenizer.encode_text(text)[: options.limit]
    prefix = () if tokenizer.bos_id is None or not tokenizer.add_bos else (tokenizer.bos_id,)
    spec = spec_from_config(read_config(options.model).model)
    context = options.context or min(spec.max_position_embeddings, 2048)
    sliding = Sliding(context, options.stride or max(1, context // 2), prefix)
    open_with = partial(open_model, context_length=context, threads=options.threads)
    base = open_with(options.model, pack=None, exact=True)
    results = []
    head_scan: HeadScan = "always" if options.head_scan else "auto"
    for pack, kv_type in product(options.pack or [None], options.kv or ["f16"]):
        model = open_with(
            options.model, pack=pack, head_scan=head_scan, exact=options.exact, kv_type=kv_type
        )
        results.append(
            {
                "pack": pack,
                "kv": "f32" if options.exact else kv_type,
                "bits_per_weight": round(model.weights_bits, 3),
                "isa": model.decoder.isa,
                "perplexity": asdict(measure_perplexity(model.engine, tokens, sliding)),
                "divergence": asdict(
                    measure_divergence(base.engine, model.engine, tokens, sliding)
                ),
            }
        )
        model.decoder.close()
    base.decoder.close()
    return {"model": options.model.name, "text": options.text.name, "results": results}


if __name__ == "__main__":
    sys.exit(main())
