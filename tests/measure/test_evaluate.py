"""evaluate.py on models small enough to know the answer."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from quantlib.measure.evaluate import Perplexity, Protocol, compare, paired_bootstrap, perplexity


class Table(nn.Module):
    """Predicts the next token from the current one alone: logits are a row of a table."""

    def __init__(self, table, wrapped=False):
        super().__init__()
        self.table, self.wrapped, self.seen = nn.Parameter(table), wrapped, []

    def forward(self, ids):
        self.seen.append(ids.clone())
        logits = self.table[ids]
        return SimpleNamespace(logits=logits) if self.wrapped else logits


def tokens(n, vocabulary=5, seed=0):
    return torch.randint(vocabulary, (n,), generator=torch.Generator().manual_seed(seed))


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    assert perplexity(Table(torch.zeros(5, 5)), tokens(40), window=8).value == pytest.approx(5.0)


def test_losses_are_those_of_a_plain_float64_loop():
    model, ids = Table(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)), wrapped=True), tokens(43)
    result = perplexity(model, ids, window=10, max_windows=3)
    logp = model.table.detach().double().log_softmax(-1)
    expected = torch.tensor([[-logp[ids[w * 10 + i], ids[w * 10 + i + 1]] for i in range(9)] for w in range(3)])
    torch.testing.assert_close(result.nll.double(), expected, rtol=1e-6, atol=1e-6)
    assert result.value == pytest.approx(math.exp(expected.mean()))
    assert result.protocol == Protocol(10, 3, "float32") and result.protocol.predictions == 27
    assert [s.tolist() for s in model.seen] == [
        [ids[w * 10 : w * 10 + 10].tolist()] for w in range(3)
    ]  # disjoint, one at a time
    assert "3 disjoint windows of 10 tokens, no BOS, 27 predictions" in str(result)


def test_long_windows_are_cut_into_rows_and_put_together_again(monkeypatch):
    model, ids = Table(torch.randn(5, 5, generator=torch.Generator().manual_seed(2))), tokens(300)
    whole = perplexity(model, ids, window=150).nll
    monkeypatch.setattr("quantlib.measure.evaluate.ROWS_AT_ONCE", 7)
    torch.testing.assert_close(perplexity(model, ids, window=150).nll, whole)


def test_what_cannot_be_evaluated_is_refused():
    model = Table(torch.zeros(5, 5))
    for arguments, words in [
        ((tokens(5), 8), "5, which does not fill one window of 8"),
        ((tokens(50), 1), "window must be at least 2"),
        ((tokens(50), 8, 0), "max_windows at least 1"),
        ((tokens(50).reshape(5, 10),), "one sequence of token ids"),
        ((torch.zeros(50),), "one sequence of token ids"),
        (([],), "which does not fill|one sequence"),
    ]:
        with pytest.raises(ValueError, match=words):
            perplexity(model, *arguments)


def test_a_broken_model_is_reported_as_it_is():
    assert math.isnan(perplexity(Table(torch.full((5, 5), math.nan)), tokens(20), window=8).value)


def test_agreement_with_oneself_is_perfect_and_kl_is_the_definition():
    generator = torch.Generator().manual_seed(3)
    a, b, ids = Table(torch.randn(5, 5, generator=generator)), Table(torch.randn(5, 5, generator=generator)), tokens(33)
    same = compare(a, a, ids, window=11)
    assert same.kl == pytest.approx(0, abs=1e-7) and same.top1 == 1
    other = compare(a, b, ids, window=11, max_windows=2)
    p, q = (m.table.detach().double().log_softmax(-1) for m in (a, b))
    kl = (p.exp() * (p - q)).sum(-1)
    seen = torch.cat([ids[0:10], ids[11:21]])
    assert other.kl == pytest.approx(kl[seen].mean().item(), rel=1e-5)
    assert other.top1 == pytest.approx((p.argmax(-1) == q.argmax(-1))[seen].double().mean().item())
    assert other.kl_tokens.shape == other.same_top1.shape == (2, 10)
    assert compare(b, a, ids, window=11).kl != pytest.approx(other.kl)  # KL has a direction


def test_the_bootstrap_separates_what_differs_and_ties_what_does_not():
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(8, 200, generator=generator) + 3 + torch.randn(8, 1, generator=generator)  # windows differ a lot
    noise = 0.05 * torch.randn(8, 200, generator=generator)
    worse = paired_bootstrap(a, a + 0.1 + noise)
    assert (
        worse.verdict == "higher" and worse.mean == pytest.approx(0.1, abs=0.01) and worse.low < worse.mean < worse.high
    )
    assert paired_bootstrap(a + 0.1 + noise, a).verdict == "lower"
    assert paired_bootstrap(a, a + noise - noise.mean()).verdict == "tie"
    assert paired_bootstrap(a, a + noise) == paired_bootstrap(a, a + noise)  # the seed is fixed


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    # 200 drawings of 30 windows around a true difference of 0.2: a 90 % interval should hold it in roughly 180 of them
    generator, held = torch.Generator().manual_seed(5), 0
    for _ in range(200):
        b = 0.2 + torch.randn(30, 1, generator=generator)
        d = paired_bootstrap(torch.zeros(30, 1), b, level=0.9, resamples=500)
        held += d.low <= 0.2 <= d.high
    assert 165 <= held <= 195


def test_perplexities_can_be_compared_directly_and_mismatches_are_refused():
    protocol = Protocol(4, 3, "float32")
    a, b = (Perplexity(1.0, torch.full((3, 3), v), protocol) for v in (1.0, 2.0))
    assert paired_bootstrap(a, b).mean == 1
    for x, y, words in [
        (a, torch.ones(3, 4), "same predictions"),
        (torch.ones(1, 3), torch.ones(1, 3), "at least 2"),
        (torch.ones(3), torch.ones(3), "same predictions"),
    ]:
        with pytest.raises(ValueError, match=words):
            paired_bootstrap(x, y)
    with pytest.raises(ValueError, match="level"):
        paired_bootstrap(a, b, level=95)


# --- what must not pass for a result


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (2, 4)])
@pytest.mark.parametrize("name", "ab")
def test_a_loss_that_is_no_number_is_no_tie(value, place, name):
    losses = {"a": torch.rand(4, 7), "b": torch.rand(4, 7)}
    losses[name][place] = value
    words = rf"^{name} holds 1 losses that are NaN or infinite, .* in window {place[0]} at prediction {place[1]}:"
    with pytest.raises(ValueError, match=words):
        paired_bootstrap(losses["a"], losses["b"])


def test_nothing_compared_is_no_tie():
    with pytest.raises(ValueError, match="hold no predictions"):
        paired_bootstrap(torch.empty(3, 0), torch.empty(3, 0))


@pytest.mark.parametrize("forbidden", [[2], [0, 3], [1, 2, 3, 4]])
def test_a_word_that_is_never_said_adds_nothing(forbidden):
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    table[:, forbidden] = -torch.inf
    model, ids = Table(table), tokens(40)
    same = compare(model, model, ids, window=8)
    assert same.kl == 0 and same.top1 == 1
    table = table.clone()
    table[:, 0] += 1
    other = compare(model, Table(table), ids, window=8)
    kept = [i for i in range(5) if i not in forbidden]
    p, q = (t[:, kept].double().log_softmax(-1) for t in (model.table.detach(), table))
    by_word = (p.exp() * (p - q)).sum(-1)
    expected = torch.stack([by_word[ids[w * 8 : w * 8 + 7]] for w in range(5)])
    torch.testing.assert_close(other.kl_tokens.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_word_that_only_the_reference_says_costs_everything_and_nan_stays_nan():
    table, ids = torch.zeros(5, 5), tokens(40)
    silent, damaged = table.clone(), table.clone()
    silent[:, 2], damaged[:, 2] = -torch.inf, torch.nan
    assert compare(Table(table), Table(silent), ids, window=8).kl == math.inf
    assert math.isnan(compare(Table(table), Table(damaged), ids, window=8).kl)
    assert math.isnan(compare(Table(damaged), Table(table), ids, window=8).kl)


def named(**config):
    model = Table(torch.zeros(5, 5))
    model.config = SimpleNamespace(**config)
    return model


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "max_seq_len"])
def test_a_window_longer_than_the_model_has_positions_is_refused(name):
    short, words = named(**{name: 16}), r"window=17 is longer than the 16 positions .*: pass window=16 or less"
    for call in (
        lambda: perplexity(short, tokens(40), 17),
        lambda: compare(short, Table(torch.zeros(5, 5)), tokens(40), 17),
        lambda: compare(Table(torch.zeros(5, 5)), short, tokens(40), 17),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert short.seen == [] and perplexity(short, tokens(40), 16).protocol.windows == 2


def test_positions_of_gpt2_and_of_a_text_model_inside_another():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=16, n_layer=1, n_head=2, n_positions=16))
    with pytest.raises(ValueError, match="pass window=16"):
        perplexity(model, tokens(40), 20)
    inside = named()
    inside.config.get_text_config = lambda: SimpleNamespace(max_position_embeddings=12)
    with pytest.raises(ValueError, match="pass window=12"):
        perplexity(inside, tokens(40), 20)


class Forgetful(Table):
    """Drops half of its logits in training mode, and has a part that is always evaluated."""

    def __init__(self):
        super().__init__(torch.randn(5, 5, generator=torch.Generator().manual_seed(4)))
        self.drop, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5)
        self.frozen.eval()

    def forward(self, ids):
        return self.frozen(self.drop(super().forward(ids)))


def test_a_model_in_training_is_evaluated_and_given_back_as_it_was():
    model, ids = Forgetful(), tokens(40)
    modes = [module.training for module in model.modules()]
    value, agreement = perplexity(model, ids, 8).value, compare(model, model, ids, 8)
    assert [module.training for module in model.modules()] == modes == [True, True, False]
    assert agreement.kl == 0 and value == perplexity(model.eval(), ids, 8).value
    broken = Forgetful()
    broken.table = None
    with pytest.raises(TypeError):
        perplexity(broken, ids, 8)
    assert broken.training and broken.drop.training
