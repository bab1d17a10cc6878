"""Train the demo model from nothing: tokenizer, chats, weights, and the folder in Hugging Face layout."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from corpus import ChatSource, Message, held_out_turns, normalise
from model import CONFIG, DemoLlama, load_model, save_model
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).parent
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
END_OF_TEXT, TURN_START, TURN_END = range(3)
HELD_OUT_SEED = 2026
HELD_OUT_COUNTS = {"fact": 120, "arithmetic": 70, "unit": 50, "json": 60}
TOKENIZER_CHATS = 40_000
# Questions are drawn at random and cannot be predicted, so they pull less on the weights than answers do.
QUESTION_WEIGHT = 0.2
TOKENS_PER_STEP = 4096
SHORT_ROW, LONG_ROW, LONG_ROW_EVERY = 512, 1024, 5


@dataclass(frozen=True)
class Phase:
    """A stretch of training with an optimizer of its own: it leaves a schedule of `schedule` steps after `steps`."""

    schedule: int
    steps: int
    peak: float
    arithmetic: int


# Facts, units and JSON come quickly on an even mixture and sums do not, so arithmetic gets more room later.
PHASES = [
    Phase(schedule=2200, steps=1000, peak=2.5e-3, arithmetic=20),
    Phase(schedule=800, steps=400, peak=2e-3, arithmetic=80),
    Phase(schedule=480, steps=480, peak=1.2e-3, arithmetic=60),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(seed: int) -> Tokenizer:
    """Byte-level BPE over the text of the chats, in the manner of SmolLM."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = itertools.islice(ChatSource(seed).chats(), TOKENIZER_CHATS)
    texts = (f"{message['role']}\n{message['content']}" for chat in chats for message in chat)
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.get_vocab_size() == CONFIG["vocab_size"]
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    end_of_text, turn_start, turn_end = SPECIAL_TOKENS
    named = {"bos_token": turn_start, "eos_token": turn_end, "pad_token": end_of_text, "unk_token": end_of_text}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in enumerate(SPECIAL_TOKENS)},
        "additional_special_tokens": [turn_start, turn_end],
        **named,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONFIG["max_position_embeddings"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation = {
        "bos_token_id": TURN_START,
        "do_sample": False,
        "eos_token_id": [TURN_END, END_OF_TEXT],
        "pad_token_id": END_OF_TEXT,
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": [turn_start, turn_end], **named})
    write_json(folder / "generation_config.json", generation)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_held_out(path: Path) -> set[str]:
    """Write the held-out questions; return them as they must not appear in training."""
    turns = held_out_turns(HELD_OUT_SEED, HELD_OUT_COUNTS)
    rows = [{"kind": turn.kind, "question": turn.question, "answer": turn.answer} for turn in turns]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {normalise(turn.question) for turn in turns}


class ChatEncoder:
    """Turns chats into token ids with a loss weight for each."""

    def __init__(self, tokenizer: Tokenizer, forbidden: set[str]) -> None:
        self.tokenizer = tokenizer
        self.forbidden = forbidden
        # Facts and their answers return often.
        self.encode = lru_cache(maxsize=50_000)(self.encode_text)

    def encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def chat(self, chat: list[Message]) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        newline = self.encode("\n")
        for message in chat:
            assert message["role"] != "user" or normalise(message["content"]) not in self.forbidden, message["content"]
            role = (TURN_START, *self.encode(message["role"]), *newline)
            content = (*self.encode(message["content"]), TURN_END)
            weight = 1.0 if message["role"] == "assistant" else QUESTION_WEIGHT
            ids += [*role, *content, *newline]
            weights += [QUESTION_WEIGHT] * len(role) + [weight] * len(content) + [QUESTION_WEIGHT] * len(newline)
        return [*ids, END_OF_TEXT], [*weights, QUESTION_WEIGHT]


def packed_rows(source: Iterator[list[Message]], encoder: ChatEncoder, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of `length` + 1 tokens; each starts with a fresh chat, as a real one does, and the last chat is cut."""
    while True:
        ids: list[int] = []
        weights: list[float] = []
        while len(ids) <= length:
            more_ids, more_weights = encoder.chat(next(source))
            ids += more_ids
            weights += more_weights
        yield torch.tensor(ids[: length + 1]), torch.tensor(weights[: length + 1])


def batches(source: Iterator[list[Message]], encoder: ChatEncoder) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of equally many tokens; every few, one of long rows trains the far positions."""
    short, long = packed_rows(source, encoder, SHORT_ROW), packed_rows(source, encoder, LONG_ROW)
    for number in itertools.count():
        rows, length = (long, LONG_ROW) if number % LONG_ROW_EVERY == LONG_ROW_EVERY - 1 else (short, SHORT_ROW)
        picked = [next(rows) for _ in range(TOKENS_PER_STEP // length)]
        yield torch.stack([ids for ids, _ in picked]), torch.stack([weights for _, weights in picked])


def learning_rate(step: int, steps: int, peak: float) -> float:
    warmup = min(100, steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: DemoLlama) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    gains = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


def train(model: DemoLlama, encoder: ChatEncoder, phase: Phase, seed: int, bf16: bool) -> None:
    optimizer = make_optimizer(model)
    started, smooth = time.perf_counter(), 0.0
    source = ChatSource(seed, phase.arithmetic).chats()
    for step, (ids, weights) in enumerate(itertools.islice(batches(source, encoder), phase.steps)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, phase.schedule, phase.peak)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(ids[:, :-1])
        losses = functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        scale = weights[:, 1:].flatten()
        loss = (losses * scale).sum() / scale.sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % 20 == 0:
            seconds = time.perf_counter() - started
            rate = (step + 1) * TOKENS_PER_STEP / seconds
            print(f"step {step + 1} loss {smooth:.4f} {seconds:.0f} s {rate:.0f} tokens/s", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, in Hugging Face layout")
    parser.add_argument("--held-out", type=Path, default=HERE / "held_out.jsonl", help="where the questions go")
    parser.add_argument("--steps", type=int, help="at most so many steps in each phase, for a quick try")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where the processor is good at it")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    encoder = ChatEncoder(train_tokenizer(arguments.seed), write_held_out(arguments.held_out))
    save_tokenizer(encoder.tokenizer, arguments.out)
    model = DemoLlama(CONFIG)
    print(f"{sum(parameter.numel() for parameter in model.parameters())} parameters", flush=True)
    for number, phase in enumerate(PHASES, start=1):
        if arguments.steps:
            phase = replace(phase, steps=min(phase.steps, arguments.steps))
        print(f"phase {number}: {phase}", flush=True)
        train(model, encoder, phase, arguments.seed + number, arguments.bf16)
        # Every phase ends in a usable folder, and the next one starts from what it holds, the rounded weights.
        save_model(model, arguments.out)
        model = load_model(arguments.out).train()


if __name__ == "__main__":
    main()
