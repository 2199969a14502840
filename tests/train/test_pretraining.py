import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, LlamaForCausalLM

from mtrec_ray.config import Pretrain
from mtrec_ray.model.backbone import load_model
from mtrec_ray.model.nano import build_nano
from mtrec_ray.train.language_model import language_model, objective
from mtrec_ray.train.pretraining import Corpus, Objective, Pretrainer
from tests.batches import make_manifest, make_run
from tests.training import distance

VOCAB = 30
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def corpus(documents) -> Corpus:
    ids = np.concatenate([np.array(d, dtype=np.int64) for d in documents])
    return Corpus(ids, np.cumsum([len(d) for d in documents]), separator=2)


def counting(count=60) -> Corpus:
    """Documents in which every token tells the next one."""
    rng = np.random.default_rng(0)
    return corpus([(rng.integers(20) + np.arange(rng.integers(3, 9))) % 20 + 5 for _ in range(count)])


class Tiny(nn.Module):
    """A language model on nano."""

    def __init__(self) -> None:
        super().__init__()
        self.body = build_nano(VOCAB, 16, 1, 2)

    def forward(self, ids):
        hidden = self.body(input_ids=ids).last_hidden_state
        return type("Output", (), {"logits": hidden @ self.body.get_input_embeddings().weight.T})


def trainer(objective=None, **settings) -> Pretrainer:
    settings = Pretrain(**{"batch_tokens": 64, "sequence_tokens": 16, "epochs": 6, "learning_rate": 1e-2} | settings)
    return Pretrainer(Tiny(), objective or Objective(VOCAB), settings, 0, torch.device("cpu"), bf16=False)


def test_sequences_hold_the_documents_with_a_separator_after_each():
    found = corpus([[5, 6], [7], [8, 9, 10]]).sequences(3)
    assert found.tolist() == [[5, 6, 2], [7, 2, 8], [9, 10, 2]]


def test_a_seed_changes_the_order_of_documents_and_nothing_else():
    documents = counting()
    one, two = documents.sequences(1, seed=1).ravel(), documents.sequences(1, seed=2).ravel()
    assert one.tolist() != two.tolist()
    assert sorted(one) == sorted(two) == sorted(documents.sequences(1).ravel())


def test_less_text_than_one_sequence_is_one_shorter_sequence():
    assert corpus([[5, 6]]).sequences(100).tolist() == [[5, 6, 2]]


def test_held_out_documents_are_not_trained_on():
    documents = corpus([[i] for i in range(5, 30)])
    train, held_out = documents.split(seed=0)
    assert sorted([*train.ids, *held_out.ids]) == sorted(documents.ids)
    assert len(held_out.ids) == 1
    assert corpus([[5]]).split(0)[1].ids.size == 0


def test_next_token_targets():
    inputs, targets = Objective(VOCAB).examples(torch.tensor([[5, 6, 7]]), torch.Generator())
    assert inputs.tolist() == [[5, 6, 7]]
    assert targets.tolist() == [[6, 7, -100]]


def test_masked_targets_follow_bert():
    sequences = torch.full((200, 100), 7)
    inputs, targets = Objective(VOCAB, mask_id=3).examples(sequences, torch.Generator().manual_seed(0))
    chosen = targets == 7
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.01)
    assert (inputs[chosen] == 3).float().mean() == pytest.approx(0.8 + 0.1 / VOCAB, abs=0.02)
    assert (inputs[chosen] == 7).float().mean() == pytest.approx(0.1 + 0.1 / VOCAB, abs=0.02)
    assert (inputs[~chosen] == 7).all()


@pytest.mark.parametrize(("objective", "fall"), [(Objective(VOCAB), 0.5), (Objective(VOCAB, mask_id=3), 0.1)])
def test_the_held_out_loss_falls(objective, fall):
    train, held_out = counting(200).split(0)
    pretrainer = trainer(objective)
    before = pretrainer.loss(held_out)
    steps = list(pretrainer.train(train))
    assert len(steps) == pretrainer.num_steps(train)
    assert pretrainer.loss(held_out) < before - fall


def test_micro_batches_and_ranks_do_not_change_a_step(monkeypatch):
    """One rank with all sequences == the sum over two ranks == one sequence at a time."""
    sequences = torch.from_numpy(counting().sequences(16)[:4])
    whole = gradients(trainer(), sequences)
    monkeypatch.setattr("mtrec_ray.train.pretraining._MOST_LOGITS", 1)
    apart = gradients(trainer(), sequences)
    halves = [gradients(trainer(), sequences, rank) for rank in range(2)]
    for name, gradient in whole.items():
        torch.testing.assert_close(apart[name], gradient)
        torch.testing.assert_close(halves[0][name] + halves[1][name], gradient)


def gradients(pretrainer, sequences, rank=None):
    """The gradient that the optimizer would see; with a `rank`, that rank's summand of two."""
    found = {}
    if rank is not None:
        pretrainer.rank, pretrainer.world_size = rank, 2
        pretrainer._sum = lambda values: values
    keep = lambda: found.update({n: p.grad.clone() for n, p in pretrainer.model.named_parameters()})  # noqa: E731
    pretrainer._sum_gradients = keep
    pretrainer._step(0, 10, sequences)
    return found


def test_max_steps_ends_it():
    assert len(list(trainer(max_steps=3).train(counting()))) == 3


def test_the_same_seed_gives_the_same_weights():
    one, two = (trainer(max_steps=4) for _ in range(2))
    losses = [[step.loss for step in p.train(counting())] for p in (one, two)]
    assert losses[0] == losses[1]


def test_a_head_that_was_not_published_is_drawn_from_the_seed(tmp_path):
    BertModel(BertConfig(**SIZES)).save_pretrained(tmp_path)
    runs = [make_run(f"backbone={tmp_path}", f"seed={seed}") for seed in (1, 1, 2)]
    heads = [language_model(run, make_manifest()).cls.predictions.transform.dense.weight for run in runs]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_an_encoders_dropouts_follow_the_seed(tmp_path):
    losses = []
    for state in (0, 1):
        torch.manual_seed(3)
        model = BertForMaskedLM(BertConfig(**SIZES))
        torch.manual_seed(state)
        settings = Pretrain(batch_tokens=64, sequence_tokens=16, max_steps=2)
        pretrainer = Pretrainer(model, Objective(VOCAB, mask_id=4), settings, 0, torch.device("cpu"), bf16=False)
        losses.append([step.loss for step in pretrainer.train(counting())])
    assert losses[0] == losses[1]


def test_a_published_decoder_is_trained_further_and_read_back_as_a_backbone(tmp_path):
    LlamaForCausalLM(build_nano(VOCAB, 16, 1, 2).config).save_pretrained(tmp_path / "published")
    run = make_run(f"backbone={tmp_path / 'published'}")
    model = language_model(run, make_manifest())
    settings = Pretrain(batch_tokens=64, sequence_tokens=16, max_steps=8, learning_rate=1e-2)
    pretrainer = Pretrainer(model, objective(model, None), settings, 0, torch.device("cpu"), bf16=False)
    before = pretrainer.loss(counting())
    list(pretrainer.train(counting()))
    assert pretrainer.loss(counting()) < before - 0.1
    model.save_pretrained(tmp_path / "further")
    published, further = (load_model(str(tmp_path / name)) for name in ("published", "further"))
    assert distance(further.state_dict(), model.model.state_dict()) == 0
    assert distance(further.state_dict(), published.state_dict()) > 0.01
