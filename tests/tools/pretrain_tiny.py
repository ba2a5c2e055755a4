"""Make `runner/demo/tiny/`: a small BERT, pre-trained on the generator's text by objectives close to the demo's task.

    python -m tests.tools.pretrain_tiny [OUT] [--steps N]

Input: a fact, restated with one of its words masked, then its paragraph. Three objectives:

* which span of the paragraph is the masked one (recurring span selection, Ram et al. 2021, arXiv 2101.00438);
* which sentence of the paragraph states the fact;
* which words of the paragraph recur, from the second layer. Without the last two, which have a label for every word, a
  model of this size does not learn within minutes to compare words at all.

The heads are discarded; the demo fine-tunes and prunes the encoder.
"""

import argparse
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import BertConfig, BertModel, BertTokenizer, get_linear_schedule_with_warmup

from runner.demo.text import Fact, draw_paragraph
from tests.tools.demo_words import vocabulary

HOME = Path(__file__).parents[2] / "runner" / "demo" / "tiny"
SEED = 20
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
ENDINGS = "able al an ar as at ed en er es est ic in ing ion is it ity ive le ly ment ness on or ous th tion us"
COMMON = "an and are at be but for from had he her his not of on or she their they this to was we were with you"
MAX_LENGTH = 160
STATED_SHARE = 0.75  # the rest is restated as a question with its answer
LESSONS = ((0.1, ((3,), (4,))), (1.0, ((3, 2), (3, 3), (4, 1), (4, 2), (3, 2, 1))))
"""(share of the steps, layouts of paragraphs until then): first one relation; the demo's are longer still."""
WORD_WIDTH = 96  # part of the hidden size; the rest begins as the position


def pieces() -> list[str]:
    """The vocabulary: the generator's words, then single characters and endings so that other text has tokens too."""
    fallback = [*MARKS, *LETTERS, *COMMON.split(), *(f"##{piece}" for piece in (*LETTERS, *ENDINGS.split()))]
    return list(dict.fromkeys([*SPECIAL, *vocabulary(), *fallback]))


def build_tokenizer() -> BertTokenizer:
    """WordPiece over `pieces()`, lower case, `[CLS] a [SEP] b [SEP]`."""
    numbers = {piece: number for number, piece in enumerate(pieces())}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, numbers[name]) for name in ("[CLS]", "[SEP]")],
    )
    return BertTokenizer(tokenizer_object=tokenizer, do_lower_case=True, model_max_length=MAX_LENGTH)


@dataclass(frozen=True)
class Retold:
    """Words of `[CLS] fact [SEP] paragraph [SEP]`, and the positions of the targets."""

    words: list[str]
    paragraph: int
    """Index of the paragraph's first word."""
    span: tuple[int, int]
    """First and last word, in the paragraph, of what is masked in the fact."""
    sentence: range
    """The paragraph's sentence that the fact is from."""


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


def _places(phrase: list[str], words: list[str]) -> list[int]:
    """Indices of the words in which the phrase occurs."""
    starts = [start for start in range(len(words)) if words[start : start + len(phrase)] == phrase]
    return [start + offset for start in starts for offset in range(len(phrase))]


def _retell(draw: random.Random, fact: Fact, asks_value: bool) -> str:
    """The fact in new words, or a question for one of its ends and the answer."""
    if draw.random() < STATED_SHARE:
        return fact.write(draw.choice(fact.relation.statements)) + "."
    questions = fact.relation.value_questions if asks_value else fact.relation.subject_questions
    return f"{fact.write(draw.choice(questions))}? {fact.value if asks_value else fact.subject}."


def draw_retold(draw: random.Random, layouts: tuple[tuple[int, ...], ...]) -> Retold:
    """A paragraph, after one of its facts, restated with its value or its subject masked."""
    paragraph = draw_paragraph(draw, layouts)
    sentences = [_split(sentence) for sentence in paragraph.sentences]
    index = draw.randrange(len(sentences))
    fact, asks_value = paragraph.facts[index], draw.random() < 0.65
    answer = _split(fact.value if asks_value else fact.subject)
    again = _split(_retell(draw, fact, asks_value))
    masked = set(_places(answer, again))
    again = ["[MASK]" if place in masked else word for place, word in enumerate(again)]
    words = ["[CLS]", *again, "[SEP]", *(word for sentence in sentences for word in sentence), "[SEP]"]
    start = len(again) + 2 + sum(len(sentence) for sentence in sentences[:index])
    places = _places(answer, sentences[index])
    span = (start + places[0], start + places[-1])
    return Retold(words, len(again) + 2, span, range(start, start + len(sentences[index])))


@dataclass(frozen=True)
class Batch:
    """Tensors of a batch: `inputs` for BERT, the three targets; [batch, longest] but for the spans, [batch, 2]."""

    inputs: dict[str, torch.Tensor]
    in_paragraph: torch.Tensor
    span: torch.Tensor
    in_sentence: torch.Tensor
    recurs: torch.Tensor


def collate(examples: list[Retold], numbers: dict[str, int]) -> Batch:
    """Every word of the generator is one token, so no tokenizer is needed here."""
    longest = max(len(example.words) for example in examples)
    ids, types, attention = (torch.zeros(len(examples), longest, dtype=torch.long) for _ in range(3))
    in_sentence, recurs = (torch.zeros(len(examples), longest) for _ in range(2))
    for row, example in enumerate(examples):
        length, first = len(example.words), example.paragraph
        ids[row, :length] = torch.tensor([numbers[word] for word in example.words])
        types[row, first:length] = 1
        attention[row, :length] = 1
        in_sentence[row, example.sentence] = 1
        restated = set(example.words[1 : first - 1])
        recurs[row, first : length - 1] = torch.tensor([float(word in restated) for word in example.words[first:-1]])
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": attention}
    spans = torch.tensor([example.span for example in examples])
    return Batch(inputs, types.bool(), spans, in_sentence, recurs)


def build_model(words: int) -> BertModel:
    """The architecture, with weights from which comparing words is a small step.

    From the usual start (all weights small and random) a model of this size is slow to learn that equal words belong
    together. Here words and positions begin in coordinates of their own; in each layer one head attends to equal
    words, one to near positions, and two begin as usual (compare "mimetic initialization", Trockman and Kolter 2023,
    arXiv 2305.09828). Values and outputs are inverses, so attended vectors arrive unchanged.
    """
    config = BertConfig(
        vocab_size=words,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # for those who fine-tune the model: here no example comes twice
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    with torch.no_grad():
        weights = dict(model.named_parameters())
        weights["embeddings.word_embeddings.weight"].normal_(std=0.3)[:, WORD_WIDTH:] = 0
        weights["embeddings.position_embeddings.weight"].zero_()[:, WORD_WIDTH:] = 0.42 * _waves(width - WORD_WIDTH)
        weights["embeddings.token_type_embeddings.weight"].normal_(std=0.3)
        for layer in model.encoder.layer:
            weights = dict(layer.named_parameters())
            compare = torch.randn(width, width) * 0.02
            compare[:head] = 0
            compare[:head, :WORD_WIDTH].normal_(std=1.1 / WORD_WIDTH**0.5)
            compare[2 * head : 3 * head] = 0
            compare[2 * head : 3 * head, WORD_WIDTH:].normal_(std=1.1 / (width - WORD_WIDTH) ** 0.5)
            weights["attention.self.query.weight"].copy_(compare)
            weights["attention.self.key.weight"].copy_(compare)
            carry = torch.nn.init.orthogonal_(torch.empty(width, width))
            weights["attention.self.value.weight"].copy_(carry)
            weights["attention.output.dense.weight"].copy_(carry.T)
            weights["intermediate.dense.weight"].normal_(std=0.08)
    return model


def _waves(width: int) -> torch.Tensor:
    """[positions, width]: sines and cosines of wave lengths from 4 to 128 words."""
    frequencies = torch.pi / 2 * (1 / 32) ** torch.linspace(0, 1, width // 2)
    angles = torch.arange(MAX_LENGTH)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Heads(torch.nn.Module):
    """One linear head for each objective."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.span, self.sentence, self.recurrence = (torch.nn.Linear(width, n) for n in (2, 1, 1))

    def forward(self, model: BertModel, batch: Batch) -> tuple[torch.Tensor, float]:
        """(summed loss, share of right spans)."""
        hidden = model(**batch.inputs, output_hidden_states=True).hidden_states
        assert hidden is not None
        lowest = torch.finfo(torch.float32).min
        span = self.span(hidden[-1]).masked_fill(~batch.in_paragraph[..., None], lowest)  # [batch, words, 2]
        loss = F.cross_entropy(span, batch.span)
        for head, layer, target in ((self.sentence, -1, batch.in_sentence), (self.recurrence, 2, batch.recurs)):
            logits = head(hidden[layer])[..., 0]
            where = batch.in_paragraph
            loss = loss + 2 * F.binary_cross_entropy_with_logits(logits[where], target[where])
        right = (span.argmax(1) == batch.span).all(1).float().mean()
        return loss, float(right)


def pretrain(steps: int, batch_size: int, learning_rate: float) -> BertModel:
    """Train on examples drawn as they are needed."""
    torch.manual_seed(SEED)
    draw = random.Random(f"pretraining {SEED}")
    numbers = {piece: number for number, piece in enumerate(pieces())}
    model = build_model(len(numbers)).train()
    heads = Heads(model.config.hidden_size)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 50, steps)
    begin, losses, shares = time.perf_counter(), [], []
    for step in range(1, steps + 1):
        layouts = next(layouts for until, layouts in LESSONS if step <= until * steps)
        batch = collate([draw_retold(draw, layouts) for _ in range(batch_size)], numbers)
        loss, share = heads(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        shares.append(share)
        if step % 100 == 0 or step == steps:
            seconds = time.perf_counter() - begin
            loss_mean, right_mean = sum(losses) / len(losses), sum(shares) / len(shares)
            print(f"step {step:6} loss {loss_mean:.3f} right spans {right_mean:.3f} {seconds:.0f} s", flush=True)
            losses, shares = [], []
    return model


def main() -> None:
    """Pre-train, and save in bfloat16 with the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, default=HOME)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = pretrain(options.steps, options.batch, options.learning_rate)
    model.bfloat16().save_pretrained(options.out)
    build_tokenizer().save_pretrained(options.out)


if __name__ == "__main__":
    main()
