"""Hugging Face `Trainer`: a small GPT-2 on random tokens; `mfu` stands among what it logs.

python examples/integrations/huggingface_train.py
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from mfu_sdk.integrations.huggingface import MFUCallback


class Tokens(Dataset[dict[str, Tensor]]):
    """So many sequences of 32 random tokens."""

    def __init__(self, rows: int) -> None:
        self.ids = torch.randint(256, (rows, 32))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def main() -> None:
    """Parse the command line, train, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=32, n_embd=64, n_layer=2, n_head=2))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=options.steps, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            logging_steps=4, save_strategy="no", eval_strategy="steps", eval_steps=4,
            include_num_input_tokens_seen="all", report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=Tokens(8 * options.steps), eval_dataset=Tokens(8))
        # This is the line that mfu_sdk asks for; `callbacks=[MFUCallback()]` does as well where nothing else reports.
        measured = MFUCallback(name="hf-gpt2").attach(trainer)
        trainer.train()
    print(measured.summary(), flush=True)


if __name__ == "__main__":
    main()
