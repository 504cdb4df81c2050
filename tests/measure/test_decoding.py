"""decoding.py: on a clock that only the layers move, and on a real Llama that is small."""

import json

import pytest
import torch
from fake_clock import FakeTime
from tiny import save_tiny_model
from torch import nn

from quantlib.layers.weight_only import Int8Linear
from quantlib.measure.decoding import DecodeProfile, TokenRates, decode_step, profile_decode, tokens_per_second
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize
from quantlib.records.record_values import from_json, to_json


class Timed(nn.Linear):
    """A linear layer that takes so many seconds."""

    def __init__(self, fake, seconds):
        super().__init__(2, 2)
        self.fake, self.seconds = fake, seconds

    def forward(self, x):
        self.fake.pass_(self.seconds)
        return super().forward(x)


class Model(nn.Module):
    """3 s in one layer, twice 1 s in another, 5 s outside of both."""

    def __init__(self, fake):
        super().__init__()
        self.fake, self.first, self.block = fake, Timed(fake, 3), nn.Sequential(Timed(fake, 1))

    def forward(self, x):
        self.fake.pass_(5)
        return self.block(self.block(self.first(x)))


def profile_of(model, fake, **options):
    return profile_decode(model, lambda: model(torch.ones(1, 2)), clock=fake.clock(), **options)


def test_a_profile_by_hand():
    fake = FakeTime()
    profile = profile_of(Model(fake), fake, rounds=3, warmup=1, threads=1)
    assert dict(profile.layer_seconds) == {"first": 3, "block.0": 2}
    assert (profile.step_seconds, profile.watched_seconds, profile.linear_seconds) == (10, 10, 5)
    assert profile.linear_share == 0.5 and profile.other_seconds == 5
    assert fake.now == 10 * (1 + 2 * 3)  # the warm-up, and two steps a round
    assert str(profile) == "10000.00 ms a token on cpu, 1 threads: 50% in 2 linear layers"


def test_the_cost_of_watching_is_not_put_on_the_step():
    fake = FakeTime()
    model = Model(fake)
    clock = fake.clock()

    def slow_mark():
        fake.pass_(0.25)
        return fake.now

    profile = profile_decode(
        model, lambda: model(torch.ones(1, 2)), clock=type(clock)(slow_mark, clock.seconds, clock.synchronise)
    )
    assert profile.step_seconds == 10.25 and profile.watched_seconds == 10.25 + 6 * 0.25


def test_only_the_outermost_layers_are_timed():
    class Wrapped(Timed):
        def __init__(self, fake):
            super().__init__(fake, 1)
            self.inner = Timed(fake, 2)

        def forward(self, x):
            return super().forward(self.inner(x))

    fake = FakeTime()
    model = nn.Sequential(Wrapped(fake), nn.ReLU())
    assert dict(profile_of(model, fake).layer_seconds) == {"0": 3}
    alone = Timed(fake, 2)
    assert dict(profile_of(alone, fake).layer_seconds) == {"": 2}


def test_quantized_layers_count_as_linear_and_other_classes_on_request():
    fake = FakeTime()
    quantized = Int8Linear.from_quantized(quantize(torch.randn(8, 32), Grid(8)))
    model = nn.Sequential(quantized, nn.ReLU())
    profile = profile_decode(model, lambda: model(torch.ones(1, 32)))
    assert list(profile.layer_seconds) == ["0"] and 0 < profile.linear_seconds
    with pytest.raises(ValueError, match="model has no layer of the classes Linear: pass its own"):
        profile_of(model, fake, layers=(nn.Linear,))


def test_hooks_threads_and_gradients_are_as_they_were_after_an_error():
    fake, before, calls = FakeTime(), torch.get_num_threads(), []
    model = Model(fake)

    def step():
        assert not torch.is_grad_enabled() and torch.get_num_threads() == before + 1
        calls.append(any(m._forward_hooks or m._forward_pre_hooks for m in model.modules()))
        if len(calls) == 4:
            raise OSError("gone")
        model(torch.ones(1, 2))

    with pytest.raises(OSError, match="gone"):
        profile_decode(model, step, clock=fake.clock(), warmup=0, threads=before + 1)
    assert calls == [False, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.get_num_threads() == before and torch.is_grad_enabled()


def test_what_cannot_be_profiled_is_refused():
    fake = FakeTime()
    with pytest.raises(ValueError, match="step called none of the model's linear layers"):
        profile_decode(Model(fake), lambda: fake.pass_(1), clock=fake.clock())
    for options in ({"rounds": 0}, {"warmup": -1}):
        with pytest.raises(ValueError, match="rounds must be at least 1 and warmup at least 0"):
            profile_of(Model(fake), fake, **options)


def test_token_rates_by_hand():
    fake = FakeTime()

    def generator(seconds):
        def generate():
            assert not torch.is_grad_enabled()
            fake.pass_(seconds)
            return torch.zeros(1, 8, dtype=torch.int64)

        return generate

    rates = tokens_per_second({"fp32": generator(4), "int4": generator(2)}, 8, rounds=3, clock=fake.clock())
    assert rates["fp32"] == 2 and rates["int4"] == 4 and rates.tokens == 8
    assert rates.ratio("int4", "fp32").value == 2
    assert rates.benchmark.conditions.cold_bytes == 0 and len(rates.benchmark["int4"].seconds) == 3


def test_generators_are_measured_by_turns():
    calls = []
    generators = {name: lambda name=name: calls.append(name) or [1, 2] for name in "ab"}
    tokens_per_second(generators, 2, rounds=6, warmup=1)
    rounds = ["".join(calls[i : i + 2]) for i in range(2, len(calls), 2)]
    assert len(rounds) == 6 and set(rounds) == {"ab", "ba"}


def test_a_hopeless_generator_of_the_race_writes_once():
    fake, calls = FakeTime(), []

    def generator(name, seconds):
        return lambda: (calls.append(name), fake.pass_(seconds), [1])[-1]

    generators = {"fp32": generator("fp32", 1), "bf16": generator("bf16", 60)}
    rates = tokens_per_second(generators, 1, rounds=3, race=generators, clock=fake.clock())
    assert calls.count("bf16") == 1 and rates["bf16"] == 1 / 60 and calls.count("fp32") == 1 + 3
    assert str(rates.ratio("bf16", "fp32")) == "0.02× (one sample)"
    assert tokens_per_second(generators, 1, rounds=3, clock=fake.clock()).benchmark["bf16"].rounds == 3


def test_a_generator_that_stops_early_is_refused():
    with pytest.raises(RuntimeError, match="candidate 'short' failed: ValueError: it returned 3 token ids, not 4"):
        tokens_per_second({"short": lambda: [1, 2, 3]}, 4)
    for tokens in (0, 1.5):
        with pytest.raises(ValueError, match="tokens must be an int of at least 1"):
            tokens_per_second({"a": lambda: [1]}, tokens)


def test_results_survive_a_record():
    fake = FakeTime()
    profile = profile_of(Model(fake), fake)
    values = json.loads(json.dumps(to_json(profile)))
    assert DecodeProfile.from_values(from_json(values)) == profile == DecodeProfile.from_values(values)
    rates = tokens_per_second({"a": lambda: [1]}, 1)
    values = json.loads(json.dumps(to_json(rates)))
    assert TokenRates.from_values(from_json(values)) == rates
    for kind in (DecodeProfile, TokenRates):
        with pytest.raises(ValueError, match="values"):
            kind.from_values({"speed": 3})


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))[0]


def test_decoding_steps_are_the_greedy_continuation(llama):
    prompt = torch.tensor([[1, 3, 4, 5, 6]])
    step = decode_step(llama, prompt)
    ids = prompt
    with torch.no_grad():
        expected = llama(ids).logits[:, -1:].argmax(-1)
        for _ in range(6):
            ids = torch.cat([ids, expected], 1)
            expected = llama(ids).logits[:, -1:].argmax(-1)
            assert torch.equal(step(), expected)


def test_a_step_reads_one_token(llama):
    seen = []
    step = decode_step(llama, torch.tensor([[1, 3, 4, 5, 6]]))
    handle = llama.lm_head.register_forward_hook(lambda layer, inputs, out: seen.append(out.shape[1]))
    step()
    handle.remove()
    assert seen == [1]


def test_a_llama_is_profiled(llama):
    profile = profile_decode(llama, decode_step(llama, torch.tensor([[1, 3]])), rounds=2, warmup=1)
    assert len(profile.layer_seconds) == 2 * 7 + 1 and "lm_head" in profile.layer_seconds
    assert 0 < profile.linear_seconds < profile.watched_seconds


def test_a_model_without_a_cache_and_a_prompt_of_another_shape_are_refused(llama):
    class Forgetful(nn.Module):
        def forward(self, ids, past_key_values, use_cache):
            out = llama(ids, use_cache=False)
            assert out.past_key_values is None
            return out

    with pytest.raises(ValueError, match="past_key_values.*Forgetful does not"):
        decode_step(Forgetful(), torch.tensor([[1, 3]]))
    for prompt in (torch.tensor([1, 3]), torch.ones(2, 3), torch.ones(1, 0)):
        with pytest.raises(ValueError, match=r"prompt must be token ids \[1, tokens\]"):
            decode_step(llama, prompt)
