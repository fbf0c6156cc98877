"""Make the golden adapters of this folder: LoRA on stacked experts, saved by several versions of PEFT.

Run once for each version, in an environment that has it (the wheels of 0.17.1, 0.18.1, 0.19.0, 0.19.1 and
0.21.2 were used): ``python make.py``. Writes ``<version>-<plain|transposed>/`` beside this file: what
``save_pretrained`` wrote, and ``delta.safetensors``, the change of each parameter as that version merges it.
"""

from __future__ import annotations

from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch import nn

EXPERTS, HIDDEN, INNER, RANK = 3, 6, 4, 2


class Experts(nn.Module):
    """The parameters of a gated mixture of experts, as transformers registers them."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        gate_up, down = (2 * INNER, HIDDEN), (HIDDEN, INNER)
        if transposed:
            self.is_transposed = True
            gate_up, down = gate_up[::-1], down[::-1]
        self.gate_up_proj = nn.Parameter(torch.randn(EXPERTS, *gate_up))
        self.down_proj = nn.Parameter(torch.randn(EXPERTS, *down))


class Model(nn.Module):
    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.experts = Experts(transposed=transposed)


def main() -> None:
    for transposed in (False, True):
        torch.manual_seed(7)
        model = Model(transposed=transposed)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        parameters = ["experts.gate_up_proj", "experts.down_proj"]
        config = LoraConfig(
            r=RANK, lora_alpha=3, target_modules=[], target_parameters=parameters, init_lora_weights=False
        )
        adapted = get_peft_model(model, config)
        folder = Path(__file__).parent / f"{peft.__version__}-{'transposed' if transposed else 'plain'}"
        adapted.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        merged = dict(adapted.merge_and_unload().named_parameters())
        delta = {name: (merged[name].detach() - tensor).contiguous() for name, tensor in before.items()}
        save_file(delta, folder / "delta.safetensors")


if __name__ == "__main__":
    main()
